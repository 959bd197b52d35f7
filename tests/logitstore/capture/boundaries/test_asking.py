"""What a capture at a student's boundaries says before it begins, and whom it refuses."""

from dataclasses import replace
from pathlib import Path

import pytest

from logitstore.capture import preview
from logitstore.capture.boundaries.cost import check_asked
from logitstore.capture.boundaries.student import Student
from logitstore.capture.sequences.questions import Questions
from logitstore.errors import InputError
from logitstore.testing.stores import tree
from logitstore.text.tokenizer import ByteTokenizer
from tests.kit.boundaries import SETTINGS, run, sequence


def test_the_cost_is_said_before(teacher: Path, place: Path, tmp_path: Path) -> None:
    settings = SETTINGS | {"boundaries_of": str(place / "unigram")}
    found = preview(teacher, str(place / "rows.jsonl"), tmp_path / "s", **settings)
    assert not (tmp_path / "s").exists()
    cost = (found.costs() or {})["boundaries"]
    assert cost["labels"] > cost["records"] > cost["inside"] > 0
    assert cost["tokens_factor"] > 1
    assert cost["file_bytes"] > 0
    assert f"boundaries of {place / 'unigram'}: about {cost['labels']:,} labels" in str(found)
    plain_cost = preview(teacher, str(place / "rows.jsonl"), **SETTINGS).costs() or {}
    assert "boundaries" not in plain_cost
    added = run(teacher, place, tmp_path / "t", boundaries_of=None).path
    before = tree(added)
    later = preview(teacher, str(place / "rows.jsonl"), added, **settings)
    assert tree(added) == before
    assert later.file_bytes == round((later.costs() or {})["boundaries"]["file_bytes"])


@pytest.mark.parametrize(
    ("status", "why"),
    [("spans_unknown", "does not say where its tokens lie"), ("text_changed", "chat template")],
)
def test_a_student_that_can_be_asked_about_nowhere_is_refused(
    place: Path, status: str, why: str
) -> None:
    tokenizer = ByteTokenizer.from_folder(place / "bpe")
    student = Student("nowhere", tokenizer, {})
    row = sequence(5, 0)
    lost = replace(row, questions=Questions.none(status))
    check_asked(student, [lost, row])
    check_asked(student, [])
    with pytest.raises(InputError, match=f"--boundaries-of nowhere: .*{why}.*in all 2 sequences"):
        check_asked(student, [lost, lost])


def test_a_student_with_the_teachers_tokenizer_is_refused(teacher: Path, place: Path) -> None:
    with pytest.raises(InputError, match="its tokenizer is the teacher's own"):
        run(teacher, place, place / "never", boundaries_of=str(teacher))
    assert not (place / "never").exists()
