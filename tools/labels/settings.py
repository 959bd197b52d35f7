"""What is compared with what: students, contenders, and the jobs that are made of them.

To add a contender, add a line to `CONTENDERS`. One that this version of `distill` does not have, or
that the store has no records for, is left out of a run with a note.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any, NamedTuple

from tools.demo.settings import Shape

#: The student with the teacher's own tokenizer: what it gains is the control.
CONTROL = "same"
#: The students, by their tokenizers.
STUDENTS = {
    "unigram": "Unigram of 6,000",
    CONTROL: "the teacher's own tokenizer, trimmed",
    "llama3": "Llama 3's tokenizer, trimmed",
    "bpe": "byte-level BPE of 6,000",
}


class Rate(NamedTuple):
    """How fast a student is trained: the peak of its learning rate, and its steps."""

    learning_rate: float
    steps: int


@dataclass(frozen=True)
class Scale:
    """The sizes of the texts, the models and the training runs.

    Attributes:
        is_real: Whether teacher and tokenizers are real ones; else tiny made-up ones.
        student: Width and layers; its vocabulary is for the tokenizers that are trained.
        corpus_bytes: Of the texts, as `load_corpus` takes them.
        before: How students are trained on another text before.
        before_rows: Rows of a batch there.
        rates: How they are trained from the store.
        rows: Rows of a batch.
        top_k: Entries of a record.
        seeds: Seeds of new weights and of the order of rows.
    """

    is_real: bool
    student: Shape
    corpus_bytes: Mapping[str, int]
    before: Rate
    before_rows: int
    rates: Mapping[str, Rate]
    rows: int
    top_k: int
    seeds: tuple[int, ...]


FULL = Scale(
    is_real=True,
    student=Shape(width=128, layers=4, vocabulary=6_000),
    corpus_bytes={"teacher_bytes": 2_400_000, "student_bytes": 430_000, "heldout_bytes": 120_000},
    before=Rate(3e-3, 1_000),  # 32 rows a step of 5,077: 6.3 epochs
    before_rows=32,
    # 16 rows a step of 944: 2.5 epochs, and 5
    rates={"gentle": Rate(2e-4, 150), "normal": Rate(1e-3, 300)},
    rows=16,
    top_k=64,
    seeds=(0, 1, 2),
)
QUICK = Scale(
    is_real=False,
    student=Shape(width=32, layers=1, vocabulary=500),
    corpus_bytes={"teacher_bytes": 60_000, "student_bytes": 9_000, "heldout_bytes": 5_000},
    before=Rate(2e-3, 3),
    before_rows=4,
    rates={"gentle": Rate(2e-4, 2), "normal": Rate(1e-3, 3)},
    rows=4,
    top_k=8,
    seeds=(0, 1),
)


class Contender(NamedTuple):
    """A way to train a student from the store.

    Attributes:
        loss: The name of the loss; `ce` for none.
        options: Further settings of `distill train`.
        factor: What a job's weight is multiplied by: the weight of the loss's paper.
        weights: Its weights beside cross-entropy, the first of them for all students.
        store: The store beside the texts, or `RENUMBERED`.
        students: The students that it is for; None: all but the control.
        other_order: Whether its rows come in another order than those of all others.
        is_minor: Whether it comes after all others, with their further weights.
    """

    loss: str
    options: Mapping[str, Any] = {}
    factor: float = 1.0
    weights: tuple[str, ...] = ("1",)
    store: str = "store"
    students: tuple[str, ...] | None = None
    other_order: bool = False
    is_minor: bool = False


CE = "ce"
#: The store, with the ids of the control's tokenizer.
RENUMBERED = "renumbered"
BALANCE = "balance"
#: All weights: beside cross-entropy, or scaled to its size in every step (`--balance`).
WEIGHTS = ("1", "0.2", "0.5", BALANCE)
_EVERY = tuple(STUDENTS)


def _mapped(weights: tuple[str, ...] = ("1",), **options: Any) -> Contender:
    return Contender("mapped_kl", options, weights=weights)


#: What was measured of a contender before its target became another one; see the page.
_OPEN, _UNCUT = ", groups left open", ", what is cut elsewhere left in"


def _maps() -> Iterator[tuple[str, Contender]]:
    """List every map, with labels at shared starts alone and with those between them too."""
    ours, others = ("events", "counted", "canonical"), ("p_kl", "p_kl_weighted", "prefix", "mined")
    for name in (*ours, *others, "strict"):
        weights = WEIGHTS if name in ("counted", "events", "p_kl") else ("1",)
        yield f"map {name}", _mapped(weights, map=name)
    for name in (*ours, *others):
        yield f"map {name}, between them too", _mapped(map=name, between="on")
    for name in (*ours, *others, "strict"):
        bare = _mapped(map=name, uncovered="none")
        yield f"map {name}, as papers do", bare._replace(is_minor=True)
    # Were measured, and are no more.
    for name in (*ours, *others, "strict"):
        yield f"map {name}{_OPEN}", _mapped((), map=name)
        yield f"map {name}, between them too{_OPEN}", _mapped((), map=name)
    for name in ours:
        yield f"map {name}, between them by bytes alone", _mapped((), map=name)
        yield f"map {name}{_UNCUT}", _mapped((), map=name)


#: Ways to train, the most decisive first; the first is what all others are compared with.
CONTENDERS: dict[str, Contender] = {
    CE: Contender(CE, students=_EVERY),
    # Two that must make no difference: how far apart two students are for no reason.
    "ce, another order of rows": Contender(CE, students=_EVERY, other_order=True),
    "ce, counted twice": Contender(CE, {"ce_weight": 2.0}, students=_EVERY),
    "control": Contender("tail_kl", weights=WEIGHTS, store=RENUMBERED, students=(CONTROL,)),
    "exact stream": _mapped(WEIGHTS, boundaries=True),
    "exact stream, map counted": _mapped(boundaries=True, map="counted"),
    f"exact stream{_OPEN}": _mapped((), boundaries=True),
    f"exact stream, map events{_OPEN}": _mapped((), boundaries=True, map="events"),
    **dict(_maps()),
    "alm": Contender("alm", weights=WEIGHTS),
    "uld": Contender("uld", factor=1.5),
    "alm, as papers do": Contender("alm", {"uncovered": "none"}, is_minor=True),
    "uld, as papers do": Contender("uld", {"uncovered": "none"}, 1.5, is_minor=True),
}


class Setting(NamedTuple):
    """What the contenders of a comparison have in common."""

    student: str
    start: str  # "trained" or "new"
    rate: str


#: The most decisive first; the control's follows the first student's.
SETTINGS = [
    Setting(student, start, rate)
    for start, rate, students in (
        ("trained", "gentle", ("unigram", CONTROL)),
        ("trained", "normal", ("unigram", CONTROL)),
        ("trained", "gentle", ("llama3", "bpe")),
        ("trained", "normal", ("llama3", "bpe")),
        ("new", "normal", ("unigram", CONTROL, "llama3", "bpe")),
        ("new", "gentle", ("unigram", CONTROL, "llama3", "bpe")),
    )
    for student in students
]


@dataclass(frozen=True)
class Job:
    """One student to train and measure."""

    setting: Setting
    contender: str
    weight: str
    seed: int
    made: Contender = field(init=False, compare=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "made", CONTENDERS[self.contender])

    @property
    def name(self) -> str:
        return "/".join([*self.setting, self.contender, self.weight, str(self.seed)])

    @property
    def kind(self) -> str:
        return self.setting.rate

    @property
    def before(self) -> tuple[str, int] | None:
        return (self.setting.student, self.seed) if self.setting.start == "trained" else None


def jobs(scale: Scale, patterns: str = "*") -> list[list[Job]]:
    """List all jobs, the most decisive first; those that differ in their seed alone are together.

    Trained students come before new ones, and of either the first weights of major contenders.

    Args:
        scale: Its seeds.
        patterns: Shell patterns of names, with `;` between them: `unigram/trained/*;same/*`.
    """
    found = [
        [Job(setting, name, weight, seed) for seed in scale.seeds]
        for start in ("trained", "new")
        for further in (False, True)
        for setting in SETTINGS
        if setting.start == start
        for name, each in CONTENDERS.items()
        if setting.student in _students(each)
        for i, weight in enumerate(each.weights)
        if further == (i > 0 or each.is_minor)
    ]
    chosen = [[job for job in group if _matches(job.name, patterns)] for group in found]
    return [group for group in chosen if group]


def _students(contender: Contender) -> tuple[str, ...]:
    return contender.students or tuple(name for name in STUDENTS if name != CONTROL)


def _matches(name: str, patterns: str) -> bool:
    return any(fnmatchcase(name, pattern.strip()) for pattern in patterns.split(";"))
