"""The description of a loss, so that no code outside its file needs to know its name.

A loss is a function of aligned rows with a declaration above it (:mod:`distill.losses.declared`):
what it needs of a store, how it pairs the two tokenisations, how its arrays are made of the
teacher's records (on the CPU, in DataLoader workers), and what it asks of the student's head. Ours
are the `LOSS` of a file of `distill/losses/`, and `--loss` has the file's name; one of your own is
`--loss my_module:my_loss`.

    class        seen by                          holds
    Aligned      `arrays`                         one sequence's records, paired with its labels
    Arrays       `ask` and `values`, as tensors   what `arrays` returned, of a whole batch
    Ask          the student's head               what the loss must know of the student
    Student      `values`                         the answer, on the loss's own pairs

How a batch lays out the arrays is in their names, so a loss may add any:

    index                  (P,)     the label of each pair, ascending
    X_count and X_…        (P,), (M,)   lists of different lengths, flat; on the device X_… are
                                    rectangles (P, K), padded with -1 (`…_ids`), -inf or 0
    whole_…                (m, …)   of whole sequences, for the loss's own weights: never cut, and
                                    joined as they are; `whole_sequence` (m,) counts sequences
    X_index, X_pair, X_…   (L, …)   further labels that belong to a pair, ascending: the label, its
                                    pair, and anything else with a row for each of them
    all others             (P, …)   a row for each pair

`index` and every X_index together are the labels that the loss covers. At all other labels the hard
label stands in (:mod:`distill.training.loss_terms`), so a loss lists each label that its value is
of.

Shape legend: N = labels, P = pairs of a loss, K = entries or ids of a pair, M = of all pairs, L =
labels that belong to pairs, k = columns of a sequence.
"""

import importlib
import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Self

import torch
from torch import Tensor, nn

from distill.head.query import Found, HeadAnswer, widened
from distill.losses import keep
from distill.losses.aligned import Aligned, Arrays
from logitstore.errors import InputError

#: Every option of every loss, by name.
Options = Mapping[str, Any]
#: What `arrays` returned, on the device.
Teacher = Mapping[str, Tensor]


#: Which records and labels are a pair.
Kind = Literal["starts", "strict", "groups", "strings", "positions", "sequence", "labels"]


class Pairing(NamedTuple):
    """A rule for which of the teacher's records a label is compared with.

    Attributes:
        kind: `labels`: each label with all of the teacher's records of its sequence. `starts`:
            where both models have read the same bytes so far. `strict`: of these, those
            that also end together. `groups`: smallest runs of tokens that start and end together.
            `strings`: by warping both sides over what their tokens write, every label with one.
            `positions`: the n-th supervised token with the n-th. `sequence`: likewise, but one
            value a sequence, of which a batch is then never cut.
        map: The kind of map from the teacher's tokens to the student's, one of
            :mod:`distill.alignment.make_map`; within one tokenizer each token is itself. None: no
            token is compared with another.
        has_between: Whether a label that begins inside one of the teacher's tokens is compared
            with what can follow the bytes of that token which are there already.
        has_labels: Whether what the text shows of both tokenisations is asked: the mass of a token
            that came is sent to the label that it became, and none to what the student would have
            cut elsewhere.
        has_known_choice: Whether a pair counts only where the teacher's most probable token is one
            that the map sends to the student. (Exact token alignment, arXiv:2504.11426.)
    """

    kind: Kind
    map: str | None = None
    has_between: bool = False
    has_labels: bool = False
    has_known_choice: bool = False

    @property
    def compares_tokens(self) -> bool:
        """Tell whether each label is compared with what the teacher's tokens are sent to."""
        return self.map is not None and self.kind in ("starts", "strict")


class Option(NamedTuple):
    """A flag of `distill train` that a loss adds.

    Attributes:
        name: The flag's name; no two losses may use one name for different things.
        default: The default value, whose type is the flag's.
        help: The text for `distill train --help`.
        choices: The possible values of a flag that is a word.
        expected: What a value must be, in words; empty if any value is valid.
        is_valid: Tells whether a value is valid.
    """

    name: str
    default: Any
    help: str
    choices: tuple[str, ...] = ()
    expected: str = ""
    is_valid: Callable[[Any], bool] = lambda _: True


class Ask(NamedTuple):
    """A request for what a loss needs of the student besides log-probabilities of the labels.

    Attributes:
        top_k: Number of the largest log-probabilities at each pair.
        ids_PK: Student tokens to look up at each pair, distinct in a row; -1 is padding. None: none
        temperature: Divides the logits before the softmax of the look-up.
        has_rest: Whether the mass outside the ids is wanted too.
        columns: Number of columns of each sequence, at one scale of logits; 0 for none.
        scaled_top_k: Number of the largest log-probabilities at each pair, at one scale of logits.
        has_logits: Whether all logits are wanted, of a chunk of the batch at a time.
        has_top_of_first_event: Whether `top_k` chooses from the tokens of event 0 alone, where the
            ids are events.
    """

    top_k: int = 0
    ids_PK: Tensor | None = None
    temperature: float = 1.0
    has_rest: bool = True
    columns: int = 0
    scaled_top_k: int = 0
    has_logits: bool = False
    has_top_of_first_event: bool = False


