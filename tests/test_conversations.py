"""Conversations and token rows, the whole way: dataset -> capture -> store -> student."""

from __future__ import annotations

import json
import pickle
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import logitstore
from distill.align import Spans, align
from distill.config import CachedTeacherConfig, parse
from distill.data import StoreDataset
from distill.ragged import rectangles, tensors_of
from distill.targets import teacher_spans
from distill.trainer import CachedTeacherTrainer
from logitstore.capture.reading import RowReader
from logitstore.capture.renderer import Renderer
from logitstore.capture.rows import load_rows
from logitstore.capture.windows import limits_of
from logitstore.cli import main
from logitstore.errors import InputError
from logitstore.render import ChatTemplate
from logitstore.store import LogitStore
from logitstore.token_rows import TokenRow, for_student, read_tokens
from logitstore.tokens import ByteTokenizer
from tests import templates, tiny
from tests.templates import FAMILIES, turns

TALKS = [
    turns("Hi!", "The teacher reads."),
    turns("Hi!", "Hello, 12 of 345.", "And?", "Nothing.", "Why?", "It is so, the old river."),
    turns("Hi!", "", "And?", "Well."),
    turns("Hi!", "Hello.", "And?", ""),
    turns("🙂?", "Größe 👩‍👩‍👧‍👦 e\u0301", "東京は", "今日も雨です。"),
]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A tiny model of every family."""
    made = {}
    for seed, (name, make) in enumerate(FAMILIES.items()):
        tokenizer = make()
        model = tiny.llama(len(tokenizer), seed=seed)
        made[name] = tiny.save(tmp_path_factory.mktemp("model") / name, model, tokenizer)
    return made


def capture(teacher: Path, rows: Any, out: Path, **settings: Any) -> LogitStore:
    if isinstance(rows, list):
        rows = datasets.Dataset.from_list(rows)
    return logitstore.capture(teacher, rows, out, **({"top_k": 8} | settings))


def trainer_of(folder: Path, store: LogitStore, out: Path, **settings: Any) -> Any:
    settings = {"loss": "uld:1,mapped_kl:1", "max_steps": 2, "logging_steps": 1} | settings
    args = CachedTeacherConfig(
        output_dir=str(out),
        store="given",
        eval_store="given",
        use_cpu=True,
        disable_tqdm=True,
        save_strategy="no",
        **settings,
    )
    model = AutoModelForCausalLM.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    return CachedTeacherTrainer(model, args, store, store, processing_class=tokenizer)


def dataset_of(folder: Path, store: LogitStore, **settings: Any) -> StoreDataset:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    reader = ByteTokenizer(tokenizer)
    template = None
    if store.spec.rendering["kind"] == "conversation":
        template = ChatTemplate.of(tokenizer, reader)
    return StoreDataset(store, reader, ("uld", "mapped_kl"), template=template, **settings)


SHAPES: dict[str, list[dict[str, Any]]] = {
    "text": [{"text": "The sky is blue."}, {"text": "今日も雨です。"}],
    "prompt_completion": [{"prompt": "The sky is", "completion": " blue."}],
    "messages": [{"messages": talk} for talk in TALKS],
    "conversational_prompt_completion": [
        {"prompt": talk[:-1], "completion": talk[-1:]} for talk in TALKS
    ],
}


@pytest.mark.parametrize("shape", SHAPES)
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
        assert before["eval_aligned_fraction"] == pytest.approx(1)


@pytest.mark.parametrize("supervise", ["all", "last"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_student_that_is_its_teacher_has_nothing_to_learn_from_a_conversation(
    folders: dict[str, Path], family: str, supervise: str, tmp_path: Path
) -> None:
    rows = [{"messages": talk} for talk in TALKS]
    store = capture(folders[family], rows, tmp_path / "store", supervise=supervise)
    trainer = trainer_of(folders[family], store, tmp_path / "out")
    found = trainer.evaluate()
    assert found["eval_uld_loss"] <= store.fidelity.l1_max
    assert found["eval_mapped_kl_loss"] <= 1e-4
    assert found["eval_aligned_fraction"] == 1
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
        tokens, _ = data.reader.read(line, teacher_spans(records, line, store.spec.eos_ids))
        assert tokens is not None
        ours = teacher_spans(records, line, store.spec.eos_ids)
        theirs = Spans(
            *(
                getattr(tokens, name)[tokens.has_record]
                for name in ("byte_starts", "byte_lengths", "is_eos")
            )
        )
        found = align(ours, theirs)
        covered = sum(int(ours.lengths[a:b].sum()) for a, b in found.groups[:, :2].tolist())
        assert covered == len(line.supervised_bytes)
        ends = {(t, s) for t, s in found.strict.tolist() if ours.is_eos[t] and theirs.is_eos[s]}
        assert len(ends) == ours.is_eos.sum() == theirs.is_eos.sum()
        assert len(ends) == sum(m["role"] == "assistant" for m in TALKS[i])


def test_a_student_whose_template_changes_the_text_leaves_it_out_and_counts_it(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    talks = [turns("a", "  trimmed? "), turns("a", "kept"), turns("a", "b", "c", "d\n")]
    store = capture(folders["chatml"], [{"messages": t} for t in talks], tmp_path / "store")
    data = dataset_of(folders["gemma"], store)
    assert [data[i].text_changed for i in range(3)] == [True, False, True]
    assert [data[i].skipped for i in range(3)] == [True, False, True]
    trained = trainer_of(
        folders["gemma"], store, tmp_path / "out", max_steps=-1, num_train_epochs=1
    ).train()
    assert trained.metrics["train_template_changed_text"] == 2
    # The same text, trimmed by both, is none that has changed.
    store = capture(folders["llama3"], [{"messages": t} for t in talks], tmp_path / "trimmed")
    data = dataset_of(folders["gemma"], store)
    assert not any(data[i].skipped for i in range(3))


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
    long = turns(*(text for talk in TALKS * 3 for m in talk for text in [m["content"]]))
    store = capture(folders[family], [{"messages": long}], tmp_path / "s", max_length=64)
    assert len(store) > 4
    assert {store.text(i).status for i in range(len(store))} == {"split"}
    for student in (family, "mistral"):
        data = dataset_of(folders[student], store)
        whole = data.reader.template.segments(  # type: ignore[union-attr]
            logitstore.conversation.Conversation.from_json(str(store.text(0).messages)), "row"
        )
        tokens = data.reader.tokenizer.encode(whole, add_eos=False, add_prefix=False)
        examples = [data[i] for i in range(len(data))]
        assert not any(e.skipped for e in examples)
        ids = np.concatenate([e.token_ids[e.is_label] for e in examples])
        assert ids.tolist() == tokens.token_ids[tokens.has_record].tolist()
        short = dataset_of(folders[student], store, max_length=100)
        for i in range(len(short)):
            # As much context as there is room for, behind the BOS that a template writes.
            whole_ids, ids = examples[i].token_ids, short[i].token_ids
            assert len(ids) == min(len(whole_ids), 100)
            bos = int(whole_ids[0] == data.reader.tokenizer.bos_token_id)
            assert ids.tolist() == [*whole_ids[:bos], *whole_ids[len(whole_ids) - len(ids) + bos :]]
            assert short[i].is_label.sum() == examples[i].is_label.sum()
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
    ids = rectangles(tensors_of(example.teacher["mapped_kl"]))["ids"].numpy()
    assert (ids[at_end] == end).any(1).all()
    assert not (ids == tokenizer.eos_token_id).any()


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
        spans = teacher_spans(store[i], line, store.spec.eos_ids)
        ours, theirs = data.reader.read(line, spans).tokens, again.read(line, spans).tokens
        assert ours is not None
        assert theirs is not None
        assert ours.token_ids.tolist() == theirs.token_ids.tolist()


# ---- rows of tokens ----


def tokens_of(folder: Path, texts: Sequence[str]) -> list[dict[str, Any]]:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    return [{"input_ids": [*tokenizer(t).input_ids, tokenizer.eos_token_id]} for t in texts]


@pytest.mark.parametrize("family", FAMILIES)
def test_tokens_of_a_text_have_the_records_of_the_text(
    folders: dict[str, Path], family: str, tmp_path: Path
) -> None:
    texts = [*tiny.corpus()[:4], *tiny.corpus()[36:44]]
    of_text = capture(folders[family], [{"text": t} for t in texts], tmp_path / "text")
    of_tokens = capture(folders[family], tokens_of(folders[family], texts), tmp_path / "tokens")
    for i, text in enumerate(texts):
        a, b = of_text[i], of_tokens[i]
        for name in ("token_ids", "byte_starts", "byte_lengths"):
            np.testing.assert_array_equal(getattr(a, name), getattr(b, name))
        assert of_tokens.text(i).supervised_bytes.decode() == text
    trainer = trainer_of(folders[family], of_tokens, tmp_path / "out")
    found = trainer.evaluate()
    assert found["eval_uld_loss"] <= of_tokens.fidelity.l1_max
    assert found["eval_aligned_fraction"] == 1


@pytest.mark.parametrize("student", FAMILIES)
def test_token_rows_teach_any_student(
    folders: dict[str, Path], student: str, tmp_path: Path
) -> None:
    store = capture(
        folders["llama3"], tokens_of(folders["llama3"], tiny.corpus()[30:44]), tmp_path / "s"
    )
    data = dataset_of(folders[student], store)
    for i in range(len(data)):
        assert data[i].aligned == data[i].is_label.sum()
        line = store.text(i)
        tokens, _ = data.reader.read(line, teacher_spans(store[i], line, store.spec.eos_ids))
        assert tokens is not None
        # Its own BOS and EOS, once each, and no name of the teacher's spelt out.
        assert tokens.is_eos.tolist()[-1:] == [True]
        assert tokens.byte_lengths.sum() >= len(line.supervised_bytes) - 4  # a first token


def test_only_wanted_tokens_of_a_row_have_records(folders: dict[str, Path], tmp_path: Path) -> None:
    row = tokens_of(folders["llama3"], ["one two three four five"])[0]
    ids = row["input_ids"]
    half = len(ids) // 2
    mask = [0] * half + [1] * (len(ids) - half)
    labels = [i if m else -100 for i, m in zip(ids, mask, strict=True)]
    rows = {
        "labels": {"labels": labels},
        "completion_mask": {"completion_mask": mask},
        "assistant_masks": {"assistant_masks": [bool(m) for m in mask]},
        "both": {"completion_mask": [1] * len(ids), "assistant_masks": mask},
    }
    for name, beside in rows.items():
        store = capture(folders["llama3"], [row | beside], tmp_path / name)
        assert store[0].token_ids.tolist() == ids[half:]
        assert store.text(0).supervised_bytes == bytes(
            b"".join(ByteTokenizer(templates.llama3()).written(np.array(ids[half:-1])))
        )
        assert (
            trainer_of(folders["llama3"], store, tmp_path / f"o{name}").evaluate()["eval_uld_loss"]
            <= store.fidelity.l1_max
        )


def test_padding_is_no_part_of_a_row(folders: dict[str, Path], tmp_path: Path) -> None:
    row = tokens_of(folders["llama3"], ["one two"])[0]
    n = len(row["input_ids"])
    padded = {"input_ids": row["input_ids"] + [0] * 5, "attention_mask": [1] * n + [0] * 5}
    plain, without = (
        capture(folders["llama3"], [r], tmp_path / name) for r, name in ((row, "a"), (padded, "b"))
    )
    assert without[0].token_ids.tolist() == plain[0].token_ids.tolist()
    assert without.text(0).segments == plain.text(0).segments


def test_a_chunk_of_a_text_is_given_to_the_student_as_a_chunk(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    """No BOS before it and no EOS after it; it may begin and end inside a character."""
    ids = tokens_of(folders["llama3"], ["ab 👩‍👩‍👧‍👦🏽 cd 学生は先生の本を読みます。"])[0][
        "input_ids"
    ]
    for start in range(1, 12):
        stop = len(ids) - (1, 3, 4)[start % 3]
        chunk = ids[start:stop]
        folder = tmp_path / f"{start}-{stop}"
        store = capture(folders["llama3"], [{"input_ids": chunk}], folder)
        text = store.text(0).supervised_bytes
        records = store[0]
        assert set(records.token_ids.tolist()) <= set(chunk[1:])
        assert int((records.byte_starts + records.byte_lengths).max()) <= len(text)
        reader = ByteTokenizer(templates.llama3())
        for t in range(len(records)):
            a, n = int(records.byte_starts[t]), int(records.byte_lengths[t])
            assert reader.token_bytes[int(records.token_ids[t])] == text[a : a + n]
        example = dataset_of(folders["llama3"], store)[0]
        assert example.token_ids[0] != reader.bos_token_id
        assert example.token_ids[-1] != reader.eos_token_id


def test_packed_texts_keep_their_ends(folders: dict[str, Path], tmp_path: Path) -> None:
    """EOS between two texts is an event on both sides, and a turn of a template is too."""
    packed = [i for r in tokens_of(folders["llama3"], ["one two", "three"]) for i in r["input_ids"]]
    store = capture(folders["llama3"], [{"input_ids": packed}], tmp_path / "s")
    assert (store[0].byte_lengths == 0).sum() == 2
    assert store.text(0).supervised_bytes == b"one twothree"
    for student in FAMILIES:
        data = dataset_of(folders[student], store)
        ours = teacher_spans(store[0], store.text(0), store.spec.eos_ids)
        tokens, _ = data.reader.read(store.text(0), ours)
        assert tokens is not None
        assert tokens.byte_starts[tokens.is_eos & tokens.has_record].tolist() == [7, 12]


def test_of_a_prompt_with_earlier_turns_only_the_completion_has_records(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    rows = [{"prompt": TALKS[1][:-1], "completion": TALKS[1][-1:]}]
    store = capture(folders["gemma"], rows, tmp_path / "store")
    assert store.text(0).supervised_bytes.decode() == TALKS[1][-1]["content"]


def reader_of(tokenizer: Any, rows: list[dict[str, Any]], max_length: int) -> RowReader:
    reader = ByteTokenizer(tokenizer)
    render = Renderer.make(load_rows(datasets.Dataset.from_list(rows)), tokenizer, reader)
    return RowReader(render, limits_of(max_length, "split", None, reader.prefix_length))


def test_every_window_begins_as_its_row_does() -> None:
    """With the BOS that the template writes, or the row brings; without one if the row has none."""
    gemma, llama3 = templates.gemma(bos=False), templates.llama3()
    long = {"messages": turns(*["a quiet store reads"] * 20)}
    ids = llama3("the teacher reads a long page " * 20).input_ids
    for tokenizer, row, has_bos in (
        (gemma, long, True),
        (templates.chatml(), long, False),
        (llama3, {"input_ids": ids}, True),
        (llama3, {"input_ids": ids[1:]}, False),
    ):
        windows = reader_of(tokenizer, [row], 40).sequences(0)
        assert len(windows) > 2
        begins = {int(w.text.token_ids[0]) == tokenizer.bos_token_id for w in windows}
        assert begins == {has_bos}


@pytest.mark.parametrize("has_bos", [True, False])
@pytest.mark.parametrize("family", ["unigram", "sp_bpe"])
def test_the_space_that_a_tokenizer_adds_is_no_text(family: str, has_bos: bool) -> None:
    tokenizer = getattr(tiny, family)(bos=has_bos)
    reader = ByteTokenizer(tokenizer)
    texts, end = ("one two", "three"), tokenizer.eos_token_id
    whole = tokenizer(f"{texts[0]}</s>{texts[1]}</s>").input_ids
    assert whole.count(end) == 2
    row = TokenRow(np.array(whole), np.ones(len(whole), bool))
    segments, tokens = read_tokens(row, reader, "row 0")
    assert [s.text for s in segments if s.supervised] == list(texts)
    first = 0 if has_bos else len(reader.written(row.token_ids)[0].strip())
    assert tokens.byte_lengths.sum() + first == 12  # without BOS the first token has no record


def test_an_end_alone_may_be_wanted_and_a_character_is_never_cut() -> None:
    tokenizer = templates.llama3()
    reader = ByteTokenizer(tokenizer)
    ids = np.array([*tokenizer("ab 学").input_ids, tokenizer.eos_token_id])
    of_end = np.zeros(len(ids), bool)
    of_end[-1] = True
    segments, tokens = read_tokens(TokenRow(ids, of_end), reader, "row 0")
    assert tokens.has_record.tolist() == of_end.tolist()
    again = reader.encode(segments, add_eos=False)
    assert again.is_eos.tolist() == again.has_record.tolist() == of_end.tolist()

    lengths = [len(b) for b in reader.written(ids)]
    assert lengths[-2] < 3  # the last character has several tokens
    last_piece = np.zeros(len(ids), bool)
    last_piece[-2] = True
    segments, tokens = read_tokens(TokenRow(ids, last_piece), reader, "row 0")
    assert [s.text for s in segments if s.supervised] == ["学"]
    (t,) = np.flatnonzero(tokens.has_record)
    assert (tokens.byte_starts[t], tokens.byte_lengths[t]) == (3 - lengths[-2], lengths[-2])


def test_a_bos_that_the_row_brings_is_the_students_own() -> None:
    """A tokenizer may have a BOS that it does not put there by itself."""
    tokenizer = tiny.sp_bpe(bos=False)
    ids = np.array([tokenizer.bos_token_id, *tokenizer("one").input_ids])
    row = TokenRow(ids, np.ones(len(ids), bool))
    segments, tokens = read_tokens(row, ByteTokenizer(tokenizer), "row 0")
    assert tokens.has_record.tolist() == [False, *[True] * (len(ids) - 1)]
    own = ByteTokenizer(templates.llama3())
    assert [s.text for s in for_student(segments, own)] == ["<|begin|>", "one"]
    without = ByteTokenizer(tiny.byte_bpe())
    assert "".join(s.text for s in for_student(segments, without)) == "one"


@pytest.mark.parametrize(
    ("row", "why"),
    [
        ({"input_ids": [1, 5000]}, "row 0: token ids reach from 1 to 5000"),
        ({"input_ids": [1, 2], "labels": [-100]}, "row 0: labels has 1 values, but there are 2"),
        ({"input_ids": [1, 2, 3], "labels": [2, 3, -100]}, "row 0: label 0 is 2, expected the tok"),
        ({"input_ids": [1, None]}, "row 0: input_ids: value 1 is missing"),
        ({"input_ids": "abc"}, "column 'input_ids' holds string, expected lists of integers"),
        ({"prompt": turns("a"), "completion": "b"}, "column 'completion' holds string"),
        ({"messages": "abc"}, "column 'messages' holds string, expected lists of messages"),
        ({"conversations": turns("a", "b")}, "Rename 'conversations' to 'messages'"),
        ({"messages": [{"from": "a", "value": "b"}]}, "row 0: message 0 is no message"),
        (
            {"messages": turns("a", "b"), "tools": "{"},
            "row 0: tools: holds a string that is not JSON",
        ),
        ({"messages": turns("a", "b"), "tools": "{}"}, "row 0: tools: expected a list"),
    ],
)
def test_wrong_rows_are_named_and_nothing_is_written(
    folders: dict[str, Path], row: dict[str, Any], why: str, tmp_path: Path
) -> None:
    with pytest.raises(InputError) as error:
        capture(folders["llama3"], [row], tmp_path / "store")
    assert why in str(error.value)
    assert not (tmp_path / "store").exists()


def test_tokens_that_do_not_spell_their_text_are_refused(tmp_path: Path) -> None:
    folder = tiny.save(tmp_path / "m", tiny.llama(400), tiny.wordpiece(400))
    with pytest.raises(InputError, match=r"leave out white space.*as text"):
        capture(folder, [{"input_ids": [5, 6, 7]}], tmp_path / "store")


def test_rendering_needs_no_torch() -> None:
    assert torch is not None  # of this process; the rest holds in a fresh one
    import subprocess
    import sys

    code = "import sys, logitstore.render, logitstore.token_rows; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
