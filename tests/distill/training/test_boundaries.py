"""`--boundaries`: a student learns from the records at every boundary of its own tokens."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import logitstore
from distill.data.coverage_of_pair import of_pair
from distill.data.coverage_table import table
from distill.data.dataset import StoreDataset
from distill.losses import advice
from distill.training.config import CachedTeacherConfig
from distill.training.trainer import CachedTeacherTrainer
from logitstore.errors import InputError, MismatchError
from logitstore.store import LogitStore
from logitstore.testing import tiny
from logitstore.text.chat_template import ChatTemplate
from logitstore.text.tokenizer import ByteTokenizer
from tests.kit import templates
from tests.kit.rows import rows_file, texts_file

#: The vocabularies are of a few hundred tokens.
pytestmark = pytest.mark.filterwarnings("ignore:wrong labels")


@pytest.fixture(scope="module")
def place(teacher: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    here = tmp_path_factory.mktemp("boundaries")
    tokenizer = tiny.unigram()
    tiny.save(here / "student", tiny.llama(len(tokenizer), seed=1), tokenizer)
    texts_file(here / "rows.jsonl", tiny.corpus())
    logitstore.capture(
        teacher, str(here / "rows.jsonl"), here / "store", top_k=400,
        boundaries_of=str(here / "student"),
    )  # fmt: skip
    logitstore.capture(teacher, str(here / "rows.jsonl"), here / "bare", top_k=8)
    return here


def trainer(place: Path, **settings: Any) -> CachedTeacherTrainer:
    tokenizer = tiny.unigram()
    given = {"store": str(place / "store"), "boundaries": True, "max_steps": 2} | settings
    args = CachedTeacherConfig(
        output_dir=str(place / "out"), save_strategy="no", use_cpu=True, **given
    )
    model = tiny.llama(len(tokenizer), seed=1)
    return CachedTeacherTrainer(model=model, args=args, processing_class=tokenizer)


def labels_and_aligned(store: LogitStore) -> tuple[int, int]:
    data = StoreDataset(store, ByteTokenizer(tiny.unigram()), ("mapped_kl",))
    examples = [data[i] for i in range(len(data))]
    return sum(int(e.is_label.sum()) for e in examples), sum(e.aligned for e in examples)


def test_every_label_with_bytes_has_a_record_at_its_own_start(place: Path, teacher: Path) -> None:
    store = logitstore.open_store(place / "store")
    (at_boundaries,) = store.boundaries.values()
    labels, ordinary = labels_and_aligned(store)
    same, aligned = labels_and_aligned(at_boundaries)
    assert same == labels
    assert ordinary < 0.95 * labels < aligned
    data = rows_file(
        place / "pairs.jsonl",
        *({"prompt": t[:9], "completion": t[9:]} for t in tiny.corpus()[:30]),
    )
    pairs = logitstore.capture(
        teacher, str(data), place / "pairs", top_k=400, boundaries_of=str(place / "student")
    )
    (of_pairs,) = pairs.boundaries.values()
    assert len(set(labels_and_aligned(of_pairs))) == 1


def test_in_conversations_each_side_has_its_own_template_and_every_label_a_record(
    tmp_path: Path,
) -> None:
    theirs, ours = templates.chatml(), templates.gemma()
    tiny.save(tmp_path / "t", tiny.llama(len(theirs)), theirs)
    tiny.save(tmp_path / "s", tiny.llama(len(ours)), ours)
    talks = [
        templates.turns("Who reads?", text, "And then?", "A student writes it.")
        for text in tiny.corpus()[:6]
    ]
    data = rows_file(tmp_path / "talk.jsonl", *({"messages": talk} for talk in talks))
    store = logitstore.capture(
        tmp_path / "t", str(data), tmp_path / "out", top_k=8, boundaries_of=str(tmp_path / "s")
    )
    (at_boundaries,) = store.boundaries.values()
    reader = ByteTokenizer(ours)
    template = ChatTemplate.of(ours, reader)
    dataset = StoreDataset(at_boundaries, reader, ("mapped_kl",), template=template)
    examples = [dataset[i] for i in range(len(dataset))]
    labels = sum(int(e.is_label.sum()) for e in examples)
    assert sum(e.aligned for e in examples) == labels > 60
    (tmp_path / "other.jinja").write_text(templates.CHATML)
    args = CachedTeacherConfig(
        output_dir=str(tmp_path / "never"),
        store=str(tmp_path / "out"),
        boundaries=True,
        chat_template_path=str(tmp_path / "other.jinja"),
        use_cpu=True,
    )
    model = tiny.llama(len(ours))
    with pytest.raises(MismatchError, match="of this student with chat template"):
        CachedTeacherTrainer(model=model, args=args, processing_class=ours)


def test_a_run_learns_from_them_and_without_the_flag_from_the_ordinary_records(
    place: Path, caplog: pytest.LogCaptureFixture
) -> None:
    without = trainer(place, boundaries=False)
    assert advice.BOUNDARIES not in caplog.text
    with_them = trainer(place)
    assert advice.BOUNDARIES in caplog.text
    outer = logitstore.open_store(place / "store")
    assert without.store.digest == outer.digest
    assert with_them.store.digest == next(iter(outer.boundaries.values())).digest
    with_them.train()
    without.train()
    shares = [t.last_report["covered_fraction"] for t in (with_them, without)]
    assert shares[0] > 0.98 > shares[1]


@pytest.mark.filterwarnings("ignore:wrong labels")
@pytest.mark.parametrize("kind", ["events", "counted", "p_kl_weighted", "mined"])
def test_every_map_that_sends_tokens_takes_them(place: Path, kind: str) -> None:
    assert trainer(place, map=kind, max_steps=1).train().metrics["train_loss"] > 0


def test_a_loss_beside_it_that_asks_nothing_there_is_what_it_is_without_them(place: Path) -> None:
    store, student = logitstore.open_store(place / "store"), ByteTokenizer(tiny.unigram())
    losses = ("mapped_kl", "alm", "uld")
    plain = StoreDataset(store, student, losses)
    asked = StoreDataset(store.boundaries_of(student.fingerprint), student, losses)
    for name in losses:
        one, other = plain[3].teacher[name], asked[3].teacher[name]
        is_same = all(np.array_equal(one[key], other[key]) for key in one)
        assert is_same == (name != "mapped_kl")


def test_losses_that_ask_nothing_there_do_not_take_them(place: Path) -> None:
    for name in ("alm", "uld", "alm,uld", "ce"):
        with pytest.raises(InputError, match=f"--boundaries: {name.replace(',', ', ')} would"):
            trainer(place, loss=name)
    with pytest.raises(InputError, match="--boundaries: a strict mapped_kl"):
        trainer(place, loss="mapped_kl", map="strict")


def test_coverage_says_what_is_known_of_them_where_a_store_has_them(place: Path) -> None:
    said = {
        name: table(of_pair(str(place / name), str(place / "student"), sequences=2))
        for name in ("store", "bare")
    }
    words = " ".join(said["store"].split())
    assert f"boundaries {advice.BOUNDARIES}." in words
    assert "boundaries  " not in said["bare"]


def test_a_store_without_them_is_refused(place: Path) -> None:
    with pytest.raises(MismatchError, match="has no records at the boundaries of"):
        trainer(place, store=str(place / "bare"))
    with pytest.raises(MismatchError, match="bare: has no records at the boundaries of"):
        trainer(place, eval_store=str(place / "bare"))


def test_a_finished_run_says_what_it_learnt_from(place: Path, tmp_path: Path) -> None:
    from distill.student.arguments import StudentArguments
    from distill.training.run import train

    config = CachedTeacherConfig(
        output_dir=str(tmp_path / "out"), store=str(place / "store"), boundaries=True,
        max_steps=1, use_cpu=True,
    )  # fmt: skip
    train(config, StudentArguments(model_name_or_path=str(place / "student")))
    run = json.loads((tmp_path / "out" / "results.json").read_text())
    assert run["boundaries"] is True
    inner = next(iter(logitstore.open_store(place / "store").boundaries.values()))
    assert run["store_digest"] == inner.digest
