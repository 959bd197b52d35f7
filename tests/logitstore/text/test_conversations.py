"""Conversations and token rows, the whole way: dataset -> capture -> store -> student."""

from __future__ import annotations

import json
import pickle
from contextlib import suppress
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch

import logitstore
from distill.alignment.align import align
from distill.data.ragged import rectangles, tensors_of
from distill.data.targets import student_spans, teacher_spans
from distill.training.command_line import parse
from logitstore.cli.app import main
from logitstore.errors import InputError
from logitstore.rows.dataset import load_rows
from logitstore.testing import tiny
from tests.kit import templates
from tests.kit.talks import TALKS, capture, dataset_of, save_families, trainer_of
from tests.kit.templates import FAMILIES, turns


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return save_families(tmp_path_factory.mktemp("models"))


SHAPES: dict[str, list[dict[str, Any]]] = {
    "text": [{"text": "The sky is blue."}, {"text": "今日も雨です。"}],
    "prompt_completion": [{"prompt": "The sky is", "completion": " blue."}],
    "messages": [{"messages": talk} for talk in TALKS],
    "conversational_prompt_completion": [
        {"prompt": talk[:-1], "completion": talk[-1:]} for talk in TALKS
    ],
}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.filterwarnings("ignore:wrong labels")  # of vocabularies of a few hundred tokens
def test_every_documented_dataset_shape_of_trl_is_captured_and_trained_on(
    folders: dict[str, Path], shape: str, tmp_path: Path
) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in SHAPES[shape]))
    store = capture(folders["llama3"], str(path), tmp_path / "store")
    assert {store.text(i).status for i in range(len(store))} == {"ok"}
    for student in ("llama3", "mistral"):
        trainer = trainer_of(folders[student], store, tmp_path / student, learning_rate=1e-3)
        before = trainer.evaluate()
        trained = trainer.train()
        assert trained.metrics["train_skipped_sequences"] == 0
        assert trainer.evaluate()["eval_ce_loss"] < before["eval_ce_loss"]
        assert before["eval_covered_fraction"] == pytest.approx(1)


