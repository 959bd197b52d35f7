"""The experiment with a real teacher: what it asks, whom it compares, and that it runs at all."""

import json
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer

from logitstore import open_store
from logitstore.info import facts
from logitstore.testing import stores, tiny
from tests.kit.made_stores import put
from tools import workers
from tools.experiment_real_page import KEPT, MARK, SAID, Line, goals, grouped, keep, line_of, tables
from tools.real import cost, parts
from tools.real.bodies import embedding_for, pieces_of, same_tokens, student_of
from tools.real.questions import Question, _of_source, _of_topic, part_of
from tools.real.settings import CONTENDERS, CPU, GPU, QUICK, SMALL, Job, Setting, jobs
from tools.real.sizes import bytes_per_token
from tools.workers import Run, lacking

WORK = "tools.real.students"

# ---- questions ----

SOURCE = '''
def wait(event, timeout=2.5, *, loop=None):
    """Wait until somebody sets the event, and no longer than so many seconds."""

def pop(queue):
    """Remove an item of the queue; raise an IndexError if there is none at all."""

def find(text):
    """Raises KeyError or raises ValueError: two exceptions are no single answer."""

def split(path):
    """Cut a path into its parts.

    Changed in version 3.12: it takes bytes, too.
    """

def join(*, sep):
    """
    Return the parts as one text: whatever they are.
    """

class Pool(Executor):
    """An executor that has several workers, which share its queue."""

class _Hidden(Executor):
    """A class that nobody is to know of, whatever it does here."""

def bare(a, b): pass
'''


def asked_of(source: str) -> dict[str, Question]:
    return {q.question: q for q in _of_source("lib", source)}


def test_every_rule_finds_what_stands_in_the_paragraph() -> None:
    found = asked_of(SOURCE)
    assert {name: each.answer for name, each in found.items()} == {
        "What is the default of timeout?": "2.5",
        "Which exception does pop raise?": "IndexError",
        "What is the first argument of find called?": "text",
        "In which version was split changed?": "3.12",
        "What is the first argument of split called?": "path",
        "What is the first argument of pop called?": "queue",
        "What is the first argument of wait called?": "event",
        "What does join return?": "parts as one text",
        "Which class does Pool derive from?": "Executor",
    }
    for each in found.values():
        assert each.answer in each.paragraph
        assert each.paragraph in each.prompt
        assert each.question in each.prompt


def test_a_topic_is_asked_when_things_changed() -> None:
    text = "The *with* statement.\n\nChanged in version 3.1: Support for several\ncontexts.\n\nEnd."
    (found,) = _of_topic("topics/with", text)
    assert found.question == ("In which version was this changed: Support for several contexts?")
    assert (found.answer, found.module) == ("3.1", "topics/with")
    assert found.paragraph in text


def test_a_paragraph_that_is_cut_before_its_answer_asks_something_else() -> None:
    long = '"""Remove.\n\n' + "    Much more is said of it here, line by line.\n" * 20
    source = f'def pop(queue):\n    {long}    It raises IndexError.\n    """\n'
    (found,) = asked_of(source).values()
    assert found.kind == "argument"
    assert len(found.paragraph) <= 500


def test_a_source_that_does_not_parse_has_no_question() -> None:
    assert asked_of("def f(:\n") == {}
    assert asked_of("\0") == {}


def test_modules_are_dealt_out_by_their_shares_and_always_alike() -> None:
    shares = {"a": 0.75, "b": 0.25}
    dealt = [part_of(f"module{i}", shares) for i in range(2_000)]
    assert dealt.count("a") / 2_000 == pytest.approx(0.75, abs=0.04)
    assert dealt == [part_of(f"module{i}", shares) for i in range(2_000)]


# ---- students of a teacher ----


def test_a_student_with_every_layer_and_the_same_embedding_is_its_teacher() -> None:
    tokenizer = tiny.byte_bpe()
    teacher = tiny.llama(len(tokenizer), seed=3, tie_word_embeddings=True)
    weights = teacher.get_input_embeddings().weight.detach()
    ids = torch.tensor([[5, 6, 7, 8]])
    same = student_of(teacher, tokenizer, weights, 1)
    torch.testing.assert_close(same(ids).logits, teacher(ids).logits)
    fewer = student_of(teacher, tokenizer, weights, 2)
    assert len(fewer.model.layers) == (len(teacher.model.layers) + 1) // 2


def test_a_token_gets_the_mean_of_its_pieces() -> None:
    whole, other = tiny.byte_bpe(300), tiny.byte_bpe(420)
    teacher = tiny.llama(len(whole), seed=3, tie_word_embeddings=True)
    weights = teacher.get_input_embeddings().weight.detach()
    made, pieces = embedding_for(teacher, whole, other), pieces_of(whole, other)
    assert made.shape == (len(other), weights.shape[1])
    longer = next(i for i, ids in enumerate(pieces) if len(ids) > 1)
    torch.testing.assert_close(made[longer], weights[pieces[longer]].mean(0))
    text = other.decode([longer])
    assert whole(text, add_special_tokens=False)["input_ids"] == pieces[longer]
    shared = next(i for i, ids in enumerate(pieces) if len(ids) == 1)
    assert torch.equal(made[shared], weights[pieces[shared][0]])
    assert pieces[other.eos_token_id] == [whole.eos_token_id]


