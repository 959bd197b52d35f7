"""The settings by which a teacher writes completions, checked before anything is loaded."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from logitstore.errors import InputError

DEFAULT_MAX_NEW_TOKENS = 512
#: Bytes of text of a token, about; only used to cut shards of a suitable size.
_BYTES_PER_TOKEN = 4


@dataclass(frozen=True)
class Sampling:
    """The settings of generation, under the names that `transformers` uses.

    Attributes:
        max_new_tokens: The most tokens of a completion, its end included.
        temperature: 0: always the most probable token, as with `do_sample=False`.
        top_k: Sample from the `top_k` most probable tokens; 0: from all.
        top_p: Sample from the fewest most probable tokens whose probabilities sum to `top_p`.
        stop: Texts that end a completion, which stops before the first of them.
        seed: Seed of the random numbers.
    """

    max_new_tokens: int = DEFAULT_MAX_NEW_TOKENS
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    stop: tuple[str, ...] = ()
    seed: int = 0

    @property
    def is_greedy(self) -> bool:
        return self.temperature == 0

    @property
    def expected_bytes(self) -> int:
        """Estimate the bytes of the longest completion."""
        return _BYTES_PER_TOKEN * self.max_new_tokens

    def recorded(self) -> dict[str, Any]:
        """Return the settings that decide the completions, for a store's spec."""
        recorded = {"max_new_tokens": self.max_new_tokens, "stop": list(self.stop)}
        if self.is_greedy:
            return recorded
        sampled = {"temperature": self.temperature, "top_k": self.top_k, "top_p": self.top_p}
        return recorded | sampled | {"seed": self.seed}

    @classmethod
    def of_flags(
        cls,
        *,
        max_new_tokens: int | None,
        temperature: float | None,
        top_k: int | None,
        top_p: float | None,
        stop: Sequence[str],
        seed: int | None,
    ) -> "Sampling":
        """Make settings of flags; None is a flag that was left out.

        Raises:
            InputError: A value that is out of range, or a flag without effect.
        """
        given: dict[str, Any] = {
            "max_new_tokens": max_new_tokens,
            "temperature": temperature,
            "top_k": top_k,
            "top_p": top_p,
            "seed": seed,
        }
        sampling = cls(stop=tuple(stop), **{k: v for k, v in given.items() if v is not None})
        sampling._check()
        unused_if_greedy = {"--generate-top-k": top_k, "--top-p": top_p}
        for flag, value in unused_if_greedy.items():
            if value is not None and sampling.is_greedy:
                raise InputError(
                    f"{flag} is {value}, but without a temperature the most probable token is "
                    "always taken. Give --generate-temperature 1, or leave it out."
                )
        return sampling

    def _check(self) -> None:
        if self.max_new_tokens < 1:
            raise InputError(f"--max-new-tokens is {self.max_new_tokens}, expected 1 or more.")
        if not 0 <= self.temperature < float("inf"):
            raise InputError(
                f"--generate-temperature is {self.temperature}, expected 0 (always the most "
                "probable token) or a positive number."
            )
        if self.top_k < 0:
            raise InputError(f"--generate-top-k is {self.top_k}, expected 0 (all) or more.")
        if not 0 < self.top_p <= 1:
            raise InputError(f"--top-p is {self.top_p}, expected a probability above 0, up to 1.")
        if "" in self.stop:
            raise InputError("--stop is empty, so nothing would be written. Give a text.")
