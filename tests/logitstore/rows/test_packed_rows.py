"""Documents packed into a row of token ids: cut where the row says, and none sees another."""

import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import AutoTokenizer

from logitstore.errors import InputError, MismatchError
from logitstore.rows.token_rows import MOST_DOCUMENTS, documents_of
from logitstore.testing import tiny
from tests.kit import templates
from tests.kit.talks import capture, dataset_of, trainer_of

TEXTS = ["The teacher reads a page.", "One more.", "A student writes, then stops; ü."]


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    tokenizer = templates.llama3()
    return tiny.save(tmp_path_factory.mktemp("m"), tiny.llama(len(tokenizer)), tokenizer)


def alone(teacher: Path) -> list[list[int]]:
    tokenizer = AutoTokenizer.from_pretrained(teacher)
    return [[*tokenizer(text).input_ids, tokenizer.eos_token_id] for text in TEXTS]


def packed(parts: list[list[int]], how: str) -> dict[str, Any]:
    """A row of all parts, which says where each begins in one of the ways that there are."""
    ids = [i for part in parts for i in part]
    lengths = [len(part) for part in parts]
    if how == "position_ids":
        return {"input_ids": ids, how: [p for n in lengths for p in range(n)]}
    if how == "seq_lengths":
        return {"input_ids": ids, how: lengths}
    if how == "a number a document":
        return {
            "input_ids": ids,
            "attention_mask": [i for i, n in enumerate(lengths, 1) for _ in range(n)],
        }
    with_gaps = [i for part in parts for i in (*part, 0, 0)]
    mask = [m for n in lengths for m in (*[1] * n, 0, 0)]
    if how == "zeros between":
        return {"input_ids": with_gaps, "attention_mask": mask}
    assert how == "padding and lengths"
    ids = [*ids, 0, 0, 0]
    return {
        "input_ids": ids,
        "attention_mask": [1] * sum(lengths) + [0] * 3,
        "seq_lengths": lengths,
    }


WAYS = [
    "position_ids",
    "seq_lengths",
    "a number a document",
    "zeros between",
    "padding and lengths",
]


@pytest.mark.parametrize("how", WAYS)
def test_a_packed_document_has_the_records_that_it_has_alone(
    how: str, teacher: Path, tmp_path: Path
) -> None:
    """Read as one text, a record would describe a token with another document in sight."""
    parts = alone(teacher)
    single = capture(teacher, [{"input_ids": part} for part in parts], tmp_path / "single")
    row = packed(parts, how)
    store = capture(teacher, [row, row], tmp_path / "packed")
    assert [(t.row, t.part, t.status) for t in map(store.text, range(len(store)))] == [
        (row_number, part, "ok") for row_number in (0, 1) for part in range(3)
    ]
    before = 0
    for i in range(3):
        a, b = single[i], store[i]
        assert b.token_ids.tolist() == a.token_ids.tolist()
        np.testing.assert_allclose(b.token_logprob, a.token_logprob, atol=2e-3)
        assert (b.byte_starts - a.byte_starts).tolist() == [before] * len(a)
        line = store.text(i)
        assert line.supervised_start == before
        assert line.supervised_bytes == single.text(i).supervised_bytes
        before += len(line.supervised_bytes)
    whole = b"".join(store.text(i).supervised_bytes for i in range(3))
    assert whole.decode() == "".join(TEXTS)


@pytest.mark.parametrize("student", ["llama3", "mistral", "gemma"])
def test_a_student_reads_each_document_by_itself(
    student: str, teacher: Path, tmp_path: Path
) -> None:
    tokenizer = templates.FAMILIES[student]()
    folder = tiny.save(tmp_path / "m", tiny.llama(len(tokenizer)), tokenizer)
    single = capture(teacher, [{"input_ids": part} for part in alone(teacher)], tmp_path / "single")
    store = capture(teacher, [packed(alone(teacher), "position_ids")], tmp_path / "packed")
    ours, theirs = dataset_of(folder, store), dataset_of(folder, single)
    assert len(ours) == len(theirs) == 3
    for i in range(3):
        assert ours[i].token_ids.tolist() == theirs[i].token_ids.tolist()
        assert ours[i].aligned == theirs[i].aligned == ours[i].is_label.sum()
    if student == "llama3":
        found = trainer_of(folder, store, tmp_path / "o").evaluate()
        assert found["eval_covered_fraction"] == 1


