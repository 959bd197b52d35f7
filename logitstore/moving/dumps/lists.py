"""Lists of (id, log-probability), one a token: checked, sorted, completed by what they leave over.

Shape legend: T = tokens, m = entries of all lists, n = records, K = entries of the longest list.
"""

from dataclasses import dataclass, replace
from typing import Any, NoReturn, Self

import numpy as np

from logitstore.errors import InputError
from logitstore.format.numpy_types import F32, F64, I64, Bools

#: Sums of float32 probabilities, and of ones written with three digits, stay within it.
SUM_TOLERANCE = 1e-3
#: Below it, 1 - sum says nothing: what rounding of float32 leaves.
_ROUNDING = 1e-6
#: A last entry as probable as this has neighbours that must show in 1 - sum.
_TELLS = 1e-4
_HOW_FULL = (
    "Give log-probabilities over the full vocabulary, at temperature 1: of vLLM those are "
    "`prompt_logprobs` with --logprobs-mode raw_logprobs, its default"
)


@dataclass(frozen=True)
class Lists:
    """Entries of the tokens of a sequence; a token without a list has none.

    Attributes:
        counts: (T,)
        ids: (m,)
        logprobs: (m,) nats.
    """

    counts: I64
    ids: I64
    logprobs: F64

    def __len__(self) -> int:
        return len(self.counts)

    @classmethod
    def none(cls, tokens: int) -> Self:
        """No list for so many tokens."""
        return cls(np.zeros(tokens, np.int64), np.zeros(0, np.int64), np.zeros(0))

    @property
    def starts(self) -> I64:
        """(T,) where the entries of each token begin."""
        return np.cumsum(self.counts) - self.counts

    @property
    def owner(self) -> I64:
        """(m,) the token of each entry."""
        return np.repeat(np.arange(len(self.counts)), self.counts)

    def take(self, tokens: I64) -> "Lists":
        """The lists of some tokens, in that order."""
        counts = self.counts[tokens]
        within = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
        source = np.repeat(self.starts[tokens], counts) + within
        return Lists(counts, self.ids[source], self.logprobs[source])

    def where(self, kept: Bools) -> "Lists":
        """Some of the entries."""
        counts = np.bincount(self.owner[kept], minlength=len(self.counts))
        return Lists(counts.astype(np.int64), self.ids[kept], self.logprobs[kept])

    def moved_on(self) -> "Lists":
        """The list of each token given to the token after it; the last one's to none."""
        last = int(self.counts[-1]) if len(self.counts) else 0
        kept = len(self.ids) - last
        counts = np.concatenate([[0], self.counts])[: len(self.counts)]
        return Lists(counts, self.ids[:kept], self.logprobs[:kept])

    def hold(self, tokens: I64) -> Bools:
        """(T,) whether the list of each token has `tokens[t]` in it."""
        hits = self.ids == np.repeat(tokens, self.counts)
        found: Bools = np.bincount(self.owner[hits], minlength=len(self)) > 0
        return found

    def logprob_of(self, tokens: I64) -> F64:
        """(T,) the log-probability of `tokens[t]` in the list of token t; NaN where it is not."""
        hits = np.flatnonzero(self.ids == np.repeat(tokens, self.counts))
        found = np.full(len(self), np.nan)
        found[self.owner[hits]] = self.logprobs[hits]
        return found


def checked(lists: Lists, vocab_size: int, where: str) -> tuple[Lists, int]:
    """The lists as they should be, most probable first; and how many were not.

    Entries of probability zero (-inf: padding, or what a sampler ruled out) are left out.

    Raises:
        InputError: An id outside the vocabulary or twice in a list, a value that is no
            log-probability, or a list with more probability than one; names the token.
    """
    _check_values(lists, vocab_size, where)
    lists = lists.where(lists.logprobs > -np.inf)
    lists = replace(lists, logprobs=np.minimum(lists.logprobs, 0.0))
    owner = lists.owner
    rises = (np.diff(lists.logprobs) > 0) & (np.diff(owner) == 0)
    unsorted = len(np.unique(owner[1:][rises]))
    if unsorted:
        order = np.lexsort((lists.ids, -lists.logprobs, owner))
        lists = replace(lists, ids=lists.ids[order], logprobs=lists.logprobs[order])
    _check_distinct(lists, where)
    total = sums(lists)
    over = np.flatnonzero(total > 1 + SUM_TOLERANCE)
    if len(over):
        t = int(over[0])
        raise InputError(
            f"{where}, token {t:,}: its probabilities add up to {total[t]:.4f}, expected 1 or "
            f"less. {_HOW_FULL}."
        )
    return lists, unsorted


