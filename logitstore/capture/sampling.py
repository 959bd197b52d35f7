"""How a teacher writes completions, checked before anything is loaded."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from logitstore.errors import InputError

DEFAULT_MAX_NEW_TOKENS = 512
#: Bytes of text that a token writes, about: only to cut shards of a likely size.
_BYTES_PER_TOKEN = 4


@dataclass(frozen=True)
class Sampling:
    """As `transformers` calls these.

    Attributes:
        max_new_tokens: Tokens of a completion at most, its end with them.
        temperature: 0: the most probable token always, as `do_sample=False`.
        top_k: Draw from so many of the most probable tokens; 0: from all.
        top_p: Draw from the fewest of the most probable tokens that have this much together.
        stop: A completion ends before the first of these.
        seed: Of what is drawn.
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
        """Text of a completion at most, about."""
        return _BYTES_PER_TOKEN * self.max_new_tokens

    def recorded(self) -> dict[str, Any]:
        """What decides the completions, as a store's rendering has it."""
        found: dict[str, Any] = {"max_new_tokens": self.max_new_tokens, "stop": list(self.stop)}
        if not self.is_greedy:
            found |= {"temperature": self.temperature, "top_k": self.top_k, "top_p": self.top_p}
            found["seed"] = self.seed
        return found

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
        """What the flags say; None is a flag left out.

        Raises:
            InputError: One that cannot be, or would have no effect.
        """
        given: dict[str, Any] = {
            "max_new_tokens": max_new_tokens,
            "temperature": temperature,
            "top_k": top_k,
            "top_p": top_p,
            "seed": seed,
        }
        found = cls(stop=tuple(stop), **{k: v for k, v in given.items() if v is not None})
        found._check()
        idle = {"--generate-top-k": top_k, "--top-p": top_p}
        for flag, value in idle.items():
            if value is not None and found.is_greedy:
                raise InputError(
                    f"{flag} is {value}, but without a temperature the most probable token is "
                    "always taken. Give --generate-temperature 1, or leave it out."
                )
        return found

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
