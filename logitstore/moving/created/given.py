"""Check what a caller gave for a row against the row's tokens, and make records of it.

A caller has full rows (`logits`, or `logprobs` without ids) or entries (`ids` and `logprobs`, most
with a `tail`). Either way row t of an array is of token t, or, as models return them, of the token
after it.

Shape legend: T = tokens of the row, n = records, V = vocabulary, k = entries given.
"""

from dataclasses import dataclass, fields, replace
from typing import Any

from logitstore.errors import InputError
from logitstore.moving.created import arrays


@dataclass(frozen=True)
class Given:
    """What a caller gave for one row; None for what is not there.

    Attributes:
        logits: (T, V), before softmax, at temperature 1.
        ids: (T, k) token ids, most probable first or in any order.
        logprobs: (T, k) log-probabilities of these; (T, V) without ids; -inf is padding.
        tail: (T,) log of the probability beyond the entries.
        entropy: (T,) entropy of the full distribution, in nats.
        token_logprob: (T,) log-probability of the token itself.
    """

    logits: Any = None
    ids: Any = None
    logprobs: Any = None
    tail: Any = None
    entropy: Any = None
    token_logprob: Any = None

    @property
    def names(self) -> tuple[str, ...]:
        """Name what is there."""
        return tuple(f.name for f in fields(self) if getattr(self, f.name) is not None)

    @property
    def is_full(self) -> bool:
        """Tell whether there are full rows."""
        return self.ids is None

    def check(self, where: str) -> None:
        """Reject what does not go together.

        Raises:
            InputError: Nothing is given, or too much.
        """
        if not self.names:
            raise InputError(
                f"{where}: no probabilities. Give logits=…, or ids=… and logprobs=…; a row that "
                "has none is kept with skip()."
            )
        if self.is_full and len(self.names) == 1 and self.names[0] in ("logits", "logprobs"):
            return
        if not self.is_full and self.logprobs is not None and self.logits is None:
            return
        raise InputError(
            f"{where}: has {', '.join(self.names)}, which do not go together. Full rows are "
            "logits=… or logprobs=… and nothing else; entries are ids=… and logprobs=…, with "
            "tail=…, entropy=… and token_logprob=… where they are known."
        )

    def rows(self, where: str) -> int:
        """Count the rows of every array.

        Raises:
            InputError: They do not have as many, or some have no rows.
        """
        counts = {name: _length(getattr(self, name), f"{where}: {name}") for name in self.names}
        if len(set(counts.values())) > 1:
            said = ", ".join(f"{count:,} of {name}" for name, count in counts.items())
            raise InputError(f"{where}: {said}. Give each array one row a token.")
        return next(iter(counts.values()))

    def width(self, where: str) -> int:
        """Return V of full rows.

        Raises:
            InputError: They are no matrix.
        """
        values = self.logits if self.logits is not None else self.logprobs
        shape = arrays.shape_of(values)
        if shape is None or len(shape) != 2:
            raise InputError(
                f"{where}: {self.names[0]} has the shape {shape}, expected [tokens, vocabulary]. "
                "Give an array of one row of the data, with a row for each token."
            )
        return shape[1]

    def plain(self, where: str) -> "Given":
        """Take the one item of arrays that are batches of one, and make arrays of full lists.

        Raises:
            InputError: Full rows that are no numbers.
        """
        changed: dict[str, Any] = {}
        for name in ("logits", "logprobs", "ids"):
            value = getattr(self, name)
            if self.is_full and value is not None and arrays.shape_of(value) is None:
                changed[name] = value = arrays.floats(value, f"{where}: {name}")
            shape = arrays.shape_of(value)
            if shape is not None and len(shape) == 3 and shape[0] == 1:
                changed[name] = value[0]
        return replace(self, **changed)


def _length(values: Any, where: str) -> int:
    shape = arrays.shape_of(values)
    if shape == () or (shape is None and not hasattr(values, "__len__")):
        raise InputError(f"{where}: is one number, expected a row a token. Give an array.")
    return shape[0] if shape is not None else len(values)
