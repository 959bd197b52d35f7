"""Check and sort lists of (id, log-probability), one for each token, and compute their tails.

Shape legend: T = tokens, m = entries of all lists, n = records, K = entries of the longest list.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NoReturn, Self

import numpy as np

from logitstore.console.counts import counted
from logitstore.errors import InputError
from logitstore.format.numpy_types import F32, F64, I64, Bools

#: From here down a number stands for "not known" or "ruled out": servers write -9999.0 for a token
#: that they do not list (and vLLM for -inf, which JSON lacks), or the smallest float. A teacher's
#: own log-probabilities do not reach it.
UNKNOWN = -9999.0
#: Sums of float32 probabilities, or of probabilities written with three digits, err by less.
SUM_TOLERANCE = 1e-3
#: Below it, 1 - sum is float32 rounding error.
_ROUNDING = 1e-6
#: After a last entry as probable as this, the next tokens must be visible in 1 - sum.
_TELLS = 1e-4
_HOW_FULL = (
    "Give log-probabilities over the full vocabulary, at temperature 1: of vLLM those are "
    "`prompt_logprobs` with --logprobs-mode raw_logprobs, its default"
)


@dataclass(frozen=True)
class Lists:
    """The entries of the tokens of a sequence; a token without a list has none.

    Attributes:
        counts: (T,) the number of entries of each token.
        ids: (m,) the ids of the entries, token after token.
        logprobs: (m,) their log-probabilities, in nats.
    """

    counts: I64
    ids: I64
    logprobs: F64

    def __len__(self) -> int:
        return len(self.counts)

    @classmethod
    def none(cls, tokens: int) -> Self:
        """Return empty lists for `tokens` tokens."""
        return cls(np.zeros(tokens, np.int64), np.zeros(0, np.int64), np.zeros(0))

    @classmethod
    def joined(cls, parts: Sequence["Lists"]) -> Self:
        """Put the lists of several sequences one after the other."""
        none = cls.none(0)
        columns = [
            [getattr(part, n) for part in (none, *parts)] for n in ("counts", "ids", "logprobs")
        ]
        return cls(*map(np.concatenate, columns))

    @property
    def starts(self) -> I64:
        """Return (T,) the place where the entries of each token begin."""
        return np.cumsum(self.counts) - self.counts

    @property
    def owner(self) -> I64:
        """Return (m,) the token that each entry belongs to."""
        return np.repeat(np.arange(len(self.counts)), self.counts)

    def take(self, tokens: I64) -> "Lists":
        """Return the lists of some tokens, in the order of `tokens`."""
        counts = self.counts[tokens]
        within = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
        source = np.repeat(self.starts[tokens], counts) + within
        return Lists(counts, self.ids[source], self.logprobs[source])

    def where(self, kept: Bools) -> "Lists":
        """Return the lists with the entries of a mask alone."""
        counts = np.bincount(self.owner[kept], minlength=len(self.counts))
        return Lists(counts.astype(np.int64), self.ids[kept], self.logprobs[kept])

    def moved_on(self) -> "Lists":
        """Shift each list to the token after its own, and drop the last list."""
        last = int(self.counts[-1]) if len(self.counts) else 0
        kept = len(self.ids) - last
        counts = np.concatenate([[0], self.counts])[: len(self.counts)]
        return Lists(counts, self.ids[:kept], self.logprobs[:kept])

    def hold(self, tokens: I64) -> Bools:
        """Return (T,) whether the list of token t contains `tokens[t]`."""
        hits = self.ids == np.repeat(tokens, self.counts)
        holds: Bools = np.bincount(self.owner[hits], minlength=len(self)) > 0
        return holds

    def logprob_of(self, tokens: I64) -> F64:
        """Return (T,) the log-probability of `tokens[t]` in list t; NaN where it is not in it."""
        hits = np.flatnonzero(self.ids == np.repeat(tokens, self.counts))
        logprobs = np.full(len(self), np.nan)
        logprobs[self.owner[hits]] = self.logprobs[hits]
        return logprobs


def checked(
    lists: Lists, vocab_size: int, where: str, tolerance: float = SUM_TOLERANCE
) -> tuple[Lists, int]:
    """Check lists and sort them, most probable first; return them and how many were not sorted.

    Entries of probability zero (-inf: padding, or what a sampler ruled out), and those of which a
    server only says that it does not know them, are removed.

    Args:
        lists: The lists.
        vocab_size: The number of tokens in the vocabulary.
        where: The name of the lists in messages.
        tolerance: How much rounding may have added to a probability, or to their sum.

    Raises:
        InputError: An id is not in the vocabulary or is twice in a list, a value is not a
            log-probability, or a list sums to more than 1; names the token.
    """
    _check_values(lists, vocab_size, where, tolerance)
    lists = lists.where(lists.logprobs > UNKNOWN)
    lists = replace(lists, logprobs=np.minimum(lists.logprobs, 0.0))
    owner = lists.owner
    rises = (np.diff(lists.logprobs) > 0) & (np.diff(owner) == 0)
    unsorted = len(np.unique(owner[1:][rises]))
    if unsorted:
        order = np.lexsort((lists.ids, -lists.logprobs, owner))
        lists = replace(lists, ids=lists.ids[order], logprobs=lists.logprobs[order])
    _check_distinct(lists, where)
    total = sums(lists)
    over = np.flatnonzero(total > 1 + tolerance)
    if len(over):
        t = int(over[0])
        raise InputError(
            f"{where}, token {t:,}: its probabilities add up to {total[t]:.4f}, expected 1 or "
            f"less. {_HOW_FULL}."
        )
    return lists, unsorted


def check_own(own: F64 | None, where: str) -> None:
    """Check the log-probabilities of tokens themselves, (T,), where a dump has them.

    Raises:
        InputError: One is above 0; names the token.
    """
    if own is None:
        return
    over = np.flatnonzero(np.nan_to_num(own) > SUM_TOLERANCE)
    if len(over):
        t = int(over[0])
        raise InputError(
            f"{where}, token {t:,}: {own[t]:g} for the token itself is above 0, so it is not a "
            f"log-probability. Are these probabilities or logits? {_HOW_FULL}."
        )


def check_largest(lists: Lists, vocab_size: int, where: str) -> None:
    """Check that lists can hold the most probable tokens: no other exceeds a list's last entry.

    Then V - k tokens of at most that probability must be able to make up the tail, 1 - sum.

    Raises:
        InputError: They cannot; names the token.
    """
    others = vocab_size - lists.counts
    under = np.flatnonzero((lists.counts > 0) & ~_can_hold_rest(lists, vocab_size))
    if len(under):
        t = int(under[0])
        raise InputError(
            f"{where}, token {t:,}: its {lists.counts[t]:,} probabilities add up to "
            f"{sums(lists)[t]:.4f}, and {others[t]:,} other tokens no more probable than the last "
            "of them cannot be the rest. A list must hold the most probable tokens of a "
            "vocabulary of --vocab-size."
        )


def sums(lists: Lists) -> F64:
    """Return (T,) the sum of the probabilities in each list."""
    return np.asarray(np.bincount(lists.owner, np.exp(lists.logprobs), len(lists)), np.float64)


def _check_values(lists: Lists, vocab_size: int, where: str, tolerance: float) -> None:
    ids, values = lists.ids, lists.logprobs

    def reject(bad: Bools, template: str, step: str) -> None:
        if bad.any():
            j = int(np.flatnonzero(bad)[0])
            fault = template.format(id=ids[j], value=values[j])
            raise InputError(f"{where}, token {lists.owner[j]:,}: {fault}. {step}.")

    reject(
        (ids < 0) | (ids >= vocab_size),
        f"id {{id}} is outside the vocabulary, which has 0 to {vocab_size - 1:,}",
        "Give the width of the teacher's logits with --vocab-size, or the --tokenizer that the "
        "dump was made with",
    )
    reject(np.isnan(values), "the log-probability of id {id} is not a number", "Drop the row")
    reject(
        values > tolerance,
        "{value:g} for id {id} is above 0, so it is not a log-probability",
        f"Are these probabilities or logits? {_HOW_FULL}",
    )


def _check_distinct(lists: Lists, where: str) -> None:
    key = np.sort((lists.owner << 32) | lists.ids)  # ids are below 2^32 by now
    twice = np.flatnonzero(np.diff(key) == 0)
    if len(twice):
        t, i = divmod(int(key[twice[0]]), 1 << 32)
        raise InputError(
            f"{where}, token {t:,}: id {i} is in its list twice. Drop the row, or repair what "
            "wrote it."
        )


def look_renormalised(lists: Lists, vocab_size: int) -> tuple[int, int]:
    """Count (lists that sum to 1 although they should not, lists that can tell).

    The most probable token that is not in a list is about as probable as the list's last entry. So
    where that has 1e-4 or more, 1 - sum must be visible, unless the list was renormalised. Few
    truly peaked distributions sum to 1, too.
    """
    least, left_over = _least(lists), np.abs(1 - sums(lists))
    tells = (lists.counts > 0) & (lists.counts < vocab_size) & (least >= _TELLS)
    suspect = tells & (left_over <= np.minimum(least / 10, SUM_TOLERANCE))
    return int(suspect.sum()), int(tells.sum())


def tails(lists: Lists, vocab_size: int) -> F64:
    """Return (T,) the log of each list's tail, the probability beyond its entries.

    1 - sum is as good as the sum: to about 1e-6 where the log-probabilities are, and to 4e-5 where
    they are torch's float32 log_softmax of 49,152 logits on a CPU, whose sum of exponentials loses
    so much. The log of a tail below 1e-3 has few digits then; an engine that knows the other tokens
    computes it from them. A list of the whole vocabulary has a tail of 0. The tail is at
    most V - k times the probability of the last entry, which no other token exceeds.
    """
    has = lists.counts > 0
    most = np.where(has, (vocab_size - lists.counts) * _least(lists), 1.0)
    left_over = np.minimum(np.maximum(1 - sums(lists), _ROUNDING), most)
    with np.errstate(divide="ignore"):  # log 0 = -inf: nothing is left
        return np.where(has, np.log(left_over), 0.0)


def _least(lists: Lists) -> F64:
    """Return (T,) the probability of the last entry of each list; 0 for an empty list."""
    has = lists.counts > 0
    least = np.zeros(len(lists))
    least[has] = np.exp(lists.logprobs[(lists.starts + lists.counts - 1)[has]])
    return least


def renormalised(lists: Lists) -> Lists:
    """Scale every list so that it sums to 1 exactly."""
    with np.errstate(divide="ignore"):
        shift = np.log(sums(lists))
    return replace(lists, logprobs=lists.logprobs - shift[lists.owner])


def at_most_one(lists: Lists) -> Lists:
    """Scale lists that rounding has brought above 1 so that they sum to 1."""
    shift = np.log(np.maximum(sums(lists), 1.0))
    return replace(lists, logprobs=lists.logprobs - shift[lists.owner])


def entropies(lists: Lists) -> F64:
    """Return (T,) the entropy of each list, in nats, for lists of the whole vocabulary."""
    terms = -np.exp(lists.logprobs) * lists.logprobs
    return np.asarray(np.bincount(lists.owner, terms, len(lists)), np.float64)


def without_extras(lists: Lists, tokens: I64, ranks: F64, vocab_size: int) -> Lists:
    """Remove from each list the token itself where it is not among the most probable tokens.

    Servers add the token itself to the k most probable, however improbable it is. It is removed if
    its rank is larger than the list; if it is the last entry, and tokens less probable than it
    could not make up the tail; and finally if it is the last entry of a list that is longer than
    the shortest of the row.

    Args:
        lists: Sorted lists.
        tokens: (T,) the tokens themselves.
        ranks: (T,) their ranks in the whole vocabulary, from 1; NaN where they are not known.
        vocab_size: The number of tokens in the vocabulary.
    """
    beyond = ranks > lists.counts  # False for an unknown rank (NaN)
    stranger = _own_is_last(lists, tokens) & ~_can_hold_rest(lists, vocab_size)
    lists = _without_own(lists, tokens, beyond, stranger)
    shortest = int(min(lists.counts[lists.counts > 0], default=0))
    longer = lists.counts > shortest
    return _without_own(lists, tokens, _own_is_last(lists, tokens) & longer)


def _without_own(lists: Lists, tokens: I64, *where: Bools) -> Lists:
    """Remove the token itself from the lists for which any of the conditions holds."""
    is_own = lists.ids == np.repeat(tokens, lists.counts)
    return lists.where(~(is_own & np.repeat(np.logical_or.reduce(where), lists.counts)))


def _own_is_last(lists: Lists, tokens: I64) -> Bools:
    """Return (T,) whether the token itself is the last entry of its list."""
    has = lists.counts > 0
    is_last = np.zeros(len(lists), np.bool_)
    is_last[has] = lists.ids[(lists.starts + lists.counts - 1)[has]] == tokens[has]
    return is_last


def _can_hold_rest(lists: Lists, vocab_size: int) -> Bools:
    """Return (T,) whether tokens no more probable than a list's last entry can make up its tail."""
    others = vocab_size - lists.counts
    can_hold: Bools = 1 - sums(lists) <= others * _least(lists) + SUM_TOLERANCE
    return can_hold


