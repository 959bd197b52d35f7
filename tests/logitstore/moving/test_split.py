"""A part that is held out shares no text with the rest, and depends on seed and text alone."""

import json
from pathlib import Path

import pytest

from logitstore.errors import InputError
from logitstore.format.spec import Plan
from logitstore.moving.split import split
from logitstore.store import LogitStore, open_store
from logitstore.testing import stores
from logitstore.writing.writer import StoreWriter
from tests.kit.commands import Run, runner

SPEC = stores.spec()


def written(path: Path, texts: list[int]) -> LogitStore:
    """A store whose row r has the text of row `texts[r]` of the usual ones."""
    writer = StoreWriter(path, SPEC, Plan("c" * 64, (0, len(texts))), stores.TOKENIZER_FILES, {})
    lines = []
    for new, old in enumerate(texts):
        lines += [(line._replace(row=new), r) for line, r in stores.row_sequences(SPEC, old)]
    writer.write_shard(0, lines)
    writer.seal()
    return open_store(path)


def rows(path: Path) -> list[int]:
    return [int(line) for line in path.read_text().split()]


def test_every_row_is_on_one_side_and_its_twins_are_too(tmp_path: Path) -> None:
    texts = [*range(20), *range(20), 3, 3]
    store = written(tmp_path / "store", texts)
    facts = split(tmp_path / "store", tmp_path / "parts", share=0.25, seed=1)
    train, held = rows(tmp_path / "parts/train.txt"), rows(tmp_path / "parts/eval.txt")
    assert sorted([*train, *held]) == list(range(len(texts)))
    own = [b"".join(store.text(i).supervised_bytes for i in store.row(r)) for r in range(42)]
    assert not {own[r] for r in train} & {own[r] for r in held} - {b""}
    assert facts["held_out_rows"] == len(held)
    assert facts["texts"] == len({text for text in own if text}) + own.count(b"")
    made = open_store(tmp_path / "parts/eval")
    assert [made.text(i).segments for i in range(len(made))] == [
        store.text(i).segments for r in held for i in store.row(r)
    ]


def test_the_side_of_a_text_is_the_same_wherever_it_stands(tmp_path: Path) -> None:
    forth, back = [0, 1, 2, 3, 5, 6, 7, 8, 10], [10, 8, 7, 6, 5, 3, 2, 1, 0]
    held = []
    for name, texts in (("forth", forth), ("back", back)):
        written(tmp_path / name, texts)
        split(tmp_path / name, tmp_path / f"{name}-parts", share=0.3)
        held.append({texts[r] for r in rows(tmp_path / f"{name}-parts/eval.txt")})
    assert held[0] == held[1]
    split(tmp_path / "forth", tmp_path / "again", share=0.3, seed=5)
    assert {forth[r] for r in rows(tmp_path / "again/eval.txt")} != held[0]


def test_the_same_command_again_ends_with_the_same(tmp_path: Path) -> None:
    written(tmp_path / "store", list(range(9)))
    for _ in range(2):
        split(tmp_path / "store", tmp_path / "parts", share=0.3)
        found = tree(tmp_path / "parts")
    (tmp_path / "parts/eval/DONE").unlink()
    split(tmp_path / "store", tmp_path / "parts", share=0.3)
    assert tree(tmp_path / "parts") == found


def tree(folder: Path) -> dict[str, bytes]:
    """Without the journal, which says when."""
    return {name: data for name, data in stores.tree(folder).items() if "journal" not in name}


@pytest.mark.parametrize("share", [0.0, 1.0, -1.0, float("nan")])
def test_a_share_that_is_none_is_refused(tmp_path: Path, share: float) -> None:
    written(tmp_path / "store", [0, 1])
    with pytest.raises(InputError, match="expected a share between 0 and 1"):
        split(tmp_path / "store", tmp_path / "parts", share=share)
    assert not (tmp_path / "parts").exists()


def test_a_file_that_is_no_list_of_rows_is_kept(tmp_path: Path) -> None:
    """A dataset may well be called train.txt; it would have been replaced by numbers."""
    written(tmp_path / "store", [0, 1, 2])
    for name in ("train.txt", "eval.txt"):
        (tmp_path / name).write_text("Once there was a river.\n")
        with pytest.raises(InputError, match=rf"{name}: this file exists and is no list of rows"):
            split(tmp_path / "store", tmp_path, share=0.5)
        assert (tmp_path / name).read_text() == "Once there was a river.\n"
        (tmp_path / name).unlink()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["store", "store.journal.jsonl"]


def test_one_text_cannot_be_split(tmp_path: Path) -> None:
    written(tmp_path / "store", [1, 1, 1])
    with pytest.raises(InputError, match="has 1 different text, so nothing can be held out"):
        split(tmp_path / "store", tmp_path / "parts", share=0.5)


def test_the_command_says_how_to_train_on_the_rest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from logitstore.cli import main

    run: Run = runner("logitstore", main, monkeypatch, capsys)
    written(tmp_path / "store", list(range(8)))
    parts = tmp_path / "parts"
    status, out, _ = run("split", tmp_path / "store", "--eval", 0.2, "--out", parts)
    assert status == 0
    assert f"--rows {parts}/train.txt --eval_store {parts}/eval" in out
    status, out, _ = run("split", tmp_path / "store", "--eval", 0.2, "--out", parts, "--json")
    assert json.loads(out)["rows"] == 8
