"""What a capture is asked for, checked before anything is loaded."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, Self

from logitstore.capture.sampling import Sampling
from logitstore.errors import InputError
from logitstore.format.chunk_codecs import pcodec_library
from logitstore.format.spec import CODECS
from logitstore.writing.plan import DEFAULT_SHARD_TEXT_BYTES

if TYPE_CHECKING:
    pass

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
_MAX_DRAWS = 4096  # random words of a batch stay below a gigabyte
_MAX_SEED = 0xFFFF_FFFF


@dataclass(frozen=True, kw_only=True)
class CaptureSettings:
    """The arguments of `logitstore.capture` behind teacher, dataset and folder; described there."""

    top_k: int = 64
    max_tail: float | None = None
    ids: bool = True
    temperatures: Sequence[float] = ()
    logit_std: bool = False
    draws: int = 0
    seed: int | None = None
    generate: bool = False
    max_new_tokens: int | None = None
    generate_temperature: float | None = None
    generate_top_k: int | None = None
    top_p: float | None = None
    stop: Sequence[str] = ()
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
        if not 0 <= self.top_k <= _MAX_TOP_K:
            raise InputError(f"--top-k is {self.top_k}, expected 0 to {_MAX_TOP_K}.")
        if self.max_tail is not None and not 0 < self.max_tail < 1:
            raise InputError(
                f"--max-tail is {self.max_tail}, expected a probability between 0 and 1, such as "
                "0.01."
            )
        self._check_temperatures()
        self._check_draws()
        self._check_generation()
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

    def _check_draws(self) -> None:
        if not 0 <= self.draws <= _MAX_DRAWS:
            raise InputError(f"--draws is {self.draws}, expected 0 to {_MAX_DRAWS}.")
        if self.top_k == 0 and not self.draws:
            raise InputError(
                "--top-k is 0, so no entries would be kept, and no draws are asked for. Add "
                "--draws 50 to draw from the whole distribution, or keep entries with --top-k 64."
            )
        if self.top_k == 0 and self.max_tail is not None:
            raise InputError(
                f"--max-tail is {self.max_tail}, but with --top-k 0 no entries are kept. Leave one "
                "of the two out."
            )
        if self.draws and not self.ids:
            raise InputError(
                f"--draws is {self.draws}, but draws are token ids, and --no-ids keeps none. Leave "
                "one of the two out."
            )
        if self.seed is not None and not 0 <= self.seed <= _MAX_SEED:
            raise InputError(f"--seed is {self.seed}, expected 0 to {_MAX_SEED}.")
        if self.seed is not None and not self.is_random:
            raise InputError(
                f"--seed is {self.seed}, but nothing is drawn at random. Leave it out, or ask for "
                "--draws, or --generate with --generate-temperature."
            )

    @property
    def is_random(self) -> bool:
        """Whether what is stored depends on the seed."""
        return self.draws > 0 or (self.generate and bool(self.generate_temperature))

    @property
    def sampling(self) -> Sampling | None:
        """How completions are written; None if they are there.

        Raises:
            InputError: Names the flag that cannot be.
        """
        if not self.generate:
            return None
        return Sampling.of_flags(
            max_new_tokens=self.max_new_tokens,
            temperature=self.generate_temperature,
            top_k=self.generate_top_k,
            top_p=self.top_p,
            stop=self.stop,
            seed=self.seed,
        )

    def _check_generation(self) -> None:
        if self.generate:
            _ = self.sampling
            if self.supervise is not None:
                raise InputError(
                    f"--supervise is {self.supervise}, but with --generate the completion that is "
                    "written is supervised. Leave one of the two out."
                )
            return
        for name in ("max_new_tokens", "generate_temperature", "generate_top_k", "top_p", "stop"):
            value = getattr(self, name)
            if value not in (None, (), []):
                said = ", ".join(value) if name == "stop" else value
                raise InputError(
                    f"--{name.replace('_', '-')} is {said}, but nothing is written without "
                    "--generate. Leave it out, or add --generate."
                )

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
