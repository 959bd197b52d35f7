"""How much each token counts in what is learnt of a teacher: `--token_weights`, as DWA-KD has them.

With H the entropy of the teacher over its V_T tokens, H_s that of the student, and p the teacher's
distribution over the student's tokens:

    dwa_teacher   1 - H / log V_T     where the teacher is sure
    dwa_student   H_s max p           where the student is not, and the teacher is

DWA-KD takes the second in the student's vocabulary and the first in the teacher's, whose logits it
has of both through hidden states. A loss from a store has one side, so a run takes one of the two.
They are scaled so that over the pairs of a sequence they sum to their number. They have no
gradient; the paper does not say. Here p is what the loss's map sends to each token of the student,
or group of them; for a loss without a map, the teacher's own. A pair of several tokens is weighed
by its last record, which its distribution is of.

Ref: arXiv:2602.21669, equations 11, 12 and 14. Shape legend: P = pairs.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from distill.losses import find
from distill.losses.aligned import Aligned, Arrays
from logitstore.errors import InputError, MismatchError

TEACHER, STUDENT = "dwa_teacher", "dwa_student"
#: The arrays that carry them, beside those of a loss: the weight; or the teacher's part of it.
WEIGHT, PEAK = "kd_weight", "kd_peak"

Floats = npt.NDArray[np.float64]


def check_known(kind: str | None) -> None:
    """Reject weights that there are not.

    Raises:
        InputError: Names those that there are.
    """
    if kind not in (None, TEACHER, STUDENT):
        raise InputError(
            f"--token_weights {kind}: not known. Known: {TEACHER}, {STUDENT}. Name one."
        )


def check_weights(store: Any, kind: str | None, losses: Sequence[str]) -> None:
    """Reject weights that a store does not know, or a loss has no tokens for.

    Args:
        store: The store.
        kind: Of the weights; None: there are none.
        losses: Names of the losses.

    Raises:
        InputError: A loss has one value for a whole sequence.
        MismatchError: The store lacks what they are made of.
    """
    check_known(kind)
    if kind is None:
        return
    for name in losses:
        if find(name).is_of_sequences:
            raise InputError(
                f"--token_weights {kind}: {name} has one value for a whole sequence, and none for "
                "a token that could be weighed. Leave --token_weights out, or use another --loss."
            )
    if kind == TEACHER and "entropy" in store.spec.missing:
        raise MismatchError(
            f"{store.path}: imported without the entropy of every token, of which --token_weights "
            f"{TEACHER} is made. Leave it out, or capture the text with the teacher."
        )
    if kind == STUDENT and not store.spec.top_k:
        raise MismatchError(
            f"{store.path}: captured with --top-k 0, so the teacher's largest probability, of "
            f"which --token_weights {STUDENT} is made, is not known. Use --token_weights {TEACHER}."
        )


def weights_of(kind: str, aligned: Aligned, arrays: Arrays, vocabulary: int) -> Arrays:
    """Make the array of the pairs of a sequence that carries their weights, or a part of them.

    Args:
        kind: Of the weights.
        aligned: The sequence.
        arrays: Of a loss.
        vocabulary: The size of the teacher's.

    Returns:
        `WEIGHT` (P,), or `PEAK` (P,), which the student's entropy is still missing from.
    """
    pair = np.searchsorted(aligned.last_label, arrays["index"])
    record = aligned.last_record[pair]
    if kind == TEACHER:
        entropy = aligned.records.entropy[record].astype(np.float64)
        sure = np.clip(1 - entropy / np.log(max(vocabulary, 2)), 0, 1)
        return {WEIGHT: of_mean_one(sure).astype(np.float32)}
    count, logmass = aligned.records.entry_count, aligned.records.entry_logprobs
    if "entry_logmass" in arrays:
        count, logmass = arrays["entry_count"], arrays["entry_logmass"]
        record = np.arange(len(count))
    return {PEAK: _largest(count, logmass)[record].astype(np.float32)}


def of_mean_one(weights: Floats) -> Floats:
    """Scale weights so that they sum to their number; where all are 0 they are 1."""
    total = weights.sum()
    return weights * (len(weights) / total) if total > 0 else np.ones_like(weights)


def _largest(count: npt.NDArray[Any], logmass: npt.NDArray[Any]) -> Floats:
    """Find the largest mass of each list; 0 of an empty one."""
    found = np.zeros(len(count), np.float64)
    np.maximum.at(found, np.repeat(np.arange(len(count)), count), np.exp(logmass, dtype=np.float64))
    return found
