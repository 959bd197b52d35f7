"""What an evaluation measures, and on what.

Imports neither torch nor transformers: the command line reads this to describe itself.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from logitstore.console.settings import setting
from logitstore.errors import InputError
from logitstore.text.token_budget import DEFAULT_TOKENS_PER_BATCH

BITS_PER_BYTE = "bits_per_byte"
#: Metrics against a teacher's store.
STORE_METRICS = ("agreement", "uld", "calibration")
#: Metrics of the answers that a model writes to the prompts of a dataset.
ANSWER_METRICS = ("token_f1", "exact_match", "rouge")
METRICS = (BITS_PER_BYTE, *STORE_METRICS, *ANSWER_METRICS)
#: Samples stand in results.json, which is small.
MOST_SAMPLES = 32

# Headings of `distill evaluate --help`.
_DATA = "Data"
_MODEL = "Model"
_RUNNING = "Running"
#: In the order of the help.
PANELS = (_DATA, _MODEL, _RUNNING)


@dataclass(frozen=True, kw_only=True)
class EvaluationSettings:
    """What is measured, on what, and how the model reads it.

    The options of `distill evaluate` are derived from the fields with a help text.

    Attributes:
        data: A dataset, as `logitstore capture` takes it.
        metrics: Names out of :data:`METRICS`.
    """

    data: str | Sequence[str] | None = None
    metrics: Sequence[str] = (BITS_PER_BYTE,)
    store: str | None = setting(
        None,
        _DATA,
        "A store of held-out text, for agreement, uld and calibration.",
        metavar="STORE",
    )
    samples: int = setting(
        0,
        _RUNNING,
        "Keep what the model writes after N prompts, or after the first halves of N texts; "
        f"{MOST_SAMPLES} at most.",
        metavar="N",
    )
    split: str | None = setting(None, _DATA, "Split of the dataset.", metavar="NAME")
    config_name: str | None = setting(
        None, _DATA, "Configuration of a hub dataset that has several.", metavar="NAME"
    )
    text_column: str | None = setting(
        None, _DATA, "Column to read as plain text, instead of text.", metavar="NAME"
    )
    parse_special: bool = setting(
        False,
        _DATA,
        "Read the names of the model's special tokens in a text as these tokens: for text that "
        "its chat template wrote. They are context and are not counted, and no second BOS is "
        "added.",
    )
    references_column: str | None = setting(
        None,
        _DATA,
        "Column with a list per row of texts that are as right as the completion.",
        metavar="NAME",
        unset="references, if there is one",
    )
    supervise: str | None = setting(
        None,
        _DATA,
        "Turns of a conversation to measure: all of the assistant's, or the last.",
        metavar="all|last",
        unset="all",
    )
    chat_template_path: str | None = setting(
        None,
        _DATA,
        "Chat template to use: a Jinja file, or the folder of a tokenizer.",
        metavar="PATH",
        unset="the model's own",
    )
    chat_template_kwargs: str | None = setting(
        None, _DATA, "Variables of the chat template for every row, as JSON.", metavar="JSON"
    )
    revision: str | None = setting(
        None, _MODEL, "Branch, tag or commit of a hub model.", metavar="NAME", unset="main"
    )
    tokenizer_name_or_path: str | None = setting(
        None,
        _MODEL,
        "Tokenizer of the model, where its own folder has none.",
        metavar="PATH",
    )
    dtype: str = setting(
        "float32",
        _MODEL,
        "Number format of the weights: float32, bfloat16, float16, or auto (as the model was "
        "saved).",
        metavar="NAME",
    )
    max_length: int | None = setting(
        None,
        _DATA,
        "Tokens of a window at most.",
        metavar="N",
        unset="as many as the model reads",
    )
    max_new_tokens: int = setting(64, _RUNNING, "Tokens of a written answer at most.", metavar="N")
    tokens_per_batch: int = setting(
        DEFAULT_TOKENS_PER_BATCH,
        _RUNNING,
        "Padded tokens of a forward pass; changes speed and memory only.",
        metavar="N",
    )

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
        if isinstance(self.data, str) and (Path(self.data) / "store.json").is_file():
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
        if self.parse_special and self.data is None:
            raise InputError(
                "--parse-special: says how the text of a dataset is read, and none is given. "
                "Leave it out; a store says itself how its text was read."
            )
        if self.references_column is not None and not self.answer_metrics:
            raise InputError(
                f"--references-column {self.references_column}: none of --metrics {names} reads "
                f"it. Leave it out, or add one of {', '.join(ANSWER_METRICS)}."
            )
