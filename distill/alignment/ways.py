"""What can follow a student's boundary: a token of the teacher's that goes on, or that ended there.

The teacher has written its tokens up to byte s, the student its own up to byte b, and c are the
bytes between them. The teacher's next token reaches from s to b at least, and so it is one of two:

    it goes on    some v that begins with c and is longer. What follows is the rest of v
    it ended      c itself. What follows is the teacher's next token u, and another record says
                  which: the one that stands at b, or what the teacher was asked at b

With M(… → x) for what a student writes of such bytes, the answer is a mixture of both,

    P(x) = [ sum_v q_s(v) M(v behind c → x) + q_s(c) sum_u q_b(u) M(u → x) ] / Z
    Z    =   sum_v q_s(v) + q_s(c)

It is the answer at *every* boundary, also where the teacher's token did end: neither the student
nor the text before b knows that. A record at b alone says what follows *if* a token ended there. As
the answer at every label it would count that case twice, once where it came and once where it did
not, and forget what follows if the token goes on.

**What is taken as given.** The average of P(x) over the tokenisations that the teacher may have
written the same bytes in is exactly its P(x | bytes), whatever is taken as given beside these
bytes, if it is known before b and is treated alike whether the token ended or went on. That is:
the tokens before s; that no token begins between s and b; and two more things, so that no mass has
to be guessed:

    whether the token at s is an entry of its record. If it is, all sums run over entries alone and
    nothing is missing; if not, nothing is known, and the label has no pair
    whether it ended at b, where the teacher was not asked what would follow c (c is no token that
    its tokenizer writes for these bytes; the token began in context, or with an added space), or
    where no token of the student's begins at s, so that it is not known which of the teacher's
    tokens the student would have cut at b

Without the first, at most t / (t + Z) of the distribution is missing, t the tail of the record at
s. Tokens that the student would have cut elsewhere are left out of both parts, and of Z.

Shape legend: P = pairs of a record and a label, n = records of the sequence, N = labels.
"""

from dataclasses import dataclass, fields
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from distill.alignment.align import Spans
from distill.alignment.beginnings import Beginnings
from distill.alignment.event_map import PLAIN, EventMap
from distill.alignment.map_entries import F64
from distill.alignment.realised import goes_on, labels_between
from distill.alignment.runs import Ints, lists_of
from distill.alignment.written import Writer
from logitstore.records import TokenRecords
from logitstore.text.tokenizer import ByteTokenizer

Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Ways:
    """The two ways in which the text can go on at some labels.

    Attributes:
        going: (P,) int64, the record whose token may go on beyond the label's start; -1: none may.
        written: (P,) int64, the bytes of that token that are there already; 0 where none may.
        ended: (P,) int64, the record of what follows a token that ended there; -1: none may have.
        log_ended: (P,) float64, log of the probability that a token ended there, beside that of
            those that go on; 0 where none may.
    """

    going: Ints
    written: Ints
    ended: Ints
    log_ended: F64

    def chosen(self, which: Ints | Bools) -> "Ways":
        """Take some of the labels."""
        return Ways(*(getattr(self, column.name)[which] for column in fields(self)))

    @classmethod
    def joined(cls, one: "Ways", other: "Ways") -> "Ways":
        """Lay the labels of two behind one another."""
        columns = [column.name for column in fields(cls)]
        return cls(*(np.concatenate([getattr(w, name) for w in (one, other)]) for name in columns))


class Endings:
    """Tells which of the teacher's tokens can end, or go on, where the student ends a token.

    Args:
        teacher: The teacher's tokenizer.
        order: Its vocabulary.
    """

    def __init__(self, teacher: ByteTokenizer, order: Beginnings) -> None:
        self._teacher, self._order, self._writer = teacher, order, Writer(teacher)
        self._tokens: dict[bytes, int] = {}
        self._goes_on: dict[int, bool] = {}

    def __reduce__(self) -> tuple[type["Endings"], tuple[ByteTokenizer, Beginnings]]:
        """Send a worker what it asks; what was found stays here."""
        return Endings, (self._teacher, self._order)

    def token_of(self, ids: Ints, lengths: Ints) -> Ints:
        """Find (n,) the token that the teacher writes for the first bytes of a token, and only it.

        Args:
            ids: (n,) tokens.
            lengths: (n,) how many of their bytes are meant.

        Returns:
            -1 where it writes several tokens, or where the bytes end inside a character: the
            teacher is asked about those in other tokens than it may write in a text.
        """
        written = self._order.written
        begun = [written[i][:size] for i, size in zip(ids.tolist(), lengths.tolist(), strict=True)]
        unknown = [each for each in dict.fromkeys(begun) if each not in self._tokens]
        for each, tokens in zip(unknown, self._writer.all(unknown), strict=True):
            is_one = len(tokens) == 1 and written[tokens[0]] == each and _is_text(each)
            self._tokens[each] = tokens[0] if is_one else -1
        return np.fromiter(map(self._tokens.__getitem__, begun), np.int64, len(begun))

    def can_go_on(self, ids: Ints, made: EventMap) -> Bools:
        """Tell (n,) whether some longer token begins with a token's bytes, and fits the student.

        Args:
            ids: (n,) tokens.
            made: Any map of these tokenizers: where the student never ends a token is in all.
        """
        for token in set(ids.tolist()) - self._goes_on.keys():
            size = np.array([len(self._order.written[token])])
            _, first, stop = self._order.ranges(np.array([token]), size)
            longer = self._order.ids[int(first[0]) : int(stop[0])]
            behind = made.source_behind(longer, np.broadcast_to(size, longer.shape))
            self._goes_on[token] = bool((~made.is_never(behind)).any())
        return np.fromiter(map(self._goes_on.__getitem__, ids.tolist()), np.bool_, len(ids))


