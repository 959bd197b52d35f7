"""What is compared with what: students, data, contenders, and the jobs that are made of them.

To add a contender, add a line to `CONTENDERS`. One that this version of `distill` does not have is
left out of a run with a note.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, NamedTuple

from tools.demo.settings import Shape
from tools.labels.settings import Rate

#: The students, and what they are.
STUDENTS = {
    "pruned": "every third layer of the teacher, its tokenizer",
    "foreign": "the same layers, the vocabulary of Llama 2",
    "new": "a small new model, the vocabulary of Llama 2",
}
#: What they are trained on.
DATA = {
    "text": "documentation and sources",
    "answers": "the teacher's answers to questions over documentation",
}


class Setting(NamedTuple):
    """What the contenders of a comparison have in common."""

    student: str
    data: str

    @property
    def rate(self) -> str:
        return "new" if self.student == "new" else "trained"


#: The most decisive first.
SETTINGS = [Setting(student, data) for student in STUDENTS for data in ("answers", "text")]


@dataclass(frozen=True, eq=False)
class Scale:
    """The sizes of everything.

    Attributes:
        is_real: Whether teacher and vocabularies are real ones; else tiny made-up ones.
        is_trimmed: Whether tokenizers are cut down to what the texts use, since most of a small
            student would be its vocabulary.
        stride: One layer of the teacher in so many is kept.
        new: Width and layers of the new student; its vocabulary is that of the foreign one.
        text_bytes: Of the texts that students are healed on, trained on, and measured on.
        prompts: Questions for training and for measuring.
        answer_tokens: Of an answer at most.
        heal: How students made of the teacher are healed.
        heals: Numbers of separately healed students; seeds beyond share them.
        rates: How students are trained: healed ones, and the new one.
        rows: Rows of a batch.
        top_k: Entries of a record.
        seeds: Seeds of the order of rows, and of new weights.
        settings: Students and data, the most decisive first.
        minor_data: Data of the contenders that are not major.
    """

    is_real: bool
    is_trimmed: bool
    stride: int
    new: Shape
    text_bytes: Mapping[str, int]
    prompts: Mapping[str, int]
    answer_tokens: int
    heal: Rate
    heals: int
    rates: Mapping[str, Rate]
    rows: int
    top_k: int
    seeds: tuple[int, ...]
    settings: Sequence[Setting] = tuple(SETTINGS)
    minor_data: Sequence[str] = tuple(DATA)


#: Two cores, six hours in the background.
CPU = Scale(
    is_real=True,
    is_trimmed=True,
    stride=3,
    new=Shape(width=192, layers=4, vocabulary=0),
    text_bytes={"before": 900_000, "rows": 200_000, "heldout": 20_000},
    prompts={"train": 800, "heldout": 100},  # a run reads 200 of them
    answer_tokens=20,
    heal=Rate(1e-3, 200),
    heals=1,
    rates={"trained": Rate(1e-4, 25), "new": Rate(1e-3, 120)},
    rows=8,
    top_k=64,
    seeds=(0, 1, 2),
    settings=[s for s in SETTINGS if s != Setting("new", "answers")],
    minor_data=("answers",),
)
#: One GPU, eight minutes with what was carried there.
GPU = Scale(
    is_real=True,
    is_trimmed=False,
    stride=3,
    new=Shape(width=384, layers=6, vocabulary=0),
    text_bytes={"before": 4_000_000, "rows": 1_000_000, "heldout": 120_000},
    prompts={"train": 3_600, "heldout": 600},
    answer_tokens=24,
    heal=Rate(1e-3, 600),
    heals=1,
    rates={"trained": Rate(1e-4, 120), "new": Rate(1e-3, 300)},
    rows=16,
    top_k=64,
    seeds=(0, 1, 2),
)
QUICK = Scale(
    is_real=False,
    is_trimmed=True,
    stride=3,
    new=Shape(width=32, layers=1, vocabulary=0),
    text_bytes={"before": 20_000, "rows": 4_000, "heldout": 2_000},
    prompts={"train": 8, "heldout": 4},
    answer_tokens=4,
    heal=Rate(1e-3, 2),
    heals=1,
    rates={"trained": Rate(1e-4, 2), "new": Rate(1e-3, 2)},
    rows=4,
    top_k=8,
    seeds=(0, 1),
)
SCALES = {"cpu": CPU, "gpu": GPU, "quick": QUICK}


class Contender(NamedTuple):
    """A way to train a student.

    Attributes:
        loss: As `--loss`.
        options: Further settings of `distill train`.
        students: The students that it is for.
        share: Of the rows, that it is trained on; as many steps.
        live: Whether a live teacher is asked in every step, and for how many tokens; 0: all.
        is_major: Whether it is decisive: it comes before all that are not.
    """

    loss: str
    options: Mapping[str, Any] = {}
    students: tuple[str, ...] = ("foreign", "new")
    share: float = 1.0
    live: int | None = None
    is_major: bool = True


CE, UNTRAINED, TEACHER = "ce", "untrained", "the teacher itself"
#: From a store of fewer than 100 bytes a token.
SMALL = "tail_kl, top 24"
_EVERY, _PRUNED = tuple(STUDENTS), ("pruned",)
_PAPERS = {"uncovered": "none"}

#: The first is what all others are compared with.
CONTENDERS: dict[str, Contender] = {
    CE: Contender(CE, students=_EVERY),
    TEACHER: Contender(CE, students=_PRUNED),
    UNTRAINED: Contender(CE, students=_EVERY),
    "ce, half the rows": Contender(CE, students=_EVERY, share=0.5),
    "tail_kl": Contender("tail_kl", students=_PRUNED),
    SMALL: Contender("tail_kl", {"train_top_k": 24}, students=_PRUNED),
    "live KL": Contender(CE, students=_PRUNED, live=0),
    "the default": Contender("mapped_kl"),
    "uld by position": Contender("uld:1.5", {"pairing": "position", **_PAPERS}),
    "uld by bytes": Contender("uld:1.5", _PAPERS),
    "alm": Contender("alm"),
    "mapped_kl as it was": Contender("mapped_kl", {"map": "prefix", **_PAPERS}),
    "tail_kl, half the rows": Contender("tail_kl", students=_PRUNED, share=0.5),
    "the default, half the rows": Contender("mapped_kl", share=0.5),
    "live KL, top 64": Contender(CE, students=_PRUNED, live=64, is_major=False),
    "multilevel_ot": Contender("multilevel_ot:0.15", _PAPERS, is_major=False),
    "p_kl": Contender("mapped_kl", {"map": "p_kl_weighted"}, is_major=False),
    "gold": Contender("gold", _PAPERS, is_major=False),
    "the default, nothing for the uncovered": Contender("mapped_kl", _PAPERS, is_major=False),
    "the default, canonical map": Contender("mapped_kl", {"map": "canonical"}, is_major=False),
    "the default, between too": Contender("mapped_kl", {"between": "on"}, is_major=False),
}


class Job(NamedTuple):
    """One student to train and measure.

    Attributes:
        setting: The student and its data.
        contender: How it is trained.
        seed: Of the order of its rows, and of new weights.
        heal: Which of the separately healed students it is.
    """

    setting: Setting
    contender: str
    seed: int
    heal: int = 0

    @property
    def made(self) -> Contender:
        return CONTENDERS[self.contender]

    @property
    def name(self) -> str:
        return "/".join([*self.setting, self.contender, str(self.seed)])

    @property
    def kind(self) -> str:
        """What jobs that take about as long have in common."""
        return f"{self.setting.student}/{self.setting.data}/{self.made.live is not None}"

    @property
    def before(self) -> tuple[str, int] | None:
        """The student that must have been healed before."""
        return None if self.setting.student == "new" else (self.setting.student, self.heal)


def jobs(scale: Scale, patterns: str = "*") -> list[list[Job]]:
    """List all jobs, the most decisive first; those that differ in their seed alone are together.

    Args:
        scale: Its seeds.
        patterns: Shell patterns of names, with `;` between them: `foreign/answers/*;pruned/*`.
    """
    found = [
        [Job(setting, name, seed, seed % scale.heals) for seed in _seeds(scale, setting, name)]
        for is_major in (True, False)
        for setting in scale.settings
        if is_major or setting.data in scale.minor_data
        for name, each in CONTENDERS.items()
        if each.is_major == is_major and setting.student in each.students
    ]
    chosen = [
        [job for job in group if any(fnmatchcase(job.name, p.strip()) for p in patterns.split(";"))]
        for group in found
    ]
    return [group for group in chosen if group]


def _seeds(scale: Scale, setting: Setting, contender: str) -> tuple[int, ...]:
    """List the seeds that can make a difference."""
    if contender == TEACHER:
        return scale.seeds[:1]
    is_same = contender == UNTRAINED and setting.student != "new"
    return scale.seeds[: scale.heals] if is_same else scale.seeds