def check_largest(lists: Lists, vocab_size: int, where: str) -> None:
    """The others, none more probable than the last of a list, must be able to hold the rest.

    Raises:
        InputError: They are not; names the token.
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
    """(T,) the probability that each list holds."""
    return np.asarray(np.bincount(lists.owner, np.exp(lists.logprobs), len(lists)), np.float64)


def _check_values(lists: Lists, vocab_size: int, where: str) -> None:
    ids, values = lists.ids, lists.logprobs

    def refuse(bad: Bools, says: str, step: str) -> None:
        if bad.any():
            j = int(np.flatnonzero(bad)[0])
            found = says.format(id=ids[j], value=values[j])
            raise InputError(f"{where}, token {lists.owner[j]:,}: {found}. {step}.")

    refuse(
        (ids < 0) | (ids >= vocab_size),
        f"id {{id}} is outside the vocabulary, which has 0 to {vocab_size - 1:,}",
        "Give the width of the teacher's logits with --vocab-size, or the --tokenizer that the "
        "dump was made with",
    )
    refuse(np.isnan(values), "the log-probability of id {id} is not a number", "Drop the row")
    refuse(
        values > SUM_TOLERANCE,
        "{value:g} for id {id} is above 0, so it is no log-probability",
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
    """(lists that add up to one though they should not, lists that would show it).

    The next token after the last of a list is about as probable as that one; where the last has
    1e-4 or more, what the list leaves over must show. Truly peaked ones do so too, now and then.
    """
    least, left_over = _least(lists), np.abs(1 - sums(lists))
    tells = (lists.counts > 0) & (lists.counts < vocab_size) & (least >= _TELLS)
    suspect = tells & (left_over <= np.minimum(least / 10, SUM_TOLERANCE))
    return int(suspect.sum()), int(tells.sum())


def tails(lists: Lists, vocab_size: int) -> F64:
    """(T,) log of the probability outside each list.

    1 - sum is known to about 1e-6; a list of all the vocabulary leaves nothing. What V - k tokens
    hold that are each no more probable than the last of the list bounds it from above.
    """
    has = lists.counts > 0
    most = np.where(has, (vocab_size - lists.counts) * _least(lists), 1.0)
    left_over = np.minimum(np.maximum(1 - sums(lists), _ROUNDING), most)
    with np.errstate(divide="ignore"):  # log 0 = -inf: nothing is left
        return np.where(has, np.log(left_over), 0.0)


def _least(lists: Lists) -> F64:
    """(T,) probability of the last entry of each list; 0 where there is none."""
    has = lists.counts > 0
    least = np.zeros(len(lists))
    least[has] = np.exp(lists.logprobs[(lists.starts + lists.counts - 1)[has]])
    return least


def renormalised(lists: Lists) -> Lists:
    """Every list made to add up to one exactly."""
    with np.errstate(divide="ignore"):
        shift = np.log(sums(lists))
    return replace(lists, logprobs=lists.logprobs - shift[lists.owner])


def at_most_one(lists: Lists) -> Lists:
    """Lists that rounding has brought above one, brought back to it."""
    shift = np.log(np.maximum(sums(lists), 1.0))
    return replace(lists, logprobs=lists.logprobs - shift[lists.owner])


def entropies(lists: Lists) -> F64:
    """(T,) of lists that hold all of the vocabulary."""
    terms = -np.exp(lists.logprobs) * lists.logprobs
    return np.asarray(np.bincount(lists.owner, terms, len(lists)), np.float64)


def without_extras(lists: Lists, tokens: I64, ranks: F64, vocab_size: int) -> Lists:
    """Lists of the most probable tokens alone.

    Servers add the token itself to the k that were asked for, however improbable it is. It goes
    where its rank says that tokens are left out before it; where it is the last, and the others,
    were they less probable still, could not be the rest; and then where it is the last of a list
    that is longer than the shortest of the row.

    Args:
        lists: Sorted.
        tokens: (T,) the tokens themselves.
        ranks: (T,) their places in the whole vocabulary from 1, NaN where that is not said.
        vocab_size: Tokens of the vocabulary.
    """
    beyond = ranks > lists.counts  # of an unknown rank: no
    stranger = _own_is_last(lists, tokens) & ~_can_hold_rest(lists, vocab_size)
    lists = _without_own(lists, tokens, beyond, stranger)
    shortest = int(min(lists.counts[lists.counts > 0], default=0))
    longer = lists.counts > shortest
    return _without_own(lists, tokens, _own_is_last(lists, tokens) & longer)


def _without_own(lists: Lists, tokens: I64, *where: Bools) -> Lists:
    """Without the token itself in lists for which any of the conditions holds."""
    is_own = lists.ids == np.repeat(tokens, lists.counts)
    return lists.where(~(is_own & np.repeat(np.logical_or.reduce(where), lists.counts)))


def _own_is_last(lists: Lists, tokens: I64) -> Bools:
    """(T,) whether the token itself is the least probable of its list."""
    has = lists.counts > 0
    found = np.zeros(len(lists), np.bool_)
    found[has] = lists.ids[(lists.starts + lists.counts - 1)[has]] == tokens[has]
    return found


def _can_hold_rest(lists: Lists, vocab_size: int) -> Bools:
    """(T,) whether tokens no more probable than the last of a list can be what it leaves over."""
    others = vocab_size - lists.counts
    found: Bools = 1 - sums(lists) <= others * _least(lists) + SUM_TOLERANCE
    return found


def padded(lists: Lists) -> tuple[F32, I64]:
    """(n, K) log-probabilities and ids; slots beyond a count are -inf and 0."""
    mask = np.arange(int(lists.counts.max(initial=0))) < lists.counts[:, None]
    logprobs = np.full(mask.shape, -np.inf, np.float32)
    ids = np.zeros(mask.shape, np.int64)
    logprobs[mask], ids[mask] = lists.logprobs, lists.ids
    return logprobs, ids


def refuse_lengths(where: str, what: str, found: int, tokens: int) -> NoReturn:
    """Lists that cannot be told which tokens they are of."""
    raise InputError(
        f"{where}: {found:,} {what} for {tokens:,} tokens. Give one list a token (an empty one or "
        "null where there is none), or drop the row."
    )


def int64s(values: Any) -> I64:
    """An array of whole numbers."""
    return np.asarray(values, np.int64)