# ---- a whole run, of a tiny teacher ----


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made: Path = tmp_path_factory.mktemp("real")
    parts.prepare(made, QUICK)
    return made


def test_no_held_out_module_is_in_any_other_part(folder: Path) -> None:
    train, heldout = (parts.asked(folder, part) for part in ("train", "heldout"))
    assert len(train) == QUICK.prompts["train"]
    assert len(heldout) == QUICK.prompts["heldout"]
    assert {part_of(q.module, parts.SHARES) for q in heldout} == {"heldout"}
    assert "heldout" not in {part_of(q.module, parts.SHARES) for q in train}


def test_a_trimmed_student_of_the_teacher_keeps_its_ids_in_order(folder: Path) -> None:
    whole, own = (
        AutoTokenizer.from_pretrained(folder / "tokenizers" / n) for n in ("whole", "pruned")
    )
    ids = same_tokens(whole, own)
    assert len(ids) == len(own) < len(whole)
    assert whole.convert_ids_to_tokens(list(ids)) == own.convert_ids_to_tokens(range(len(own)))
    assert list(ids) == sorted(ids)


RUN = [
    Job(Setting("pruned", "answers"), "ce", 0),
    Job(Setting("pruned", "answers"), "the teacher itself", 0),
    Job(Setting("pruned", "answers"), "live KL", 0),
    Job(Setting("pruned", "text"), "tail_kl, half the rows", 0),
    Job(Setting("foreign", "answers"), "the default", 0),
    Job(Setting("new", "text"), "untrained", 0),
    Job(Setting("foreign", "text"), "unknown", 0),
]


