"""What the teacher alone sees: its records are of its own context, the student reads another."""

import json
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest

import logitstore
from logitstore.errors import InputError
from logitstore.inspection.show import shown
from logitstore.rows.dataset import load_rows
from logitstore.text import own_text
from logitstore.text.tokenizer import ByteTokenizer
from tests.kit.talks import capture, dataset_of, save_families, trainer_of
from tests.kit.templates import turns

SECRET, PROMPT, ANSWER = "The answer is a river. Why?", "Why?", " Because the river reads."
TALK = turns("Why?", "Because.", "And?", "The old river.")
THEIRS = [{"role": "system", "content": "The river is old."}, *TALK]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return save_families(tmp_path_factory.mktemp("models"))


ROWS: dict[str, tuple[dict[str, Any], dict[str, Any], dict[str, Any]]] = {
    # the row; as if the teacher's were all; as if the student's were all
    "text": (
        {"prompt": PROMPT, "completion": ANSWER, "teacher_prompt": SECRET},
        {"prompt": SECRET, "completion": ANSWER},
        {"prompt": PROMPT, "completion": ANSWER},
    ),
    "prompt of messages": (
        {"prompt": TALK[:3], "completion": TALK[3:], "teacher_prompt": THEIRS[:4]},
        {"prompt": THEIRS[:4], "completion": THEIRS[4:]},
        {"prompt": TALK[:3], "completion": TALK[3:]},
    ),
    "messages": (
        {"messages": TALK, "teacher_messages": THEIRS},
        {"messages": THEIRS},
        {"messages": TALK},
    ),
}


@pytest.mark.parametrize("length", [None, 24])
@pytest.mark.parametrize("kind", ROWS)
def test_records_are_the_teachers_and_the_student_reads_its_own(
    kind: str, length: int | None, folders: dict[str, Path], tmp_path: Path
) -> None:
    """Also of a student with the teacher's own tokenizer, and in windows of a long row."""
    row, as_teacher, as_student = ROWS[kind]
    teacher = folders["chatml"]
    limits = {} if length is None else {"max_length": length}
    store = capture(teacher, [row], tmp_path / "private", **limits)
    theirs = capture(teacher, [as_teacher], tmp_path / "teacher", **limits)
    ours = capture(teacher, [as_student], tmp_path / "student")
    assert store.spec.rendering["private"] in row
    assert "private" not in theirs.spec.rendering
    assert len(store) == len(theirs)
    for i in range(len(store)):
        for name in ("token_ids", "byte_starts", "byte_lengths", "token_logprob", "entry_ids"):
            np.testing.assert_array_equal(getattr(store[i], name), getattr(theirs[i], name))
        assert store.text(i).segments == theirs.text(i).segments
    for name in ("chatml", "llama3", "mistral"):
        data, own = dataset_of(folders[name], store), dataset_of(folders[name], ours)
        examples = [data[i] for i in range(len(data))]
        labels = [i for e in examples for i in e.token_ids[e.is_label].tolist()]
        whole = own[0]
        assert labels == whole.token_ids[whole.is_label].tolist()
        if length is None:
            assert examples[0].token_ids.tolist() == whole.token_ids.tolist()
        if name == "chatml":
            assert sum(e.aligned for e in examples) == len(labels)
    assert "secret" not in json.dumps(ours.text(0).messages or "")


def test_a_student_trains_on_it(folders: dict[str, Path], tmp_path: Path) -> None:
    for kind, (row, _, _) in ROWS.items():
        store = capture(folders["chatml"], [row], tmp_path / kind)
        for name in ("chatml", "gemma" if kind == "text" else "llama3"):
            trainer = trainer_of(folders[name], store, tmp_path / f"{kind}-{name}")
            assert trainer.evaluate()["eval_covered_fraction"] == 1
            assert trainer.train().metrics["train_skipped_sequences"] == 0


