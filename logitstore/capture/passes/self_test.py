"""Try before a capture whether the teacher's answers are about the tokens that they are taken for.

That tokens are their text is tried before (`check_places.py`). Here two questions are asked:

    the batch  does the teacher say the same of a row alone and among others?
               No: rows see each other or their padding, records are another row's or shifted.
    fit        do logits predict the token behind them better than those one and two before it do,
               and better than the tokens of another row?
               No: a model of another alignment, or, if it is sure, of another tokenizer.

For the first, eight sequences are read twice: one by one by the model alone, whose logits are
taken as they are, row t - 1 for token t; and all together, in another order and with padding, as a
capture reads its batches (`teacher_pass.py`). The log-probability of every token must be the same,
up to rounding. The second is asked of those logits; of an untrained teacher nothing can be told.

**Tolerance**, of the mean over a sequence of |difference in log p|, in nats (the worst sequence
counts). Means, since in half precision a token that the teacher thinks impossible may move by far
more than the others. Measured on tiny models of nine families and of 12 layers, on a CPU:

    float32    3e-6 at most (a single token: 9e-6)      tolerance 1e-3
    float16    3e-3         (2e-2)                      0.1
    bfloat16   1.4e-2       (6e-2)                      0.2
    quantised  not measured; activations may be         0.5
               rounded by what is in the batch

A misplaced token costs nats, and a whole sequence of them that many on average.

Shape legend: T = tokens of a sequence; C = places whose logits are tried for each token.
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
from logitstore.checking.evidence import (
    LEAST_SEQUENCES,
    Better,
    CostEvidence,
    Floats,
    better_place,
    fit,
)
from logitstore.console.counts import counted
from logitstore.errors import InputError

log = logging.getLogger(__name__)

TOLERANCES = {"float64": 1e-3, "float32": 1e-3, "float16": 0.1, "bfloat16": 0.2}
_QUANTISED = 0.5
_SEQUENCES = 8
#: Logits that are tried in the place of a token's own: so many before it.
_EARLIER = (1, 2)
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
        better: Logits of another place that predict the tokens better; None: there are none.
        fit: How well the logits fit the tokens, in nats a token.
    """

    sequences: int
    tokens: int
    largest: float
    largest_mean: float
    tolerance: float
    row: int
    better: Better | None = None
    fit: CostEvidence = CostEvidence()

    @property
    def doubt(self) -> str:
        """Say what speaks for another model's tokenizer; empty if nothing does."""
        return self.fit.doubt_of("the teacher", "tokens")

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
        """Reject a teacher whose answers depend on the batch, or are about other tokens.

        Raises:
            InputError: Says what was compared, and what to try.
        """
        if self.largest_mean > self.tolerance:
            raise self._depends_on_batch(model)
        if self.better is not None:
            raise InputError(
                f"{model}: its logits {self.better.name} the place of a token predict the tokens "
                f"of {counted(self.sequences, 'sequence')} better than those that are due, "
                f"{self.better.cost:.2f} against {self.better.own:.2f} nats a token. Its records "
                "would be about other tokens. Check the model's code and its positions; "
                "--no-self-test captures all the same.",
                kind="self-test",
            )

    def _depends_on_batch(self, model: str) -> InputError:
        return InputError(
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
        alone = [_alone(teacher, *pair) for pair in zip(chosen, _others(chosen), strict=True)]
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


class _Alone(NamedTuple):
    """What the model says of a sequence that it reads alone.

    Attributes:
        logprobs: (T - 1,) log-probability of each token but the first.
        earlier: (C, T - 1) what each costs by earlier logits, in nats; NaN where there are none.
        other: (T - 1,) what the tokens of another row cost in their place; NaN where it has ended,
            or where only a part of the distributions is known.
        sure: (T - 1,) the probability of the most probable token.
    """

    logprobs: Tensor
    earlier: Floats
    other: Floats
    sure: Floats


def _others(chosen: Sequence[TeacherSequence]) -> list[TeacherSequence]:
    """Choose another sequence for each: the next one, and the first for the last."""
    return [*chosen[1:], chosen[0]]


def _alone(teacher: Engine, sequence: TeacherSequence, other: TeacherSequence) -> _Alone:
    """Ask what is said of one sequence for its tokens, and for those of another.

    An engine that says only a part of a distribution is asked for its tokens alone.
    """
    own, logprobs = teacher.alone(sequence)
    tokens = sequence.text.token_ids[1:]
    earlier = np.full((len(_EARLIER), len(tokens)), np.nan)
    others, sure = np.full(len(tokens), np.nan), np.full(len(tokens), np.nan)
    if logprobs is None:
        return _Alone(own, earlier, others, sure)

    def said(rows: Tensor, tokens: np.ndarray) -> Tensor:
        """Take the log-probability of a token from each row, as far as both go."""
        n = min(len(rows), len(tokens))
        chosen = torch.from_numpy(tokens[:n]).to(rows.device)
        return rows[:n].gather(1, chosen[:, None])[:, 0].cpu()

    for costs, by in zip(earlier, _EARLIER, strict=True):
        costs[by:] = -said(logprobs[:-by], tokens[by:]).double().numpy()
    found = -said(logprobs, other.text.token_ids[1:]).double().numpy()
    others[: len(found)] = found
    sure = logprobs.amax(1).double().exp().cpu().numpy()
    return _Alone(own, earlier, others, sure)


def _together(teacher: Engine, sequences: Sequence[TeacherSequence]) -> list[Tensor]:
    """Compute the same of all of them as a capture does."""
    said = teacher.forward(sequences)
    return [said.result.token_logprob[said.sequence_n == n] for n in range(len(sequences))]


def _compared(
    chosen: Sequence[TeacherSequence],
    alone: Sequence[_Alone],
    together: Sequence[Tensor],
    tolerance: float,
) -> SelfTest:
    found = [_difference(a.logprobs, other) for a, other in zip(alone, together, strict=True)]
    means = [float(each.mean()) if len(each) else 0.0 for each in found]
    worst = int(np.argmax(means))
    own = [-each.logprobs.double().numpy() for each in alone]
    names = [f"{by} before" for by in _EARLIER]
    earlier = zip(names, zip(*(each.earlier for each in alone), strict=True), strict=True)
    return SelfTest(
        sequences=len(chosen),
        tokens=sum(map(len, found)),
        largest=max(float(each.max()) if len(each) else 0.0 for each in found),
        largest_mean=means[worst],
        tolerance=tolerance,
        row=chosen[worst].line.row,
        better=better_place(own, earlier),
        fit=_fit(own, alone),
    )


def _fit(own: Sequence[Floats], alone: Sequence[_Alone]) -> CostEvidence:
    """Compare what tokens cost in their own place and in that of another row's."""
    others = [each.other for each in alone]
    if len(own) < LEAST_SEQUENCES or np.isnan(np.concatenate(others)).all():
        return CostEvidence(sequences=len(own))
    return CostEvidence(
        own=float(np.concatenate(own).mean()),
        other=float(np.nanmean(np.concatenate(others))),
        sure=float(np.concatenate([each.sure for each in alone]).mean()),
        outcome=fit(own, others),
        sequences=len(own),
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