@pytest.mark.parametrize("supervise", ["all", "last"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_student_that_is_its_teacher_has_nothing_to_learn_from_a_conversation(
    folders: dict[str, Path], family: str, supervise: str, tmp_path: Path
) -> None:
    rows = [{"messages": talk} for talk in TALKS]
    store = capture(folders[family], rows, tmp_path / "store", supervise=supervise)
    # Where no entry is, there is the text to learn.
    trainer = trainer_of(folders[family], store, tmp_path / "out", uncovered="scale")
    found = trainer.evaluate()
    assert found["eval_uld_loss"] <= store.fidelity.l1_max
    assert found["eval_mapped_kl_loss"] <= 1e-4
    assert found["eval_covered_fraction"] == 1
    said = [[m["content"] for m in talk if m["role"] == "assistant"] for talk in TALKS]
    for i, contents in enumerate(said):
        kept = contents if supervise == "all" else contents[-1:]
        assert store.text(i).supervised_bytes == "".join(kept).encode()
        assert (store[i].byte_lengths == 0).sum() == len(kept)  # the ends of its turns


@pytest.mark.parametrize("student", FAMILIES)
@pytest.mark.parametrize("teacher", FAMILIES)
def test_across_templates_every_byte_and_every_turn_end_is_aligned(
    folders: dict[str, Path], teacher: str, student: str, tmp_path: Path
) -> None:
    store = capture(folders[teacher], [{"messages": t} for t in TALKS], tmp_path / "store")
    data = dataset_of(folders[student], store)
    assert len(data) == len(TALKS)
    for i in range(len(data)):
        line, records, example = store.text(i), store[i], data[i]
        assert example.aligned == example.is_label.sum()
        tokens, *_ = data.reader.read(
            line, teacher_spans(records, line, store.spec.eos_ids, data.teacher)
        )
        assert tokens is not None
        ours = teacher_spans(records, line, store.spec.eos_ids, data.teacher)
        theirs = student_spans(tokens)
        found = align(ours, theirs)
        covered = sum(int(ours.lengths[a:b].sum()) for a, b in found.groups[:, :2].tolist())
        assert covered == len(line.supervised_bytes)
        ends = {(t, s) for t, s in found.strict.tolist() if ours.is_eos[t] and theirs.is_eos[s]}
        assert len(ends) == ours.is_eos.sum() == theirs.is_eos.sum()
        assert len(ends) == sum(m["role"] == "assistant" for m in TALKS[i])


def test_a_student_whose_template_changes_the_text_leaves_it_out_and_counts_it(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    talks = [turns("a", "Loud?"), turns("a", "42"), turns("a", "7", "c", "d")]
    store = capture(folders["chatml"], [{"messages": t} for t in talks], tmp_path / "store")
    loud = tmp_path / "loud"
    tokenizer = templates.gemma()
    tokenizer.chat_template = templates.GEMMA.replace("| trim", "| upper")
    tiny.save(loud, tiny.llama(len(tokenizer)), tokenizer)
    data = dataset_of(loud, store)
    assert [data[i].text_changed for i in range(3)] == [True, False, True]
    assert [data[i].skipped for i in range(3)] == [True, False, True]
    how = {"max_steps": -1, "num_train_epochs": 1, "max_lost": 1}
    trained = trainer_of(loud, store, tmp_path / "out", **how).train()
    assert trained.metrics["train_template_changed_text"] == 2


@pytest.mark.parametrize(("teacher", "student"), [("chatml", "gemma"), ("gemma", "chatml")])
def test_white_space_that_one_side_alone_writes_costs_no_row(
    folders: dict[str, Path], tmp_path: Path, teacher: str, student: str
) -> None:
    """One trims, the other does not: labels lie on the words, and ends on the ends, of both."""
    talks = [turns("a", "  trimmed? "), turns("a", "x = 1\n", "c", "y = 2\n"), turns("a", " \n")]
    store = capture(folders[teacher], [{"messages": t} for t in talks], tmp_path / "store")
    data = dataset_of(folders[student], store)
    for i, talk in enumerate(talks):
        line, records = store.text(i), store[i]
        ours = teacher_spans(records, line, store.spec.eos_ids, data.teacher)
        tokens = data.reader.read(line, ours).tokens
        assert tokens is not None
        theirs = student_spans(tokens)
        own = line.supervised_bytes
        words = [own[a : a + n] for a, n in zip(theirs.starts, theirs.lengths, strict=True)]
        said = "".join(m["content"].strip() for m in talk if m["role"] == "assistant")
        assert b"".join(words).replace(b" ", b"") == said.encode().replace(b" ", b"")
        pairs = align(ours, theirs).strict
        ends = [(t, s) for t, s in pairs.tolist() if ours.is_eos[t] and theirs.is_eos[s]]
        assert len(ends) == len(talk) // 2 == ours.is_eos.sum() == theirs.is_eos.sum()
        assert not data[i].skipped


def test_a_students_template_that_refuses_the_rows_is_an_error_before_training(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    rows = [{"messages": turns("a", "b", system="Be short.")}]
    store = capture(folders["chatml"], rows, tmp_path / "store")
    with pytest.raises(InputError, match=r"store: row 0: .*System role not supported.*--chat_temp"):
        trainer_of(folders["gemma"], store, tmp_path / "out")
    with pytest.raises(InputError, match=r"the dataset: row 0: .*System role not supported"):
        capture(folders["gemma"], rows, tmp_path / "other")
    assert not (tmp_path / "out").exists()


def test_another_template_can_be_given_to_both_sides(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    plain = tiny.save(tmp_path / "plain", tiny.llama(300), tiny.byte_bpe())
    rows = [{"messages": t} for t in TALKS]
    with pytest.raises(InputError, match=r"no chat template.*--chat-template-path"):
        capture(plain, rows, tmp_path / "no")
    assert not (tmp_path / "no").exists()
    file = tmp_path / "plain.jinja"
    file.write_text(
        "{% for m in messages %}{{ m.role }}{{ mark }} {{ m.content }}<|endoftext|>\n{% endfor %}"
        "{% if add_generation_prompt %}assistant{{ mark }} {% endif %}"
    )
    settings = {"chat_template_path": str(file), "chat_template_kwargs": '{"mark": ":"}'}
    store = capture(plain, rows, tmp_path / "store", **settings)
    assert store.text(0).segments[0].text == "user: Hi!<|endoftext|>\nassistant: "
    rendering = store.spec.rendering
    assert rendering["kind"] == "conversation"
    assert rendering["chat_template_kwargs"] == {"mark": ":"}
    assert rendering["supervise"] == "all"
    with pytest.raises(InputError, match=r"no chat template.*--chat_template_path"):
        trainer_of(plain, store, tmp_path / "out")
    trainer = trainer_of(plain, store, tmp_path / "out", **settings)
    assert trainer.evaluate()["eval_uld_loss"] <= store.fidelity.l1_max
    assert trainer.processing_class.chat_template == file.read_text()  # saved with the student


def test_a_store_made_with_another_template_is_not_resumed(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    rows = [{"messages": t} for t in TALKS]
    capture(folders["chatml"], rows, tmp_path / "store")
    with pytest.raises(logitstore.errors.MismatchError, match=r"rendering\.supervise"):
        capture(folders["chatml"], rows, tmp_path / "store", supervise="last")


@pytest.mark.parametrize("flag", ["supervise", "chat_template_path", "chat_template_kwargs"])
def test_flags_of_conversations_are_refused_where_they_would_do_nothing(
    folders: dict[str, Path], flag: str, tmp_path: Path
) -> None:
    value = "last" if flag == "supervise" else "{}"
    with pytest.raises(InputError, match=rf"--{flag.replace('_', '-')} .*would have no effect"):
        capture(folders["chatml"], SHAPES["text"], tmp_path / "store", **{flag: value})
    if flag != "supervise":
        store = capture(folders["chatml"], SHAPES["text"], tmp_path / "store")
        with pytest.raises(InputError, match=rf"--{flag} .*would have no effect"):
            trainer_of(folders["chatml"], store, tmp_path / "out", **{flag: value})


def test_tools_and_variables_of_a_row_reach_both_templates(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    tools = [{"type": "function", "function": {"name": "add", "parameters": {}}}]
    rows = [
        {"messages": turns("a", "b"), "tools": json.dumps(tools)},
        {"messages": turns("a", "b"), "tools": None},
    ]
    store = capture(folders["chatml_marked"], rows, tmp_path / "store")
    assert '"name": "add"' in store.text(0).segments[0].text
    assert store.text(1).segments[0].text.startswith("<|im_start|>user")
    trainer = trainer_of(folders["chatml_marked"], store, tmp_path / "out")
    assert trainer.evaluate()["eval_uld_loss"] <= store.fidelity.l1_max
    assert json.loads(str(store.text(0).messages))["tools"] == tools


def test_rows_of_conversations_have_a_digest_that_no_file_format_changes(tmp_path: Path) -> None:
    rows = [{"messages": t} for t in TALKS]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    datasets.Dataset.from_list(rows).to_parquet(tmp_path / "rows.parquet")
    found = [load_rows(p) for p in (path, tmp_path / "rows.parquet")]
    assert found[0].digest() == found[1].digest()
    assert found[0].text_bytes().tolist() == found[1].text_bytes().tolist()
    assert load_rows(datasets.Dataset.from_list(rows[::-1])).digest() != found[0].digest()


@pytest.mark.parametrize("family", ["chatml", "llama3", "gemma"])
def test_a_long_conversation_in_windows_is_learnt_from_once(
    folders: dict[str, Path], family: str, tmp_path: Path
) -> None:
    long = turns(*(text for talk in TALKS * 2 for m in talk for text in [m["content"]]))
    store = capture(folders[family], [{"messages": long}], tmp_path / "s", max_length=64)
    assert len(store) > 4
    assert {store.text(i).status for i in range(len(store))} == {"split"}
    for student in (family, "mistral"):
        data = dataset_of(folders[student], store)
        whole = data.reader.template.segments(  # type: ignore[union-attr]
            logitstore.text.conversation.Conversation.from_json(str(store.text(0).messages), "row"),
            "row",
        )
        tokens = data.reader.tokenizer.encode(whole, add_eos=False, add_prefix=False)
        examples = [data[i] for i in range(len(data))]
        assert not any(e.skipped for e in examples)
        ids = np.concatenate([e.token_ids[e.is_label] for e in examples])
        assert ids.tolist() == tokens.token_ids[tokens.has_record].tolist()
        short = dataset_of(folders[student], store, max_length=100)
        for i in range(len(short)):
            # As much context as there is room for, behind the BOS that a template writes.
            cut = short[i]
            whole_ids, ids = examples[i].token_ids, cut.token_ids
            assert len(ids) == min(len(whole_ids), 100)
            bos = int(whole_ids[0] == data.reader.tokenizer.bos_token_id)
            assert ids.tolist() == [*whole_ids[:bos], *whole_ids[len(whole_ids) - len(ids) + bos :]]
            assert cut.is_label.sum() == examples[i].is_label.sum()
        if student == family:
            assert all(e.aligned == e.is_label.sum() for e in examples)


def test_at_the_end_of_a_turn_the_students_own_end_is_taught(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    """ChatML's tokenizer ends texts with another token than its template ends turns with."""
    store = capture(folders["gemma"], [{"messages": TALKS[1]}], tmp_path / "s", top_k=600)
    data = dataset_of(folders["chatml"], store)
    example, tokenizer = data[0], templates.chatml()
    labels = example.token_ids[example.is_label]
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert end != tokenizer.eos_token_id
    at_end = np.isin(example.teacher["mapped_kl"]["index"], np.flatnonzero(labels == end))
    assert at_end.sum() == 3
    ids = rectangles(tensors_of(example.teacher["mapped_kl"]))["entry_ids"].numpy()
    mapping = data.mappings["mapped_kl"]
    assert mapping is not None
    end_event, eos_event = mapping.made.event_of(np.array([end, tokenizer.eos_token_id]))
    assert (ids[at_end] == end_event).any(1).all()
    assert not (ids == eos_event).any()


def test_flags_and_files_say_the_same_about_templates(tmp_path: Path) -> None:
    given = {"enable_thinking": False}
    base = ["--model_name_or_path", "s", "--store", "x", "--output_dir", str(tmp_path / "o")]
    config, _ = parse([*base, "--chat_template_kwargs", json.dumps(given)])
    assert config.chat_template_kwargs == given
    file = tmp_path / "run.yaml"
    file.write_text("chat_template_kwargs: {enable_thinking: false}\nchat_template_path: a.jinja\n")
    config, _ = parse([*base, "--config", str(file)])
    assert (config.chat_template_kwargs, config.chat_template_path) == (given, "a.jinja")
    with pytest.raises(InputError, match=r"--chat_template_kwargs \[1\]: expected a JSON object"):
        parse([*base, "--chat_template_kwargs", "[1]"])


def test_the_command_takes_the_flags_of_conversations(
    folders: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path, other = tmp_path / "rows.jsonl", tmp_path / "other.jinja"
    path.write_text("".join(json.dumps({"messages": t}) + "\n" for t in TALKS))
    other.write_text("{{ greeting }}" + templates.CHATML)
    command = ["logitstore", "capture", str(folders["chatml"]), str(path), "--out"]
    command += [str(tmp_path / "store"), "--supervise", "last", "--chat-template-path", str(other)]
    command += ["--chat-template-kwargs", '{"greeting": "Hello "}', "--json"]
    monkeypatch.setattr("sys.argv", command)
    with suppress(SystemExit):
        main()
    facts = json.loads(capsys.readouterr().out)
    assert facts["rendering"]["supervise"] == "last"
    line = logitstore.open_store(tmp_path / "store").text(1)
    assert line.segments[0].text.startswith("Hello <|im_start|>user")
    assert line.supervised_bytes == TALKS[1][-1]["content"].encode()


def test_workers_read_conversations_too(folders: dict[str, Path], tmp_path: Path) -> None:
    store = capture(folders["gemma"], [{"messages": t} for t in TALKS], tmp_path / "store")
    data = dataset_of(folders["mistral"], store)
    again = pickle.loads(pickle.dumps(data.reader))
    for i in range(len(data)):
        line = store.text(i)
        spans = teacher_spans(store[i], line, store.spec.eos_ids, data.teacher)
        ours, theirs = data.reader.read(line, spans).tokens, again.read(line, spans).tokens
        assert ours is not None
        assert theirs is not None
        assert ours.token_ids.tolist() == theirs.token_ids.tolist()


def test_rendering_needs_no_torch() -> None:
    assert torch is not None  # of this process; the rest holds in a fresh one
    import subprocess
    import sys

    code = (
        "import sys, logitstore.text.chat_template, logitstore.text.token_ids; "
        "print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
