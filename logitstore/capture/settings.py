"""What a capture is asked for, checked before anything is loaded."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Self

from logitstore.capture.plan import DEFAULT_SHARD_TEXT_BYTES
from logitstore.chunks import pcodec_library
from logitstore.errors import InputError
from logitstore.spec import CODECS

#: Of this machine and this run, not of the store. Least of all whether to run a model's code: that
#: is for the user to say, every time, and not for a file.
NOT_RECORDED = frozenset(
    {
        "attn_implementation",
        "claim",
        "device",
        "device_map",
        "tokens_per_batch",
        "trust_remote_code",
    }
)
#: Of `tokens_per_batch`: to be found out before the first shard.
AUTO = "auto"
ON_NAN = ("stop", "skip")
_MAX_TOP_K = 0xFFFF  # an entry count is a 16-bit number


@dataclass(frozen=True, kw_only=True)
class CaptureSettings:
    """The arguments of `logitstore.capture` behind teacher, dataset and folder; described there."""

    top_k: int = 64
    max_tail: float | None = None
    ids: bool = True
    temperatures: Sequence[float] = ()
    split: str | None = None
    config_name: str | None = None
    text_column: str | None = None
    supervise: str | None = None
    chat_template_path: str | None = None
    chat_template_kwargs: str | Mapping[str, Any] | None = None
    max_length: int | None = None
    overflow: str = "split"
    stride: int | None = None
    revision: str | None = None
    dtype: str = "auto"
    quantization: str | Mapping[str, Any] | None = None
    attn_implementation: str | None = None
    device: str | None = None
    device_map: str | Mapping[str, Any] | None = None
    tokens_per_batch: int | str | None = None
    on_nan: str = "stop"
    claim: bool = False
    shard_text_bytes: int = DEFAULT_SHARD_TEXT_BYTES
    codec: str = "portable"
    trust_remote_code: bool = False

    def recorded(self) -> dict[str, Any]:
        """What decides a store, as JSON: for `logitstore repair STORE --capture`."""
        return {name: value for name, value in vars(self).items() if name not in NOT_RECORDED}

    @classmethod
    def from_recorded(cls, recorded: Mapping[str, Any]) -> Self:
        """Settings out of a store, which anybody may have written: nothing else is taken from it.

        Raises:
            InputError: They are not what `recorded` gives.
        """
        known = {f.name for f in fields(cls)} - NOT_RECORDED
        if unknown := sorted(set(recorded) - known):
            raise InputError(
                f"the store's provenance names settings that it cannot decide or that do not "
                f"exist: {', '.join(unknown)}. Run the `logitstore capture …` that made it."
            )
        return cls(**recorded)

    def check(self) -> None:
        """Refuse what no teacher and no dataset could make sense of.

        Raises:
            InputError: Names the flag.
            MissingLibraryError: It needs a library that is not installed.
        """
        if not 1 <= self.top_k <= _MAX_TOP_K:
            raise InputError(f"--top-k is {self.top_k}, expected 1 to {_MAX_TOP_K}.")
        if self.max_tail is not None and not 0 < self.max_tail < 1:
            raise InputError(
                f"--max-tail is {self.max_tail}, expected a probability between 0 and 1, such as "
                "0.01."
            )
        self._check_temperatures()
        self._check_tokens_per_batch()
        if self.on_nan not in ON_NAN:
            raise InputError(f"--on-nan is {self.on_nan}, expected {' or '.join(ON_NAN)}.")
        if self.shard_text_bytes < 1:
            raise InputError(f"--shard-text-bytes is {self.shard_text_bytes}, expected 1 or more.")
        self._check_codec()

    def _check_codec(self) -> None:
        if self.codec not in CODECS:
            raise InputError(f"--codec is {self.codec}, expected {' or '.join(CODECS)}.")
        if self.codec == "compact":
            pcodec_library()

    def _check_tokens_per_batch(self) -> None:
        asked = self.tokens_per_batch
        if isinstance(asked, str) and asked != AUTO:
            raise InputError(f"--tokens-per-batch is {asked}, expected a number or {AUTO}.")
        if isinstance(asked, int) and asked < 1:
            raise InputError(f"--tokens-per-batch is {asked}, expected 1 or more.")

    def _check_temperatures(self) -> None:
        for t in self.temperatures:
            if not (0 < t < float("inf")) or t == 1:
                raise InputError(
                    f"--temperature is {t}, expected a positive number other than 1 (1 is always "
                    "kept)."
                )
        if len(set(self.temperatures)) != len(self.temperatures):
            raise InputError(
                f"--temperature is given twice for one of {list(self.temperatures)}. "
                "Give each once."
            )