class NotAskedError(Exception):
    """An error for what a loss takes of the student and has not declared that it wants."""

    def __init__(self, taken: str, declare: str) -> None:
        super().__init__(
            f"student.{taken} is not there, since it was not asked for. Add {declare} to the "
            "@distill.loss(…) above the function"
        )


@dataclass(frozen=True)
class Student:
    """The student's answer to an :class:`Ask`, for the pairs of the loss that asked.

    Attributes:
        name: Name of the loss.
        index_P: (P,) the label of each pair.
        answer: The answer to all losses of the batch together.
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

    def top_at_one_scale(self, k: int) -> Tensor:
        """Take (P, k) the largest log-probabilities of standardised logits, of those asked for."""
        top_NK = self.answer.scaled_top_logprobs_NK
        if top_NK is None:  # not asked: no record of the batch has an entry
            return self.answer.label_logprob_N.new_zeros(len(self.index_P), 0)
        return top_NK[self.index_P, :k]

    def at_ids(self) -> Tensor:
        """Take (P, K) log-probabilities at the ids asked for; -inf in padding."""
        return self._found("at_ids()").logprobs_NK[self.index_P]

    def rest(self) -> Tensor:
        """Take (P,) the log of the mass outside the ids asked for."""
        rest_N = self._found("rest()").rest_logmass_N
        if rest_N is None:
            raise NotAskedError("rest()", "ask=… with has_rest=True")
        return rest_N[self.index_P]

    def _found(self, taken: str) -> Found:
        if self.name not in self.answer.found:
            raise NotAskedError(taken, 'needs={"entries", "ids"}, or ask=… with ids_PK,')
        return self.answer.found[self.name]

    def cell(self, teacher: Teacher) -> Tensor:
        """Take (P,) log of the mass of what each label was compared as a part of.

        That is its event, or the rest; of a token that is divided, the mean over its shares.

        Args:
            teacher: With `cell` and perhaps `cell_share`, as :class:`Aligned` makes them.
        """
        logmass_PK = torch.cat([self.at_ids(), self.rest()[:, None]], 1)
        place_Pr = teacher["cell"]
        place_Pr = place_Pr.where(place_Pr >= 0, logmass_PK.shape[1] - 1)
        cell_Pr = logmass_PK.gather(1, place_Pr)
        if "cell_share" not in teacher:
            return cell_Pr.squeeze(1)
        share_Pr = teacher["cell_share"]
        return (share_Pr * cell_Pr.masked_fill(share_Pr == 0, 0)).sum(1)

    def made(self, name: str) -> Tensor:
        """Take (P, …) what the loss's own weights made at the label of each pair."""
        if f"{self.name}.{name}" not in self.answer.made:
            raise NotAskedError(f"made({name!r})", f"a module=… whose answer has {name!r}")
        return self.answer.made[f"{self.name}.{name}"][self.index_P]

    def has_made(self, name: str) -> bool:
        """Tell whether the loss's own weights made this in the run."""
        return f"{self.name}.{name}" in self.answer.made

    def logits_of(self, rows_PD: Tensor) -> Tensor:
        """Compute (P, V) the logits that the student's head makes of other rows, float32 or wider.

        They have the gradient of the rows, and none of the head's weights.
        """
        if self.answer.logits_of is None:
            raise NotAskedError("logits_of(…)", "module=…, weights of its own,")
        return widened(self.answer.logits_of(rows_PD))

    def label(self) -> Tensor:
        """Take (P,) the log-probability of each pair's label: of a group or sequence, of one."""
        return self.answer.label_logprob_N[self.index_P]

    def logits(self) -> Tensor:
        """Take (P, V) the logits, float32 or wider; of a student whose head is padded, all."""
        if self.answer.logits_NV is None:
            raise NotAskedError("logits()", "logits=True")
        return self.answer.logits_NV[self.index_P]

    def added_up(self, index_L: Tensor, pair_L: Tensor) -> Tensor:
        """Sum up (P,) the log-probabilities of the labels `index_L`, each for its pair."""
        label_N = self.answer.label_logprob_N
        return label_N.new_zeros(len(self.index_P)).index_add(0, pair_L, label_N[index_L])

    def columns(self, index_L: Tensor) -> Tensor:
        """Take (L, k) log-probabilities of those labels at the columns of their sequence."""
        if self.answer.column_logprobs_Nk is None:
            raise NotAskedError("columns(…)", "columns=N")
        return self.answer.column_logprobs_Nk[index_L]


class Widths(NamedTuple):
    """The widths between which the weights of a loss stand.

    Attributes:
        teacher: Numbers of the teacher's hidden states in a store.
        teacher_embedding: Of the rows of its input embedding; None: the store has none.
        student: Of the hidden states that the student's head reads.
        student_embedding: Of the rows of the student's input embedding.
        lm_head: Reads the teacher's output embedding, a `logitstore.format.lm_head.LmHead`; None:
            the store has none.
    """

    teacher: int
    teacher_embedding: int | None
    student: int
    student_embedding: int
    lm_head: Callable[[], Any] | None = None