def test_long_documents_are_cut_into_windows_like_any_other(teacher: Path, tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(teacher)
    parts = [*alone(teacher), [*tokenizer("a").input_ids, tokenizer.eos_token_id]]
    store = capture(teacher, [packed(parts, "position_ids")], tmp_path / "s", max_length=8)
    lines = [store.text(i) for i in range(len(store))]
    assert [line.part for line in lines] == list(range(len(lines)))
    assert [line.status for line in lines[-2:]] == ["split", "ok"]
    assert b"".join(line.supervised_bytes for line in lines).decode() == "".join([*TEXTS, "a"])
    ends = [line.supervised_start + len(line.supervised_bytes) for line in lines]
    assert [line.supervised_start for line in lines] == [0, *ends[:-1]]
    ids = [i for s in range(len(store)) for i in store[s].token_ids.tolist()]
    assert ids == [i for part in parts for i in part[1:]]  # a BOS has no record


def test_labels_and_masks_count_within_their_document(teacher: Path) -> None:
    parts = alone(teacher)
    row = packed(parts, "zeros between")
    labels = [i if n % 2 else -100 for n, i in enumerate(row["input_ids"])]
    found = documents_of({**row, "labels": labels}, "row 0")
    assert [d.token_ids.tolist() for d in found] == parts
    flat = [w for d in found for w in d.is_wanted.tolist()]
    kept = [n % 2 == 1 for n, m in enumerate(row["attention_mask"]) if m]
    assert flat == kept


@pytest.mark.parametrize(
    ("columns", "lengths"),
    [
        ({"attention_mask": [0, 1, 1, 1, 1, 0]}, [4]),  # padding at both ends is no border
        ({"position_ids": [7, 8, 9, 10, 11, 12]}, [6]),  # a later chunk of a text
        ({"position_ids": [1, 1, 0, 1, 2, 3], "attention_mask": [0, 0, 1, 1, 1, 1]}, [4]),
        ({"position_ids": [0, 1, 2, 0, 0, 1]}, [3, 1, 2]),
        ({"position_ids": [0, 1, 2, 3, 4, 5], "attention_mask": [1, 1, 0, 0, 1, 1]}, [2, 2]),
        ({"seq_lengths": [0, 2, 0, 4]}, [2, 4]),
        ({"seq_lengths": []}, [6]),
        ({"seq_lengths": None, "attention_mask": [1] * 6}, [6]),
        ({"seq_lengths": [2, 4], "position_ids": [0, 1, 0, 1, 0, 1]}, [2, 2, 2]),
        ({"attention_mask": [0] * 6}, [0]),
    ],
)
def test_a_row_is_cut_where_it_says_so(columns: dict[str, Any], lengths: list[int]) -> None:
    row = {"input_ids": [5, 6, 7, 8, 9, 10], **columns}
    assert [len(document.token_ids) for document in documents_of(row, "row 0")] == lengths


@pytest.mark.parametrize(
    ("columns", "why"),
    [
        ({"seq_lengths": [2, 3]}, "seq_lengths add up to 5, but there are 6 input_ids"),
        ({"seq_lengths": [7, -1]}, "seq_lengths add up to 6"),
        ({"position_ids": [0, 1, 2, 7, 8, 9]}, "position_ids go from 2 to 7, expected 3, or a sm"),
        ({"position_ids": [0, 1]}, "position_ids has 2 values, but there are 6 input_ids"),
        ({"position_ids": [0, 1, 2, None, 4, 5]}, "position_ids: value 3 is missing"),
    ],
)
def test_what_a_row_says_wrongly_is_named(columns: dict[str, Any], why: str) -> None:
    with pytest.raises(InputError, match=f"row 3: {why}"):
        documents_of({"input_ids": [5, 6, 7, 8, 9, 10], **columns}, "row 3")


def test_a_store_of_uncut_rows_is_not_gone_on_with(teacher: Path, tmp_path: Path) -> None:
    """Rows with the same columns were read as one text before: their records are others."""
    row = packed(alone(teacher), "zeros between")
    plain = {**row, "attention_mask": [1] * len(row["input_ids"])}
    assert "obeys" not in capture(teacher, [plain], tmp_path / "plain").spec.rendering
    assert capture(teacher, [row], tmp_path / "s").spec.rendering["obeys"] == ["documents"]
    with pytest.raises(MismatchError):
        capture(teacher, [row], tmp_path / "plain")


def test_a_packed_document_costs_what_a_row_of_its_own_costs(teacher: Path, tmp_path: Path) -> None:
    """However short: a bomb of documents is no more than the rows that it could have been."""
    tokenizer = AutoTokenizer.from_pretrained(teacher)
    parts = [tokenizer("ab"[i % 2]).input_ids for i in range(150)]
    row = packed(parts, "position_ids")
    held = []
    for name, rows in (("packed", [row]), ("alone", [{"input_ids": part} for part in parts])):
        tracemalloc.start()
        store = capture(teacher, rows, tmp_path / name)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert len(store) == len(parts)
        held.append((sum(f["file_bytes"] for f in store.shard_facts), peak))
    assert held[0][0] < 1.1 * held[1][0]
    assert held[0][1] < 1.2 * held[1][1]


def test_a_row_of_more_documents_than_anybody_packs_is_refused() -> None:
    """A row cannot be divided between shards, so all of it is in memory at once."""
    count = MOST_DOCUMENTS + 1
    ways: list[dict[str, Any]] = [
        {"position_ids": [0] * count},
        {"seq_lengths": [1] * count},
        {"attention_mask": list(range(1, count + 1))},
    ]
    for columns in ways:
        with pytest.raises(
            InputError,
            match=r"^row 3: is packed of 16,385 documents, expected at most 16,384\. Cut it into",
        ):
            documents_of({"input_ids": [5] * count, **columns}, "row 3")
    most = {"input_ids": [5] * count, "seq_lengths": [2, *[1] * (count - 2)]}
    assert len(documents_of(most, "row 3")) == MOST_DOCUMENTS