def test_students_of_every_kind_are_healed_trained_and_measured(
    folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    results = tmp_path / "results.jsonl"
    monkeypatch.setitem(CONTENDERS, "unknown", CONTENDERS["alm"]._replace(options={"no_such": 1}))
    monkeypatch.setattr(workers, "_left_out", set())  # as in a process that has said nothing
    run = Run(WORK, folder, QUICK, results, "cpu", 1, time.time() + 600, tmp_path)
    monkeypatch.setattr(workers, "_run", run)
    before = dict.fromkeys(job.before for job in RUN if job.before)
    assert [workers._before(*each) for each in before] == [1, 1]
    assert [workers._before(*each) for each in before] == [0, 0]
    assert [workers._group([job]) for job in RUN] == [1] * (len(RUN) - 1) + [0]
    assert "left out: foreign/text/unknown/0" in capfd.readouterr().err
    ce, teacher, live, half, default, new = map(json.loads, results.read_text().splitlines())
    assert live["last"]["ce_loss"] > 0
    assert default["last"]["mapped_kl_loss"] > 0
    assert half["last"]["covered_fraction"] == 1.0
    for found in (ce, teacher, live, default):
        assert 0 <= found["token_f1"] <= 1 >= found["rule_exact_match"]
        assert found["bits_per_byte"] > 0 <= found["calibration"]
    assert teacher["token_f1"] == 1.0  # its own answers, written again
    assert "token_f1" not in half
    assert (new["start"], new["steps"]) == ("new", 0)
    assert ce["start"] == parts.start_of(folder, RUN[0].setting, 0) == live["start"]
    assert tables([ce, teacher, live, half, default, new]).count("### ") == 4
    starts = {job: parts.start_of(folder, job.setting, job.heal) for job in RUN}
    assert lacking(run, [RUN], starts.__getitem__) == [RUN[-1:]]


# ---- jobs ----


@pytest.mark.parametrize("scale", [CPU, GPU])
def test_every_contender_has_its_baseline_and_the_most_decisive_come_first(scale: Any) -> None:
    groups = jobs(scale)
    names = [job.name for group in groups for job in group]
    assert len(set(names)) == len(names)
    assert names[0] == "pruned/answers/ce/0"
    assert {f"{'/'.join(s)}/ce/{seed}" for s in scale.settings for seed in scale.seeds} <= set(
        names
    )
    is_minor = [not job.made.is_major for group in groups for job in group]
    assert is_minor == sorted(is_minor)
    assert {job.contender for group in groups for job in group} == set(CONTENDERS)


def test_the_cost_counts_every_part(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("_reading", 1.0), ("_writing", 10.0), ("_training", 3.0)):
        monkeypatch.setattr(cost, name, lambda *_, value=value: value)
    monkeypatch.setattr(cost, "_model", lambda *_: None)
    found = cost.seconds_of(QUICK)
    assert found["the teacher's answers"] == 12 * QUICK.answer_tokens * 10
    assert found["healing pruned"] == QUICK.heal.steps * QUICK.rows * 140 * 3
    cached = len([j for g in jobs(QUICK, "new/*") for j in g if j.contender != "untrained"])
    assert found["training new"] == pytest.approx(
        cached / 2 * QUICK.rates["new"].steps * QUICK.rows * (140 + 150) * 3
    )
    assert min(found.values()) > 0


# ---- the page ----


def run_of(name: str, bits: float, f1: float | None = None, start: str = "a") -> dict[str, Any]:
    about = {"start": start, "device": "cpu", "code": "c", "learning_rate": 1e-4, "steps": 9}
    measured = {"bits_per_byte": bits, "bytes_per_token": 90.0}
    return {"name": name, **about, **measured, **({} if f1 is None else {"token_f1": f1})}


def results(setting: str, **gains: float) -> list[dict[str, Any]]:
    """Three seeds of cross-entropy, and of contenders that are so much better, F1 too."""
    return [
        run_of(f"{setting}/{name.replace('_', ' ')}/{seed}", 2.0 + seed - gain, 0.5 + gain)
        for name, gain in {"ce": 0.0, **gains}.items()
        for seed in range(3)
    ]


def test_students_are_compared_with_cross_entropy_of_the_same_start_alone() -> None:
    runs = results("foreign/text", the_default=0.1)
    runs.append(run_of("foreign/text/the default/0", 9.0, start="b"))
    line = line_of(grouped(runs), Setting("foreign", "text"), "the default", "bits_per_byte")
    assert line is not None
    assert line.differences == pytest.approx([-0.1] * 3)


def test_more_is_better_of_f1_and_less_of_bits() -> None:
    found = grouped(results("foreign/answers", the_default=0.1, alm=-0.1))
    for name, verdict in (("the default", "better"), ("alm", "worse")):
        for metric in ("bits_per_byte", "token_f1"):
            line = line_of(found, Setting("foreign", "answers"), name, metric)
            assert isinstance(line, Line)
            assert line.verdict == verdict
    shown = tables(results("foreign/answers", the_default=0.1))
    assert (
        "| the default | 3 | 2.9000 | **-0.1000 ± 0.0000** | 0.6000 | **+0.1000 ± 0.0000** |"
        in shown
    )


def test_goals_are_judged_by_the_runs_that_there_are() -> None:
    runs = [
        {**run, "name": run["name"].replace("tail kl", "tail_kl")}
        for run in results("pruned/text", **{"tail_kl": 0.09, SMALL: 0.096}, live_KL=0.1)
    ]
    found = goals([*runs, *results("foreign/text", the_default=-0.01)])
    share = "pruned, text: share of live KL's gain by"
    missed = {"value": pytest.approx(0.9), "target": 0.95, "met": False}
    assert found[f"{share} tail_kl"] == missed
    assert found[f"{share} {SMALL}"] == {**missed, "value": pytest.approx(0.96), "met": True}
    assert found[f"pruned, text: bytes a token of the store for {SMALL}"]["met"]
    assert not found["foreign, text: seeds in which the default beats ce"]["met"]
    assert goals([]) == {}
    unsure = [run for run in runs if not run["name"].endswith(("live KL/1", "live KL/2"))]
    assert f"{share} tail_kl" not in goals(unsure)


def test_the_bytes_of_a_store_with_fewer_entries_are_those_of_one_written_so(
    tmp_path: Path,
) -> None:
    for k in (12, 4):
        put(tmp_path / str(k), stores.spec(top_k=k), (0, 150))
    whole, small = (open_store(tmp_path / str(k)) for k in (12, 4))
    assert bytes_per_token(whole, 4) == pytest.approx(bytes_per_token(small), rel=0.02)
    assert bytes_per_token(small) < 0.8 * bytes_per_token(whole)
    about = facts(whole)["bytes_per_token"]
    assert bytes_per_token(whole) == pytest.approx(about, rel=0.1)  # and the archive around it


def test_conclusions_stay_when_tables_are_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = tmp_path / "said.md"
    monkeypatch.setattr("tools.experiment_real_page.KEPT", tmp_path / "kept.json")
    monkeypatch.setattr("tools.experiment_real_page.SAID", said)
    for name, gain in (("results", 0.1), ("results-gpu", 0.2)):
        runs = results("foreign/text" if gain == 0.1 else "new/text", alm=gain)
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(run) + "\n" for run in runs))
    first = keep(tmp_path)
    said.write_text("Conclusions.\n\n" + said.read_text())
    assert keep(tmp_path) == first
    assert said.read_text().startswith("Conclusions.\n\n<!--")
    assert len(json.loads((tmp_path / "kept.json").read_text())) == 12


def test_what_is_kept_has_the_tables_of_its_runs() -> None:
    said = SAID.read_text(encoding="utf-8")
    assert said.split(MARK)[1].strip() == tables(json.loads(KEPT.read_text()))