class Inside(NamedTuple):
    """What the weights of a loss are given of the student, within its forward, at each label.

    Attributes:
        hidden_ND: (N, D) what its head reads, with its gradient.
        read_N: (N,) the token before each label.
        label_N: (N,) the labels.
        sequence_N: (N,) the sequence of each, ascending.
        embed: Looks tokens up in its input embedding, without gradient.
        embed_trained: Likewise, with the gradient that trains the embedding.
    """

    hidden_ND: Tensor
    read_N: Tensor
    label_N: Tensor
    sequence_N: Tensor
    embed: Callable[[Tensor], Tensor]
    embed_trained: Callable[[Tensor], Tensor]


#: The function that a declaration stands above.
Values = Callable[[Teacher, Student, Options], Tensor | tuple[Tensor, Tensor]]


class Paper(NamedTuple):
    """A paper to cite for a loss."""

    arxiv: str
    title: str


@dataclass(frozen=True)
class Loss:
    """A loss as the rest of the program knows it.

    `needs` and `pairing` may also be functions of the run's options, except for a pairing by
    `sequence`, which is the same in every run.

    Attributes:
        needs: What a store must hold, in the words of :mod:`distill.losses.requirements`.
        pairing: Which records are compared with which labels.
        arrays: Makes a sequence's arrays, `index` among them, also of a sequence without pairs.
        ask: Makes the request to the student for a batch.
        values: Computes (P,) the loss of each pair; a loss that certifies a bound also returns (P,)
            the most by which the loss against the live teacher can differ from it. The value of a
            group is of all its labels together; that of a whole sequence is a mean over them.
        cell: Computes (P,) log of the student's mass of the event that each pair's label was
            compared as a part of, if the loss compares coarser things than tokens; it may also
            return None for a run in which there is none.
        weight: The weight beside cross-entropy, if `--loss` gives none.
        options: Flags that it reads.
        has_bound: Whether `values` returns bounds.
        module: Makes its own weights, which are trained with the student and saved beside it, never
            inside; None: it has none. The module is called with :class:`Inside`, the loss's arrays
            and the options, and returns (N, …) tensors by name, for `student.made`.
        second_text: Whether its weights compare two texts of a row, where there are two.
        cited: The paper to cite.
        order: Its place in lists. If a store cannot serve one loss, the message names the first
            of the common ones that it can serve.
        home: `module:function`, where it is declared; empty where it is not.
    """

    needs: frozenset[str] | Callable[[Options], frozenset[str]]
    pairing: Pairing | Callable[[Options], Pairing]
    arrays: Callable[[Aligned, Options], Arrays]
    ask: Callable[[Teacher, Options], Ask]
    values: Values
    cell: Callable[[Teacher, Student, Options], Tensor | None] = lambda *_: None
    weight: float = 1.0
    options: tuple[Option, ...] = ()
    has_bound: bool = False
    module: Callable[[Widths, Options], nn.Module] | None = None
    second_text: bool = False
    cited: Paper | None = None
    order: int = 100
    home: str = ""

    def __str__(self) -> str:
        """Return the address by which `--loss` names it."""
        return self.home

    def __deepcopy__(self, _memo: dict[int, Any]) -> Self:
        return self

    def __reduce__(self) -> tuple[Callable[[str], "Loss"], tuple[str]]:
        """Pickle its address alone, as functions are: for DataLoader workers that begin anew."""
        if "<" in self.home or not self.home:
            raise InputError(
                f"{self.home or 'a loss without a declaration'}: a process that begins anew could "
                "not find it, as it is not a name of a module. Declare it at the top of a module, "
                "or use workers that fork, or --dataloader_num_workers 0.",
                kind="own-loss",
            )
        return _at, (self.home,)

    @property
    def name(self) -> str:
        """The name of its function, which one of the user's own has in logs."""
        return self.home.rpartition(":")[2].rpartition(".")[2]

    @property
    def is_ours(self) -> bool:
        """Tell whether it is a file of this folder."""
        return self.home.startswith(f"{__package__}.")

    @property
    def is_of_sequences(self) -> bool:
        """Tell whether it has one value per sequence, which a cut of a batch never divides."""
        return isinstance(self.pairing, Pairing) and self.pairing.kind == "sequence"

    def needs_of(self, options: Options) -> frozenset[str]:
        """Return what a store must hold for it in a run with these options."""
        return self.needs(options) if callable(self.needs) else self.needs

    def pairing_of(self, options: Options) -> Pairing:
        """Return how it pairs records with labels in a run with these options."""
        return self.pairing(options) if callable(self.pairing) else self.pairing


def _at(home: str) -> Loss:
    """Import a loss by its address, which this program wrote itself."""
    module, _, name = home.partition(":")
    found: Loss = operator.attrgetter(name)(importlib.import_module(module))
    if not found.is_ours:
        keep(found.name, found)  # in a process that begins anew
    return found
