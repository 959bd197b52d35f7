"""Try before a capture whether a row's log-probabilities depend on how it is read.

Eight sequences are read twice: one by one by the model alone, whose logits are taken as they are,
row t - 1 for token t; and all together, in another order and with padding, as a capture reads its
batches (`teacher_pass.py`). The log-probability of every token must be the same, up to rounding.
It is not where rows see each other or their padding, where records are another row's or shifted by
one, and where the head makes other logits than the model.

**Tolerance**, of the mean over a sequence of |difference in log p|, in nats (the worst sequence
counts). Means, since in half precision a token that the teacher thinks impossible may move by far
more than the others. Measured on tiny models of nine families and of 12 layers, on a CPU:

    float32    3e-6 at most (a single token: 9e-6)      tolerance 1e-3
    float16    3e-3         (2e-2)                      0.1
    bfloat16   1.4e-2       (6e-2)                      0.2
    quantised  not measured; activations may be         0.5
               rounded by what is in the batch

A misplaced token costs nats, and a whole sequence of them that many on average.
"""

import logging
import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from logitstore.capture.passes.engine import Engine
from logitstore.capture.sequences.windows import TeacherSequence
from logitstore.capture.teacher.memory import free_memory, is_out_of_memory
from logitstore.errors import InputError

log = logging.getLogger(__name__)

TOLERANCES = {"float64": 1e-3, "float32": 1e-3, "float16": 0.1, "bfloat16": 0.2}
_QUANTISED = 0.5
_SEQUENCES = 8
#: Tokens of a sequence at most: a [tokens, vocabulary] tensor of it is made.
_TOKENS = 256
#: Each next sequence is cut so much shorter, so that there is padding even where all are long.
_SHORTER = 16


class SelfTest(NamedTuple):
    """What was found; differences in nats.

    Attributes:
        sequences: How many were read twice.
        tokens: How many of their tokens were compared.
        largest: The largest difference in the log-probability of a token.
        largest_mean: The largest mean of a sequence, which the tolerance is about.
        tolerance: The largest that is taken for rounding.
        row: The dataset's row of that sequence.
    """

    sequences: int
    tokens: int
    largest: float
    largest_mean: float
    tolerance: float
    row: int

    def facts(self) -> dict[str, Any]:
        """Describe it as a store has it, rounded up to one digit: the rest is of one machine."""
        return {
            "sequences": self.sequences,
            "tokens": self.tokens,
            "largest": _one_digit(self.largest),
            "largest_mean": _one_digit(self.largest_mean),
            "tolerance": self.tolerance,
        }

    def check(self, model: str) -> None:
        """Reject a teacher whose answers depend on what a row is read with.

        Raises:
            InputError: Says what was compared, and what to try.
        """
        if self.largest_mean <= self.tolerance:
            return
        raise InputError(
            f"{model}: what it says of row {self.row:,} depends on the batch: read alone and among "
            f"{self.sequences - 1} others with padding, the log-probabilities of its tokens differ "
            f"by {self.largest_mean:.2g} nats on average (at most {self.tolerance:g} is rounding). "
            "Its records would be wrong. Try --attn-implementation eager, or --dtype float32; "
            "--no-self-test captures all the same.",
            kind="self-test",
        )


def try_teacher(
    teacher: Engine,
    sequences: Sequence[TeacherSequence],
    budget: int,
    max_length: int | None = None,
) -> SelfTest | None:
    """Read some sequences alone and together, and compare.

    Args:
        teacher: The loaded teacher.
        sequences: Of the dataset; the most different in length are taken.
        budget: Padded tokens of a batch.
        max_length: The most tokens that the teacher reads at once; longer sequences are cut.

    Returns:
        What was found; None where there are less than two sequences, or no memory for the test.
    """
    chosen = _chosen(sequences, budget, max_length)
    if len(chosen) < 2:
        return None
    try:
        alone = [teacher.alone(each) for each in chosen]
        together = _together(teacher, chosen[::-1])[::-1]
    except (RuntimeError, MemoryError) as e:
        if not is_out_of_memory(e):
            raise
    else:
        return _compared(chosen, alone, together, tolerance_of(teacher))
    free_memory()  # here, where the error no longer holds the tensors
    log.warning("no memory to read %d short rows at once: they are not compared.", len(chosen))
    return None


def tolerance_of(teacher: Engine) -> float:
    """Return the difference that is taken for rounding, in nats."""
    if teacher.is_quantized:
        return _QUANTISED
    return TOLERANCES.get(str(teacher.spec.teacher["dtype"]), _QUANTISED)


def _chosen(
    sequences: Sequence[TeacherSequence], budget: int, max_length: int | None
) -> list[TeacherSequence]:
    """Choose sequences of all lengths, the longest first, each with a record at every token."""
    long_enough = sorted((s for s in sequences if s.length >= 2), key=lambda s: -s.length)
    count = min(_SEQUENCES, len(long_enough))
    spread = np.linspace(0, max(len(long_enough) - 1, 0), count).astype(int)
    places: list[int] = np.unique(spread).tolist()
    most = max(2, min(_TOKENS, budget // max(1, count), max_length or _TOKENS))
    chosen = []
    for n, place in enumerate(places):
        sequence = long_enough[place]
        length = min(sequence.length, max(2, most - n * min(_SHORTER, most // _SEQUENCES)))
        has_record = np.arange(length) > 0
        text = sequence.text.take(np.arange(length), has_record)
        chosen.append(replace(sequence, text=text, questions=None))
    return chosen


def _together(teacher: Engine, sequences: Sequence[TeacherSequence]) -> list[Tensor]:
    """Compute the same of all of them as a capture does."""
    said = teacher.forward(sequences)
    return [said.result.token_logprob[said.sequence_n == n] for n in range(len(sequences))]


def _compared(
    chosen: Sequence[TeacherSequence],
    alone: Sequence[Tensor],
    together: Sequence[Tensor],
    tolerance: float,
) -> SelfTest:
    found = [_difference(one, other) for one, other in zip(alone, together, strict=True)]
    means = [float(each.mean()) if len(each) else 0.0 for each in found]
    worst = int(np.argmax(means))
    return SelfTest(
        sequences=len(chosen),
        tokens=sum(map(len, found)),
        largest=max(float(each.max()) if len(each) else 0.0 for each in found),
        largest_mean=means[worst],
        tolerance=tolerance,
        row=chosen[worst].line.row,
    )


def _difference(alone: Tensor, together: Tensor) -> Tensor:
    """Compute |difference| of each token; none where the teacher alone says nothing finite."""
    is_known = alone.isfinite()
    difference = (together.double() - alone.double())[is_known].abs()
    return torch.nan_to_num(difference, nan=math.inf)


def _one_digit(value: float) -> float:
    """Round up to one digit: 1.2e-06 becomes 2e-06."""
    if not 0 < value < math.inf:
        return value
    power = math.floor(math.log10(value))
    return float(f"{math.ceil(value / 10**power - 1e-9)}e{power}")