def first(lists: Lists, count: int) -> Lists:
    """Keep the most probable entries of sorted lists, `count` of each at most."""
    rank = np.arange(len(lists.ids)) - np.repeat(lists.starts, lists.counts)
    return lists.where(rank < count)


def fewest(lists: Lists, max_tail: float) -> Lists:
    """Keep the fewest entries of sorted lists that leave no more than `max_tail`, else all."""
    running = np.cumsum(np.exp(lists.logprobs))
    before = np.concatenate([[0.0], running])[lists.starts]
    left_before = 1 - (running - np.exp(lists.logprobs) - np.repeat(before, lists.counts))
    rank = np.arange(len(lists.ids)) - np.repeat(lists.starts, lists.counts)
    return lists.where((left_before > max_tail) | (rank == 0))


def padded(lists: Lists, width: int = 0) -> tuple[F32, I64]:
    """Return (n, K) log-probabilities and ids, padded with -inf and 0; K is `width` or more."""
    mask = np.arange(int(lists.counts.max(initial=width))) < lists.counts[:, None]
    logprobs = np.full(mask.shape, -np.inf, np.float32)
    ids = np.zeros(mask.shape, np.int64)
    logprobs[mask], ids[mask] = lists.logprobs, lists.ids
    return logprobs, ids


def reject_lengths(where: str, items: str, count: int, tokens: int) -> NoReturn:
    """Raise InputError: it cannot be told which tokens the items belong to."""
    raise InputError(
        f"{where}: {count:,} {items} for {counted(tokens, 'token')}. Give one list a token (an "
        "empty one or null where there is none), or drop the row."
    )


def int64s(values: Any) -> I64:
    return np.asarray(values, np.int64)
