"""A store of another tool's dump serves a student like any; what it lacks is refused by name."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from distill import cli
from distill.data.dataset import StoreDataset
from distill.data.ragged import rectangles, tensors_of
from distill.losses.requirements import check_needs
from logitstore.cli.app import main
from logitstore.errors import MismatchError
from logitstore.moving.dumps.importing import import_dump
from logitstore.moving.dumps.settings import ImportSettings
from logitstore.store import LogitStore, open_store
from logitstore.testing import tiny
from logitstore.text.tokenizer import ByteTokenizer
from tests.kit import dumps
from tests.kit.dumps import ENGLISH, Dumper
from tests.logitstore.moving.test_import_missing import renormalised

LACKS_TOKENS = (
    "imported without the log-probability of every token, which {name} needs. Use --loss "
    "mapped_kl, or run `logitstore import …` again with --unlisted drop, which leaves tokens out "
    "that are not in their lists."
)
LACKS_TAIL = (
    "its entries were renormalised before they were imported, so the tail is not known, and {name} "
    "needs it. Use --loss ce, or import a dump of log-probabilities over the full vocabulary."
)


@pytest.fixture(scope="module")
def teacher(teacher: Dumper) -> Dumper:
    return replace(teacher, sure=4.0)


def stored(folder: Path, teacher: Dumper, kind: str) -> LogitStore:
    """Of one layout or state each."""
    made = ImportSettings(tokenizer=str(teacher.folder), teacher=dumps.NAME)
    rows = [teacher.raw(text) for text in ENGLISH]
    if kind == "scored":
        rows = [teacher.scored(text) for text in ENGLISH]
    elif kind == "chat":
        ask = [{"role": "user", "content": "Say it."}]
        rows = [teacher.chat(ask, text) for text in ENGLISH]
    elif kind == "renormalised":
        rows = [renormalised(teacher.prepared(text)) for text in ENGLISH]
        made = replace(made, renormalised=True)
    elif kind == "dropped":
        made = replace(made, unlisted="drop")
    store, _ = import_dump(dumps.write_jsonl(folder / f"{kind}.jsonl", rows), folder / kind, made)
    assert store is not None
    return store


@pytest.fixture
def student(tmp_path: Path) -> Path:
    tokenizer = tiny.unigram()
    tokenizer.chat_template = dumps.TEMPLATE
    return tiny.save(tmp_path / "student", tiny.llama(len(tokenizer)), tokenizer)


def run(monkeypatch: pytest.MonkeyPatch, program: object, *words: object) -> int:
    monkeypatch.setattr(sys, "argv", ["x", *map(str, words)])
    with pytest.raises(SystemExit) as stopped:
        program()  # type: ignore[operator]
    return int(stopped.value.code or 0)


@pytest.mark.filterwarnings("ignore:wrong labels")  # the vocabularies are of a few hundred tokens
@pytest.mark.parametrize(
    ("kind", "loss"),
    [
        ("scored", "uld:1.0,alm:0.1"),
        ("chat", "mapped_kl"),
        ("marked", "mapped_kl"),
        ("dropped", "uld"),
    ],
)
def test_a_student_learns_from_a_dump(
    kind: str,
    loss: str,
    teacher: Dumper,
    student: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stored(tmp_path, teacher, kind)
    out = tmp_path / "trained"
    words = ["train", "--model_name_or_path", student, "--store", tmp_path / kind, "--loss", loss]
    words += ["--output_dir", out, "--max_steps", 2, "--learning_rate", 1e-3, "--use_cpu"]
    assert run(monkeypatch, cli.main, *words, "--logging_steps", 1) == 0
    assert (out / "model.safetensors").exists()


def test_a_student_of_the_same_tokenizer_is_given_the_dump_itself(
    teacher: Dumper, tmp_path: Path
) -> None:
    """The numbers of the dump arrive at the labels they were written for: nothing shifts."""
    store = stored(tmp_path, teacher, "scored")
    data = StoreDataset(store, ByteTokenizer(teacher.tokenizer), ("tail_kl",))
    example = data[0]
    ids = teacher.ids(ENGLISH[0])
    rows = teacher.logprobs(ids)
    labels = np.flatnonzero(example.is_label)
    assert example.token_ids[: len(ids)].tolist() == ids
    found = rectangles(tensors_of(example.teacher["tail_kl"]))
    for p, label in enumerate(found["index"]):
        t = labels[label]
        expected = dict(teacher.top(rows[t]))
        there = dict(
            zip(found["entry_ids"][p].tolist(), found["entry_logmass"][p].tolist(), strict=True)
        )
        assert {i: pytest.approx(v, abs=0.05) for i, v in expected.items()} == {
            i: v for i, v in there.items() if i >= 0
        }
    assert len(found["index"]) == len(ids) - 1


def test_each_loss_refuses_what_a_dump_did_not_say(teacher: Dumper, tmp_path: Path) -> None:
    reader = ByteTokenizer(teacher.tokenizer)
    marked, gone = (stored(tmp_path, teacher, kind) for kind in ("marked", "renormalised"))
    assert marked.spec.missing == ("entropy", "token_logprob")
    for name in ("mapped_kl", "tail_kl"):
        check_needs(marked, reader, name)
        with pytest.raises(MismatchError) as refused:
            check_needs(gone, reader, name)
        assert str(refused.value) == f"{gone.path}: {LACKS_TAIL.format(name=name)}"
    for name in ("uld", "alm"):
        with pytest.raises(MismatchError) as refused:
            check_needs(marked, reader, name)
        assert str(refused.value) == f"{marked.path}: {LACKS_TOKENS.format(name=name)}"
        with pytest.raises(MismatchError, match="Use --loss ce"):
            check_needs(gone, reader, name)
    check_needs(marked, reader, "uld", pairing="position")  # which reads no token's own


def test_coverage_says_what_a_dump_is_good_for(
    teacher: Dumper,
    student: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    # A map of two vocabularies of a few hundred tokens asks for 14 % wrong labels of "marked".
    for kind, loss in (("marked", "ce"), ("renormalised", "ce"), ("chat", None)):
        stored(tmp_path, teacher, kind)
        capsys.readouterr()
        assert run(monkeypatch, cli.main, "coverage", tmp_path / kind, student, "--json") == 0
        facts = json.loads(capsys.readouterr().out)
        assert facts["sequences_skipped"] == 0
        assert facts["kinds"]["all"]["shared_starts"] > 0
        assert loss in (None, facts["recommended"])
        assert run(monkeypatch, cli.main, "coverage", tmp_path / kind, student) == 0
        says_so = "not known: the entries were renormalised" in capsys.readouterr().out
        assert says_so == (kind == "renormalised")


def test_info_and_show_say_what_is_missing(
    teacher: Dumper,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for kind in ("marked", "renormalised"):
        stored(tmp_path, teacher, kind)
        capsys.readouterr()
        assert run(monkeypatch, main, "info", tmp_path / kind) == 0
        text = capsys.readouterr().out
        missing = ", ".join(open_store(tmp_path / kind).spec.missing)
        assert f"missing   {missing}: not in the data that was imported" in text
        assert ("ULD       from this store has no bound" in text) == (kind == "renormalised")
        assert ("tail      not known" in text) == (kind == "renormalised")
        assert run(monkeypatch, main, "show", tmp_path / kind, 0) == 0
        assert "       ?  " in capsys.readouterr().out
        assert run(monkeypatch, main, "show", tmp_path / kind, 0, "--json") == 0
        shown = json.loads(capsys.readouterr().out, parse_constant=pytest.fail)
        assert {t["entropy"] for t in shown["tokens"]} == {None}
        assert None in {t["logprob"] for t in shown["tokens"]}