def test_a_row_without_a_private_prompt_is_as_any_other(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    rows = [ROWS["text"][0], {"prompt": PROMPT, "completion": ANSWER, "teacher_prompt": None}]
    store = capture(folders["chatml"], rows, tmp_path / "s")
    assert store.text(1).messages is None
    assert store.text(1).segments[0].text == PROMPT
    data = dataset_of(folders["chatml"], store)
    assert data[0].token_ids.tolist() == data[1].token_ids.tolist()


@pytest.mark.parametrize("kind", ROWS)
def test_the_teacher_may_write_the_answers_to_what_it_alone_sees(
    kind: str, folders: dict[str, Path], tmp_path: Path
) -> None:
    row = {k: v for k, v in ROWS[kind][0].items() if k != "completion"}
    as_teacher = {k: v for k, v in ROWS[kind][1].items() if k != "completion"}
    for asked in (row, as_teacher):
        for name in ("messages", "teacher_messages"):
            if name in asked:
                asked[name] = asked[name][:-1]
    made = {"generate": True, "max_new_tokens": 6}
    store = capture(folders["chatml"], [row], tmp_path / "private", **made)
    plain = capture(folders["chatml"], [as_teacher], tmp_path / "plain", **made)
    assert store.text(0).segments == plain.text(0).segments
    np.testing.assert_array_equal(store[0].token_ids, plain[0].token_ids)
    assert str(PROMPT) in str(store.text(0).messages)
    assert store.text(0).messages != plain.text(0).messages
    data = dataset_of(folders["chatml"], store)
    written = ByteTokenizer.from_folder(folders["chatml"]).written(data[0].token_ids)
    assert b"river" not in b"".join(written).split(b"Why?")[0]
    assert data[0].is_label.sum() == len(store[0]) == data[0].aligned


def test_the_teacher_may_see_examples_before_the_answers(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    shots = [*turns("Where?", "Here."), *TALK]
    store = capture(
        folders["chatml"], [{"messages": TALK, "teacher_messages": shots}], tmp_path / "s"
    )
    assert store.text(0).supervised_bytes == b"Because.The old river."
    data = dataset_of(folders["chatml"], store)
    assert data[0].aligned == data[0].is_label.sum() == len(store[0])


def test_other_answers_are_refused_by_name(folders: dict[str, Path], tmp_path: Path) -> None:
    other = [*THEIRS[:-1], {"role": "assistant", "content": "A new river."}]
    for theirs, why in (
        (other, "row 0: message 4 of the teacher's is another answer than message 3 .*old river"),
        (
            THEIRS[:3],
            "row 0: the teacher's messages have 1 turn of the assistant.*student learns 2",
        ),
    ):
        with pytest.raises(InputError, match=why):
            capture(
                folders["chatml"],
                [{"messages": TALK, "teacher_messages": theirs}],
                tmp_path / "s",
            )
    assert not (tmp_path / "s").exists()


@pytest.mark.parametrize(
    ("row", "why"),
    [
        ({"text": "a", "teacher_prompt": "b"}, "'teacher_prompt' is what the teacher sees in pla"),
        ({"messages": TALK, "teacher_prompt": TALK}, "but rows are read from messages"),
        ({"prompt": "a", "completion": "b", "teacher_messages": TALK}, "of `messages` or `conver"),
        ({"prompt": "a", "completion": "b", "teacher_prompt": TALK}, "'teacher_prompt' holds "),
        ({"prompt": TALK, "completion": TALK, "teacher_prompt": "b"}, "'teacher_prompt' holds st"),
    ],
)
def test_a_private_column_stands_beside_its_own(row: dict[str, Any], why: str) -> None:
    with pytest.raises(InputError, match=why):
        load_rows(datasets.Dataset.from_list([row]), private=True)


def test_what_is_private_is_part_of_the_dataset_and_not_of_an_evaluation() -> None:
    row, _, as_student = ROWS["text"]
    private = load_rows(datasets.Dataset.from_list([row]), private=True)
    other = load_rows(datasets.Dataset.from_list([row | {"teacher_prompt": "x"}]), private=True)
    assert private.digest() != other.digest()
    plain = load_rows(datasets.Dataset.from_list([row]))
    assert plain.digest() == load_rows(datasets.Dataset.from_list([as_student])).digest()


def test_show_has_both_contexts(folders: dict[str, Path], tmp_path: Path) -> None:
    for kind, (row, _, _) in ROWS.items():
        store = capture(folders["chatml"], [row], tmp_path / kind)
        facts, text = shown(logitstore.open_store(store.path), 0, None, None)
        assert "river is" in text or "answer is a river" in text
        lines = [line for line in text.splitlines() if "student sees: " in line]
        assert lines
        assert not any("answer is a river" in line or "The river is old" in line for line in lines)
        assert facts["student_sees"]


def test_json_without_segments_is_an_error_and_no_traceback() -> None:
    for hostile in (
        "[]",
        "{}",
        '{"segments": 3}',
        '{"segments": [[1, 2]]}',
        '{"segments": [[1,2,3]]}',
    ):
        with pytest.raises(InputError, match="JSON that has no segments"):
            own_text.from_json(hostile, "store: row 3")
    with pytest.raises(InputError, match="not JSON"):
        own_text.from_json("{", "store: row 3")