def _is_text(written: bytes) -> bool:
    try:
        written.decode()
    except UnicodeDecodeError:
        return False
    return True


class Known(NamedTuple):
    """What is known beside the pairs of a sequence.

    Attributes:
        teacher: Places of the records.
        student: Places of the labels.
        records: The records, and behind them the answers.
        answer: (N,) the number of each label's answer among `records`; -1 for none.
        made: The map.
        order: The teacher's vocabulary.
        endings: Of the same.
    """

    teacher: Spans
    student: Spans
    records: TokenRecords
    answer: Ints
    made: EventMap
    order: Beginnings
    endings: Endings


def ways_at_starts(known: Known, pairs: Ints, space: Ints, fresh: Ints) -> tuple[Ways, Bools]:
    """Find what can follow at labels where one of the teacher's tokens begins too.

    Args:
        known: The sequence.
        pairs: (P, 2) record and label of each.
        space: (P,) how the teacher's tokens are read there.
        fresh: Bytes where stretches of supervised text begin: no token goes on into them.

    Returns:
        The ways, and (P,) at which of them something is known.
    """
    teacher, student = known.teacher, known.student
    t, s = pairs.T
    before = np.maximum(t - 1, 0)
    own = known.records.token_ids[before].astype(np.int64)
    is_first = np.isin(student.starts[s], fresh) & (student.lengths[s] > 0)
    crosses = (t > 0) & goes_on(teacher)[t] & (space == PLAIN) & ~is_first
    crosses &= _is_plain(teacher)[before] & _is_begun(known, before)
    at = np.flatnonzero(crosses)
    crosses[at] = known.endings.token_of(own[at], teacher.lengths[before[at]]) == own[at]
    at = np.flatnonzero(crosses)
    crosses[at] = known.endings.can_go_on(own[at], known.made)
    log_ended = np.where(crosses, _logprob_of(known.records, before, own), 0.0)
    ways = Ways(
        going=np.where(crosses, before, -1),
        written=np.where(crosses, teacher.lengths[before], 0),
        ended=t,
        log_ended=log_ended,
    )
    return ways, log_ended > -np.inf


def ways_between(known: Known) -> tuple[Ints, Ways, Bools]:
    """Find what can follow at labels that begin inside one of the teacher's tokens.

    Returns:
        (P, 2) record and label of each, the ways, and (P,) at which of them something is known.
    """
    teacher, records = known.teacher, known.records
    found = labels_between(teacher, known.student, records, known.made, known.order)
    record, label = found.pairs.T
    ended = np.full(len(record), -1, np.int64)
    at = np.flatnonzero(_is_plain(teacher)[record]) if len(record) else np.zeros(0, np.int64)
    own = records.token_ids[record[at]].astype(np.int64)
    ended[at] = known.endings.token_of(own, found.written[at])
    log_ended = np.where(ended >= 0, _logprob_of(records, record, ended), -np.inf)
    may_end = log_ended > -np.inf
    ways = Ways(
        going=record,
        written=found.written,
        ended=np.where(may_end, known.answer[label], -1),
        log_ended=np.where(may_end, log_ended, 0.0),
    )
    is_known = (found.mass > 0) & (~may_end | (ways.ended >= 0)) & _is_begun(known, record)
    return found.pairs, ways, is_known


def _is_begun(known: Known, record: Ints) -> Bools:
    """Tell (P,) whether a token of the student's begins where a record's token does."""
    student = known.student
    begun = student.starts[student.lengths > 0]
    return np.asarray(np.isin(known.teacher.starts[record], begun), np.bool_)


def _is_plain(teacher: Spans) -> Bools:
    """Tell (n,) which tokens are just the text that they cover."""
    is_plain: Bools = teacher.is_verbatim & ~teacher.has_added_space & ~teacher.is_eos
    is_plain &= (teacher.heads == 0) & (teacher.lengths > 0)
    return is_plain


def _logprob_of(records: TokenRecords, record: Ints, ids: Ints) -> F64:
    """Look up (P,) the log-probability of a token among a record's entries; -inf if it is none."""
    assert records.entry_ids is not None
    count, (entry_ids, logprobs) = lists_of(
        records.entry_count, record, records.entry_ids, records.entry_logprobs
    )
    found = np.full(len(record), -np.inf)
    is_it = entry_ids == np.repeat(ids, count)
    found[np.repeat(np.arange(len(record)), count)[is_it]] = logprobs[is_it]
    return found


def with_answers(records: TokenRecords, answers: TokenRecords) -> TokenRecords:
    """Lay the answers at a student's boundaries behind the records of the same sequence.

    Only what entries are compared by is kept: no samples, and no other temperatures.
    """
    assert records.entry_ids is not None
    assert answers.entry_ids is not None
    kept = [column.name for column in fields(TokenRecords)][:9]
    both = {name: (getattr(records, name), getattr(answers, name)) for name in kept}
    joined: dict[str, Any] = {name: np.concatenate(parts) for name, parts in both.items()}
    return TokenRecords(**joined)


def answers_of(student: Spans, starts: Ints, lengths: Ints) -> Ints:
    """Find (N,) the answer at each label with bytes; -1 for none.

    Args:
        student: Places of the labels.
        starts: Bytes of supervised text before each answer.
        lengths: Bytes of the label that each was asked at; 0 at an end.
    """
    wide = np.flatnonzero(lengths > 0)
    found = np.full(len(student.starts), -1, np.int64)
    if not len(wide):
        return found
    at = np.searchsorted(starts[wide], student.starts).clip(max=len(wide) - 1)
    is_there = (starts[wide][at] == student.starts) & (student.lengths > 0)
    return np.where(is_there, wide[at], found)
