"""Read `--engine-args` of a server."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Self

from logitstore.errors import InputError

APIS = ("vllm", "sglang")
_TYPES: Mapping[str, Callable[[str], object]] = {
    "concurrency": int,
    "requests_per_s": float,
    "timeout_s": float,
    "model": str,
    "api": str,
}
_MOST_REQUESTS = 1024


@dataclass(frozen=True)
class Options:
    """What is asked for.

    Attributes:
        concurrency: Requests at once.
        requests_per_s: Requests a second at most; 0: as many as come.
        timeout_s: How long one may take.
        model: The name that the server has for the teacher; empty: found out.
        api: One of `APIS`; empty: found out.
    """

    concurrency: int = 16
    requests_per_s: float = 0.0
    timeout_s: float = 600.0
    model: str = ""
    api: str = ""

    @classmethod
    def of(cls, args: Sequence[str]) -> Self:
        """Read options of the form key=value.

        Raises:
            InputError: One is not known, or has a value that it cannot have.
        """
        found: dict[str, object] = {}
        for arg in args:
            key, equals, value = arg.partition("=")
            if not equals or key not in _TYPES:
                raise InputError(
                    f"--engine-args {arg}: expected KEY=VALUE, with KEY one of {', '.join(_TYPES)}."
                )
            try:
                found[key] = _TYPES[key](value)
            except ValueError:
                raise InputError(f"--engine-args {arg}: expected a number.") from None
        made = cls(**found)  # type: ignore[arg-type]
        for key, number, least, most in (
            ("concurrency", made.concurrency, 1, _MOST_REQUESTS),
            ("requests_per_s", made.requests_per_s, 0, 1e6),
            ("timeout_s", made.timeout_s, 1, 1e6),
        ):
            if not least <= number <= most:
                raise InputError(f"--engine-args {key}={number:g}: expected {least} to {most:g}.")
        if made.api not in ("", *APIS):
            raise InputError(f"--engine-args api={made.api}: expected {' or '.join(APIS)}.")
        return made
