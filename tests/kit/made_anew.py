"""Make what every process must make alike, and print it:

python -m tests.kit.made_anew tokenizers pieces adapters=STUDENT,DRAWN
"""

import hashlib
import json
import sys
from collections import Counter
from collections.abc import Callable
from typing import Any

from logitstore.testing import tiny
from logitstore.testing.unigram import unigram_pieces
from logitstore.text.fingerprint import fingerprint

KINDS = ("byte_bpe", "unigram", "sp_bpe", "wordpiece")


def tokenizers() -> list[str]:
    """The tokenizers of the tests, by their fingerprints."""
    return [fingerprint(getattr(tiny, kind)()) for kind in KINDS]


def pieces() -> list[Any]:
    """The pieces of the demo's Unigram tokenizer, of a little of its text."""
    from tools.demo.corpus import load_corpus

    rows = load_corpus(teacher_bytes=0, student_bytes=20_000, heldout_bytes=0).student
    found = unigram_pieces(Counter(word for row in rows for word in row.split()), 300)
    return [list(piece) for piece in found]


def adapters(student: str, drawn: str) -> str:
    """New adapters of a student, after that many random numbers."""
    import torch

    from distill.student.arguments import StudentArguments
    from distill.student.loading import make_student

    torch.rand(int(drawn))
    arguments = StudentArguments(model_name_or_path=student, use_peft=True)
    model, _ = make_student(arguments, seed=1)
    weights = [p.detach().numpy().tobytes() for n, p in model.named_parameters() if "lora" in n]
    assert weights
    return hashlib.sha256(b"".join(weights)).hexdigest()


_MAKES: dict[str, Callable[..., Any]] = {
    each.__name__: each for each in (tokenizers, pieces, adapters)
}

if __name__ == "__main__":
    named = [word.partition("=") for word in sys.argv[1:]]
    made = {name: _MAKES[name](*filter(None, given.split(","))) for name, _, given in named}
    print(json.dumps(made))
