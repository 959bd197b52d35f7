"""What a loss says of itself, so that nothing outside its file needs to know its name.

A loss is a function of aligned rows. Beside it, in the same file of `distill/losses/`, stands a
:class:`Loss` under the name `LOSS`: what it needs of a store, how it pairs the two tokenisations,
how its arrays are made of the teacher's records (on the CPU, in DataLoader workers), what it asks
of the student's head, and its values. The name of the file is the name of the loss for `--loss`.

    class        seen by                          holds
    Aligned      `arrays`                         one sequence's records, paired with its labels
    Arrays       `ask` and `values`, as tensors   what `arrays` returned, of a whole batch
    Ask          the student's head               what the loss must know of the student
    Student      `values`                         the answer, on the loss's own pairs

How a batch lays out the arrays is in their names, so a loss may add any:

    index                  (P,)     the label that each pair lies on, ascending
    X_count and X_…        (P,), (M,)   lists of different lengths, flat; on the device X_… are
                                    rectangles (P, K), padded with -1 (`…_ids`), -inf or 0
    X_index, X_pair, X_…   (L, …)   further labels that belong to a pair, ascending: which label,
                                    whose pair, and anything else with a line for each of them
    all others             (P, …)   a line a pair

Shape legend: N = labels, P = pairs of a loss, K = entries or ids of a pair, M = of all pairs, L =
labels that belong to pairs, k = columns of a sequence.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from torch import Tensor

from distill.head.query import HeadAnswer
from distill.losses.aligned import Aligned, Arrays

#: Every option of every loss, by name.
Options = Mapping[str, Any]
#: What `arrays` returned, on the device.
Teacher = Mapping[str, Tensor]
#: Figures of a pair of store and student, as :mod:`distill.data.coverage` counts them.
Facts = Mapping[str, Any]
#: A student that follows less of the text than this learns more from whole groups of tokens.
LOW_SHARE = 0.4


class Pairing(NamedTuple):
    """Which of the teacher's records a label is compared with.

    Attributes:
        kind: `starts`: where both models have read the same bytes so far. `strict`: of these, those
            that also end together. `groups`: smallest runs of tokens that start and end together.
            `positions`: the n-th supervised token with the n-th. `sequence`: likewise, but one
            value a sequence, of which a batch is then never cut.
        vocabulary: How the teacher's ids become the student's. `prefix`: each becomes the longest
            student token that begins its bytes. `exact`: only the student token of equal bytes.
            Within one tokenizer, both are itself. None: no id is compared with another.
    """

    kind: Literal["starts", "strict", "groups", "positions", "sequence"]
    vocabulary: Literal["prefix", "exact"] | None = None


class Option(NamedTuple):
    """A flag of `distill train` that a loss brings along.

    Attributes:
        name: Of the flag; no two losses may use one name for different things.
        default: Its type is the flag's.
        help: For `distill train --help`.
        choices: Of a flag that is a word.
        expected: What a value must be, in words; empty if any will do.
        is_valid: Whether a value is.
    """

    name: str
    default: Any
    help: str
    choices: tuple[str, ...] = ()
    expected: str = ""
    is_valid: Callable[[Any], bool] = lambda _: True


class Ask(NamedTuple):
    """What a loss must know of the student, besides its log-probabilities of the labels.

    Attributes:
        top_k: How many of its largest log-probabilities at each pair.
        ids_PK: Student tokens to look up at each pair, distinct in a row; -1 is padding. None: none
        temperature: Of the look-up's softmax.
        has_rest: Whether the mass outside the ids is wanted too.
        columns: How many columns of each sequence, at one scale of logits; 0 for none.
    """

    top_k: int = 0
    ids_PK: Tensor | None = None
    temperature: float = 1.0
    has_rest: bool = True
    columns: int = 0


@dataclass(frozen=True)
class Student:
    """The student's answer to an :class:`Ask`, on the pairs of the loss that asked.

    Attributes:
        name: Of the loss.
        index_P: (P,) the label that each pair lies on.
        answer: To all that the losses of the batch asked.
    """

    name: str
    index_P: Tensor
    answer: HeadAnswer

    def top(self, k: int) -> Tensor:
        """Take (P, k) the largest log-probabilities over its vocabulary, of those asked for."""
        top_NK = self.answer.top_logprobs_NK
        if top_NK is None:  # not asked: no record of the batch has an entry
            return self.answer.label_logprob_N.new_zeros(len(self.index_P), 0)
        return top_NK[self.index_P, :k]

    def at_ids(self) -> Tensor:
        """Take (P, K) log-probabilities at the ids asked for; -inf in padding."""
        return self.answer.found[self.name].logprobs_NK[self.index_P]

    def rest(self) -> Tensor:
        """Take (P,) the log of the mass outside the ids asked for."""
        rest_N = self.answer.found[self.name].rest_logmass_N
        assert rest_N is not None, "has_rest was not asked for"
        return rest_N[self.index_P]

    def added_up(self, index_L: Tensor, pair_L: Tensor) -> Tensor:
        """Sum up (P,) the log-probabilities of the labels `index_L`, each for its pair."""
        label_N = self.answer.label_logprob_N
        return label_N.new_zeros(len(self.index_P)).index_add(0, pair_L, label_N[index_L])

    def columns(self, index_L: Tensor) -> Tensor:
        """Take (L, k) log-probabilities of those labels at the columns of their sequence."""
        assert self.answer.column_logprobs_Nk is not None, "columns were not asked for"
        return self.answer.column_logprobs_Nk[index_L]


class Advice(NamedTuple):
    """Why a pair of store and student should be trained with a loss.

    Attributes:
        worth: How much of the text the loss follows, 0 to 1; the loss with most is recommended.
        why: One clause.
    """

    worth: float
    why: str


class Paper(NamedTuple):
    """What to cite."""

    arxiv: str
    title: str


def _no_advice(_facts: Facts) -> Advice | None:
    return None


@dataclass(frozen=True)
class Loss:
    """All that the rest of the program knows of a loss.

    `needs` and `pairing` may also be functions of the run's options, but for a pairing by
    `sequence`, which holds of every run.

    Attributes:
        needs: What a store must hold, in the words of :mod:`distill.losses.requirements`.
        pairing: What is compared with what.
        arrays: A sequence's arrays, `index` among them; (of no pairs, too).
        ask: What to ask of the student about a batch.
        values: (P,) float loss of each pair; or of a loss that certifies a bound, also (P,) how far
            the live teacher's can be from it.
        weight: Beside cross-entropy, when `--loss` gives none.
        options: Flags that it reads.
        has_bound: Whether `values` returns bounds.
        cited: What to cite.
        advice: Of which pairs of store and student it is the loss to use; None: of none.
        order: Its place in lists. The first is the default, and where a store cannot serve one
            loss, the first that it can serve is named.
    """

    needs: frozenset[str] | Callable[[Options], frozenset[str]]
    pairing: Pairing | Callable[[Options], Pairing]
    arrays: Callable[[Aligned, Options], Arrays]
    ask: Callable[[Teacher, Options], Ask]
    values: Callable[[Teacher, Student, Options], Tensor | tuple[Tensor, Tensor]]
    weight: float = 1.0
    options: tuple[Option, ...] = ()
    has_bound: bool = False
    cited: Paper | None = None
    advice: Callable[[Facts], Advice | None] = _no_advice
    order: int = 100

    @property
    def is_of_sequences(self) -> bool:
        """Tell whether it has one value a sequence, of which a batch is never cut."""
        return isinstance(self.pairing, Pairing) and self.pairing.kind == "sequence"

    def needs_of(self, options: Options) -> frozenset[str]:
        """Say what a store must hold for it in a run with these options."""
        return self.needs(options) if callable(self.needs) else self.needs

    def pairing_of(self, options: Options) -> Pairing:
        """Say what it compares with what in a run with these options."""
        return self.pairing(options) if callable(self.pairing) else self.pairing


def mapped_share(facts: Facts) -> Advice:
    """Measure how much of the text a loss follows that sends entries to student tokens."""
    everything = facts["kinds"]["all"]
    shared, mapped = everything["shared_starts"] or 0.0, everything["mapped_mass"] or 0.0
    return Advice(
        shared * mapped,
        f"{shared:.0%} of labels share a start with the teacher, and a student token begins "
        f"{mapped:.0%} of its mass there",
    )
