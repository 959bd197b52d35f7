"""What an evaluation measures, and on what.

Imports neither torch nor transformers: the command line reads this to describe itself.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from logitstore.errors import InputError
from logitstore.text.token_budget import DEFAULT_TOKENS_PER_BATCH

BITS_PER_BYTE = "bits_per_byte"
#: Metrics against a teacher's store.
STORE_METRICS = ("agreement", "uld", "calibration")
#: Metrics of the answers that a model writes to the prompts of a dataset.
ANSWER_METRICS = ("token_f1", "exact_match", "rouge")
METRICS = (BITS_PER_BYTE, *STORE_METRICS, *ANSWER_METRICS)


@dataclass(frozen=True, kw_only=True)
class EvaluationSettings:
    """What is measured, on what, and how the model reads it.

    Attributes:
        data: A dataset, as `logitstore capture` takes it.
        store: A teacher's store of held-out text.
        metrics: Names out of :data:`METRICS`.
        samples: Prompts to keep an answer to, for people to read.
        split: Of the dataset.
        config_name: Of a hub dataset.
        text_column: The column to read as text.
        references_column: The column of texts that answer as well as the completion.
        supervise: Of conversations: `all` assistant turns, or the `last`.
        chat_template_path: A Jinja file or tokenizer folder instead of the model's own template.
        chat_template_kwargs: Variables of the chat template, as JSON.
        revision: Branch, tag or commit of a model on the hub.
        dtype: Of the weights.
        max_length: Tokens of a window at most.
        max_new_tokens: Tokens of an answer at most.
        tokens_per_batch: Padded tokens of a batch; changes speed and memory only.
    """

    data: str | None = None
    store: str | None = None
    metrics: Sequence[str] = (BITS_PER_BYTE,)
    samples: int = 0
    split: str | None = None
    config_name: str | None = None
    text_column: str | None = None
    references_column: str | None = None
    supervise: str | None = None
    chat_template_path: str | None = None
    chat_template_kwargs: str | None = None
    revision: str | None = None
    dtype: str = "float32"
    max_length: int | None = None
    max_new_tokens: int = 64
    tokens_per_batch: int = DEFAULT_TOKENS_PER_BATCH

    @property
    def store_metrics(self) -> list[str]:
        """Those of the metrics that are measured against a store."""
        return [name for name in self.metrics if name in STORE_METRICS]

    @property
    def data_metrics(self) -> list[str]:
        """Those of the metrics that are measured on a dataset."""
        return [name for name in self.metrics if name not in STORE_METRICS]

    @property
    def answer_metrics(self) -> list[str]:
        """Those of the metrics of a dataset that are measured on written answers."""
        return [name for name in self.metrics if name in ANSWER_METRICS]

    def check(self) -> None:
        """Check that each metric has what it is measured on, and that all that is given is used.

        Raises:
            InputError: Names the metric or the flag.
        """
        self._check_nothing_lacks()
        self._check_nothing_is_idle()

    def _check_nothing_lacks(self) -> None:
        if self.data is not None and (Path(self.data) / "store.json").is_file():
            raise InputError(
                f"{self.data}: is a store, and where a dataset is expected. Give it as --store "
                f"{self.data}, with --metrics {','.join(STORE_METRICS)}, or name the dataset of "
                "held-out text."
            )
        if self.data is None and (self.samples or self.data_metrics):
            wanted = f"--metrics {','.join(self.data_metrics)}: measured on a dataset"
            if self.samples:
                wanted = f"--samples {self.samples}: written after prompts of a dataset"
            raise InputError(
                f"{wanted}, but none is given. Name it behind the model: `distill evaluate MODEL "
                "DATA`."
            )
        if self.store is None and self.store_metrics:
            raise InputError(
                f"--metrics {','.join(self.store_metrics)}: measured against a teacher, but no "
                "store is given. Add --store with a store of held-out text."
            )

    def _check_nothing_is_idle(self) -> None:
        names = ",".join(self.metrics)
        if self.store is not None and not self.store_metrics:
            raise InputError(
                f"--store {self.store}: none of --metrics {names} reads it. Leave it out, or add "
                f"one of {', '.join(STORE_METRICS)}."
            )
        if self.data is not None and not self.data_metrics and not self.samples:
            raise InputError(
                f"{self.data}: none of --metrics {names} reads a dataset. Leave it out, or add "
                "bits_per_byte."
            )
        if self.references_column is not None and not self.answer_metrics:
            raise InputError(
                f"--references-column {self.references_column}: none of --metrics {names} reads "
                f"it. Leave it out, or add one of {', '.join(ANSWER_METRICS)}."
            )
