"""Define the sizes of the demo and its contenders."""

import os
from dataclasses import dataclass, replace
from typing import NamedTuple


class Shape(NamedTuple):
    """The size of a Llama; its heads are 32 wide."""

    width: int
    layers: int
    vocabulary: int


class Contender(NamedTuple):
    """A way to train the student: the flags of `distill train` that it adds to the common ones."""

    name: str
    label: str
    flags: tuple[str, ...]


#: The weights are the papers': 1.5 for ULD (arXiv:2402.12030), and 1 for the mapped KL.
CONTENDERS = (
    Contender("ce", "cross-entropy only", ("--loss", "ce")),
    Contender(
        "uld_position",
        "+ 1.5 ULD by position",
        ("--loss", "uld:1.5", "--pairing", "position"),
    ),
    Contender("uld_bytes", "+ 1.5 ULD by bytes", ("--loss", "uld:1.5", "--pairing", "bytes")),
    Contender("mapped_kl", "+ 1 mapped KL", ("--loss", "mapped_kl:1")),
)


#: What the demo does, one after the other.
PHASES = ("the models", "the teacher pass", "the teacher's own score", "the students")


@dataclass(frozen=True)
class Settings:
    """The sizes of the demo; equal settings with equal versions make the same run.

    Attributes:
        teacher: The size of a teacher that the demo trains; None: SmolLM2-135M-Instruct, which it
            fetches.
        guesses_s: Seconds that each phase takes on two cores, in the order of `PHASES`: what the
            time to go is guessed from.
        is_smoke_test: Whether it shows that every step works, and nothing else.
    """

    teacher: Shape | None
    student: Shape
    teacher_bytes: int
    tokenizer_bytes: int
    student_bytes: int
    heldout_bytes: int
    teacher_steps: int
    student_steps: int
    seeds: tuple[int, ...]
    top_k: int
    guesses_s: tuple[int, int, int, int]
    is_smoke_test: bool = False

    @property
    def corpus_bytes(self) -> dict[str, int]:
        """Return the bytes of each set, as `load_corpus` takes them."""
        names = ("teacher_bytes", "student_bytes", "heldout_bytes")
        return {name: getattr(self, name) for name in names}


#: The real teacher: SmolLM2-135M-Instruct. Students read their little text many times over, so
#: they overfit without a teacher.
REAL = Settings(
    teacher=None,
    student=Shape(width=96, layers=2, vocabulary=2048),
    teacher_bytes=400_000,  # what the student's tokenizer is made from
    tokenizer_bytes=400_000,
    student_bytes=100_000,
    heldout_bytes=50_000,
    teacher_steps=0,
    student_steps=120,
    seeds=(0, 1, 2),
    top_k=64,
    guesses_s=(20, 150, 90, 480),
)
#: A teacher that is trained here, on twenty times the student's text: it runs everywhere.
TINY = replace(
    REAL,
    teacher=Shape(width=192, layers=3, vocabulary=4096),
    teacher_bytes=4_000_000,
    teacher_steps=320,
    guesses_s=(200, 20, 15, 480),
)

#: Nothing is learnt here; it shows that every step works. Its minute goes into starting processes
#: (5 s each), which is why there is one seed.
QUICK = Settings(
    teacher=Shape(width=64, layers=1, vocabulary=600),
    student=Shape(width=32, layers=1, vocabulary=500),
    teacher_bytes=100_000,
    tokenizer_bytes=50_000,
    student_bytes=10_000,
    heldout_bytes=5_000,
    teacher_steps=20,
    student_steps=5,
    seeds=(0,),
    top_k=16,
    guesses_s=(10, 15, 10, 45),
    is_smoke_test=True,
)


def cores() -> int:
    """Return the number of cores to use: at most 8, since models this small gain nothing more."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return min(allowed or 1, 8)
