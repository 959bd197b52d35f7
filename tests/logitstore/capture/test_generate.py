"""`--generate`: the teacher writes each completion, whatever the batch, and it is captured."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2Config, GPT2LMHeadModel

import logitstore
from distill.data.dataset import StoreDataset
from logitstore.capture import preview
from logitstore.capture.again import capture_again
from logitstore.capture.passes.completer import Wanted, batches
from logitstore.capture.passes.generate import ModelCompleter
from logitstore.capture.sampling import Sampling
from logitstore.capture.sequences.prompts import PromptReader
from logitstore.capture.sequences.windows import limits_of
from logitstore.checking.repair import repair_store
from logitstore.checking.verify import verify_store
from logitstore.errors import InputError, MismatchError
from logitstore.rows.dataset import load_rows
from logitstore.rows.renderer import Renderer
from logitstore.store import LogitStore
from logitstore.testing import tiny
from logitstore.testing.stores import tree
from logitstore.text.chat_template import ChatTemplate
from logitstore.text.tokenizer import ByteTokenizer
from tests.kit import templates
from tests.kit.students import trainer_of
from tests.kit.templates import TURN_ENDS, turns
from tests.logitstore.capture.test_ranks import environment

PROMPTS = [
    *tiny.corpus()[:9],
    "x",
    tiny.corpus()[40],
    "the teacher reads the long page twice. " * 3,
]
NEW = 14
SAMPLED: dict[str, Any] = {"generate_temperature": 1.0, "top_p": 0.95, "generate_top_k": 90}


def ending_llama(tokenizer: Any, seed: int = 0, push: float = 2.0) -> Any:
    """A tiny model that is less sure than others, but of the end, which it often writes."""
    model = tiny.llama(len(tokenizer), seed=seed)
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    with torch.no_grad():
        model.lm_head.weight *= 0.6
        model.lm_head.weight[list(ByteTokenizer(tokenizer).eos_ids)] *= push
    return model


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`teacher`, and prompts of every shape."""
    folder = tmp_path_factory.mktemp("generate")
    for name, make in (
        ("teacher", lambda: tiny.byte_bpe(400, bos=True)),
        ("chat", templates.chatml),
    ):
        tokenizer = make()
        tiny.save(folder / name, ending_llama(tokenizer), tokenizer)
    write(folder / "prompts.jsonl", [{"prompt": p} for p in PROMPTS])
    write(folder / "talks.jsonl", [{"messages": turns(p)} for p in PROMPTS])
    return folder


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def run(folder: Path, out: Path, data: str = "prompts.jsonl", **settings: Any) -> LogitStore:
    teacher = settings.pop("teacher", "teacher")
    settings = {"top_k": 8, "shard_text_bytes": 200, "max_new_tokens": NEW} | settings
    return logitstore.capture(folder / teacher, folder / data, out, generate=True, **settings)


def alone(folder: Path, prompt: str, teacher: str = "teacher", **more: Any) -> list[int]:
    """What `model.generate` writes for one prompt."""
    model = AutoModelForCausalLM.from_pretrained(folder / teacher)
    tokenizer = AutoTokenizer.from_pretrained(folder / teacher)
    ids = tokenizer(prompt, return_tensors="pt").input_ids
    out = model.generate(
        input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=NEW, do_sample=False,
        pad_token_id=0, **more,
    )  # fmt: skip
    return list(out[0, ids.shape[1] :].tolist())


def written(store: LogitStore) -> list[tuple[str, str]]:
    """(completion, status) of every row."""
    lines = [store.text(i) for i in range(len(store))]
    return [(line.supervised_bytes.decode(), line.status) for line in lines]


@pytest.fixture(scope="module")
def greedy(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> LogitStore:
    """What the teacher writes where nothing else is asked for."""
    return run(folder, tmp_path_factory.mktemp("greedy") / "s")


def test_greedy_completions_are_what_generate_writes_one_by_one(
    folder: Path, greedy: LogitStore
) -> None:
    store = greedy
    tokenizer = AutoTokenizer.from_pretrained(folder / "teacher")
    eos, statuses = tokenizer.eos_token_id, set()
    for i, prompt in enumerate(PROMPTS):
        ids = alone(folder, prompt)
        text, status = written(store)[i]
        own = [t for t in ids if t != eos]
        spelt = ByteTokenizer(tokenizer).token_bytes
        assert text == b"".join(spelt[t] or b"" for t in own).decode(errors="ignore")
        if not text:  # ended at once: as a completion that is given and empty
            assert status == "no_supervised_text"
            continue
        assert status == ("ok" if ids[-1] == eos else "unfinished")
        assert store.text(i).segments[0].text == prompt
        statuses.add(status)
        again = tokenizer(prompt + text).input_ids
        if again == [*tokenizer(prompt).input_ids, *own]:
            assert store[i].token_ids.tolist() == [*own, *([eos] if status == "ok" else [])]
    assert statuses == {"ok", "unfinished"}
    assert verify_store(store.path, deep=True).damaged == []


def test_a_store_of_completions_is_the_store_of_their_text(folder: Path, tmp_path: Path) -> None:
    """Captured as data, the same text gives the same records."""
    store = run(folder, tmp_path / "a", tokens_per_batch=64)
    rows = [
        {"prompt": p, "completion": text}
        for p, (text, status) in zip(PROMPTS, written(store), strict=True)
        if status == "ok"
    ]
    assert len(rows) > 2
    write(tmp_path / "rows.jsonl", rows)
    other = logitstore.capture(
        folder / "teacher", tmp_path / "rows.jsonl", tmp_path / "b", top_k=8, tokens_per_batch=64
    )
    own = [i for i, (_, status) in enumerate(written(store)) if status == "ok"]
    for i, j in zip(own, range(len(other)), strict=True):
        assert store.text(i).segments == other.text(j).segments
        np.testing.assert_array_equal(store[i].token_ids, other[j].token_ids)
        np.testing.assert_array_equal(store[i].byte_starts, other[j].byte_starts)
        np.testing.assert_allclose(store[i].token_logprob, other[j].token_logprob, atol=2 / 512)


@pytest.mark.parametrize("how", [{}, SAMPLED])
def test_a_completion_does_not_depend_on_its_batch(
    folder: Path, tmp_path: Path, how: dict[str, Any]
) -> None:
    """One row at a time, about four, all of them; and as many shards."""
    found = [
        written(
            run(folder, tmp_path / str(i), tokens_per_batch=budget, shard_text_bytes=size, **how)
        )
        for i, (budget, size) in enumerate([(1, 200), (4 * 40, 9000), (9000, 9000)])
    ]
    assert found[0] == found[1] == found[2]
    assert len({text for text, _ in found[0]}) > len(PROMPTS) / 2


def test_samples_follow_the_teachers_distribution(folder: Path) -> None:
    """The first token of many rows with one prompt, against the warped softmax."""
    completer = completer_of(folder, Sampling(1, temperature=0.8, top_k=20, top_p=0.9))
    ids = completer.reader.tokenizer.encode(
        (logitstore.records.Segment("the teacher", False),), add_eos=False
    ).token_ids.tolist()
    count = 3000
    found = completer.write([Wanted(row, ids, 1) for row in range(count)])
    chosen = [(c.token_ids or [c.end_id])[0] for c in found]
    with torch.no_grad():
        logits = completer.model(torch.tensor([ids])).logits[0, -1].double() / 0.8
    top = logits.topk(20)
    p = top.values.softmax(-1)
    kept = p.cumsum(-1) - p < 0.9
    p = p[kept] / p[kept].sum()
    expected = dict(zip(top.indices[kept].tolist(), (count * p).tolist(), strict=True))
    assert set(chosen) <= set(expected)
    chi2 = sum((chosen.count(t) - e) ** 2 / e for t, e in expected.items())
    assert chi2 < len(expected) - 1 + 4 * np.sqrt(2 * (len(expected) - 1))


def test_another_seed_writes_something_else_and_greedy_has_none(
    folder: Path, greedy: LogitStore, tmp_path: Path
) -> None:
    a, b = (run(folder, tmp_path / str(s), seed=s, **SAMPLED) for s in (0, 1))
    assert written(a) != written(b)
    assert a.spec.rendering["generate"]["seed"] == 0
    assert a.spec.rendering["kind"] == "prompt_completion"
    assert a.plan.dataset_sha256 == b.plan.dataset_sha256
    assert "seed" not in greedy.spec.rendering["generate"]
    with pytest.raises(MismatchError, match=r"rendering\.generate is .* in the store"):
        run(folder, tmp_path / "0", seed=2, **SAMPLED)
    with pytest.raises(MismatchError, match=r"rendering\.generate is .* in the store"):
        run(folder, Path(str(greedy.path)), max_new_tokens=NEW + 1)


def test_a_shard_done_again_is_the_same_bytes(folder: Path, tmp_path: Path) -> None:
    """By resuming, and by `repair --capture`, which takes all settings from the store."""
    out = tmp_path / "s"
    settings = {"stop": ("e",), "draws": 9, "seed": 4, **SAMPLED}
    run(folder, out, **settings)
    wanted = tree(out)
    assert len(list((out / "shards").iterdir())) > 3
    for name in ("shards/00001.zarr.zip", "DONE"):
        (out / name).unlink()
    run(folder, out, **settings)
    assert tree(out) == wanted
    shard = out / "shards" / "00002.zarr.zip"
    shard.write_bytes(shard.read_bytes()[:-1] + b"x")
    assert repair_store(out).missing_shards == 1
    capture_again(out)
    assert tree(out) == wanted


@pytest.mark.slow
def test_two_ranks_write_and_draw_what_one_process_does(folder: Path, tmp_path: Path) -> None:
    settings = {"draws": 9, "logit_std": True, "seed": 4, **SAMPLED}
    one = run(folder, tmp_path / "one", **settings)
    command = [sys.executable, "-m", "logitstore", "capture", str(folder / "teacher")]
    command += [str(folder / "prompts.jsonl"), "--out", str(tmp_path / "two"), "--generate"]
    command += ["--top-k", "8", "--shard-text-bytes", "200", "--max-new-tokens", str(NEW)]
    command += ["--draws", "9", "--logit-std", "--seed", "4", "--generate-temperature", "1"]
    command += ["--top-p", "0.95", "--generate-top-k", "90"]
    ranks = [
        subprocess.Popen(
            command,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env=environment(RANK=str(i), WORLD_SIZE="2", LOCAL_RANK=str(i)),
        )
        for i in range(2)
    ]
    assert [rank.wait(240) for rank in ranks] == [0, 0]
    assert written(logitstore.open_store(tmp_path / "two")) == written(one)
    assert tree(tmp_path / "two").keys() == tree(one.path).keys()
    for name, data in tree(one.path).items():
        if name.startswith("shards/"):
            assert (tmp_path / "two" / name).read_bytes() == data


def test_stop_strings_end_a_completion_before_them(
    folder: Path, greedy: LogitStore, tmp_path: Path
) -> None:
    """Each text is cut at the first of any; a string may lie across tokens; no end is captured."""
    whole = written(greedy)
    longest = max((text for text, _ in whole), key=len)
    stop = (longest[-4:-1], longest[2:5], "never written")  # the later one first
    assert longest.find(stop[1]) < longest.find(stop[0])
    store = run(folder, tmp_path / "b", stop=stop)
    eos = store.spec.eos_ids[0]
    for i, ((text, status), (long, before)) in enumerate(zip(written(store), whole, strict=True)):
        places = [long.find(s) for s in stop if s in long]
        assert text == (long[: min(places)] if places else long)
        assert status == ("stopped" if places else before)
        assert (eos in store[i].token_ids) == (status == "ok")
    assert "stopped" in {status for _, status in written(store)}


def test_nothing_is_written_behind_a_stop_string(folder: Path) -> None:
    """The batch ends with the token that completes it, though it lies across two."""
    free = completer_of(folder, Sampling(NEW))
    prompts = [free.reader.prompt(i).token_ids.tolist() for i in range(len(PROMPTS))]
    spelt = free.reader.tokenizer.token_bytes
    row, ids, k = next(
        (row, ids, k)
        for row, prompt in enumerate(prompts)
        for ids in [free.write([Wanted(row, prompt, NEW)])[0].token_ids]
        for k in range(len(ids) - 3)
        if all((spelt[t] or b"\xff").isascii() for t in ids[k : k + 2])
    )
    stop = ((spelt[ids[k]] or b"")[-1:] + (spelt[ids[k + 1]] or b"")[:1]).decode()
    completer = completer_of(folder, Sampling(NEW, stop=(stop,)))
    found = completer.write([Wanted(row, prompts[row], NEW)])[0]
    assert found.status == "stopped"
    assert found.token_ids == ids[: len(found.token_ids)]
    assert len(found.token_ids) <= k + 2


def test_what_a_model_would_generate_by_itself_does_not_count(folder: Path, tmp_path: Path) -> None:
    """Only the ends are taken of its `generation_config`: the store says all the rest."""
    tokenizer = AutoTokenizer.from_pretrained(folder / "teacher")
    model = ending_llama(tokenizer)
    model.generation_config.update(
        do_sample=True, temperature=3.0, repetition_penalty=9.0, bad_words_ids=[[66]]
    )
    teacher = tiny.save(tmp_path / "t", model, tokenizer)
    settings: dict[str, Any] = {"top_k": 8, "max_new_tokens": NEW, "generate": True}
    store = logitstore.capture(teacher, folder / "prompts.jsonl", tmp_path / "s", **settings)
    assert written(store) == written(run(folder, tmp_path / "plain"))


SHAPES: dict[str, Callable[[str], dict[str, Any]]] = {
    "messages": lambda p: {"messages": turns(p)},
    "prompt of messages": lambda p: {"prompt": turns(p)},
    "a longer talk": lambda p: {"messages": turns("Hi!", "Hello.", p)},
    "a system message": lambda p: {"messages": turns(p, system="Be brief.")},
}


@pytest.mark.parametrize("shape", SHAPES)
def test_conversations_are_completed_in_the_teachers_template(
    folder: Path, tmp_path: Path, shape: str
) -> None:
    write(tmp_path / "rows.jsonl", [SHAPES[shape](p) for p in PROMPTS])
    store = logitstore.capture(
        folder / "chat", tmp_path / "rows.jsonl", tmp_path / "s", top_k=8, generate=True,
        max_new_tokens=NEW,
    )  # fmt: skip
    tokenizer = AutoTokenizer.from_pretrained(folder / "chat")
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    statuses = set()
    for i, prompt in enumerate(PROMPTS):
        line = store.text(i)
        messages = json.loads(line.messages or "")["messages"]
        asked = next(iter(SHAPES[shape](prompt).values()))
        assert messages[:-1] == asked
        text = line.supervised_bytes.decode()
        assert messages[-1] == {"role": "assistant", "content": text}
        rendered = tokenizer.apply_chat_template(asked, tokenize=False, add_generation_prompt=True)
        assert line.segments[0].text == rendered
        ids = store[i].token_ids.tolist()
        assert (end in ids or tokenizer.eos_token_id in ids) == (line.status == "ok")
        statuses.add(line.status)
    assert {"ok", "unfinished"} & statuses
    assert store.spec.rendering["kind"] == "conversation"
    assert verify_store(store.path, deep=True).damaged == []


@pytest.mark.parametrize("family", templates.FAMILIES)
def test_a_student_reads_a_written_turn_with_an_end_just_where_the_teacher_ended_it(
    tmp_path: Path, family: str
) -> None:
    """Whatever the template: the teacher's own, and a student of another tokenizer and template."""
    tokenizer = templates.FAMILIES[family]()
    model = ending_llama(tokenizer, push=4.0)
    end = tokenizer.convert_tokens_to_ids(TURN_ENDS[family])
    model.generation_config.eos_token_id = [end, tokenizer.eos_token_id]
    teacher = tiny.save(tmp_path / "t", model, tokenizer)
    write(tmp_path / "rows.jsonl", [{"prompt": turns(p)} for p in PROMPTS])
    store = logitstore.capture(
        teacher, tmp_path / "rows.jsonl", tmp_path / "s", top_k=8, generate=True,
        max_new_tokens=NEW, generate_temperature=1.0,
    )  # fmt: skip
    assert {"ok", "unfinished"} <= {status for _, status in written(store)}
    for own in (tokenizer, templates.chatml()):
        reader = ByteTokenizer(own)
        data = StoreDataset(store, reader, ["alm"], template=ChatTemplate.of(own, reader))
        for i, sequence in enumerate(data.sequences):
            line, example = store.text(int(sequence)), data[i]
            if example.skipped:  # a template that trims white space the teacher wrote
                assert example.text_changed
                continue
            ends = set(reader.eos_ids) & set(example.token_ids[example.is_label].tolist())
            assert bool(ends) == (line.status == "ok")


def test_a_student_of_text_has_no_end_where_the_teacher_had_none(
    folder: Path, tmp_path: Path
) -> None:
    store = run(folder, tmp_path / "s", stop=("e",))
    reader = ByteTokenizer(tiny.byte_bpe())
    data = StoreDataset(store, reader, ["mapped_kl"])
    seen = set()
    for i, sequence in enumerate(data.sequences):
        labels, status = data[i].token_ids[data[i].is_label], store.text(int(sequence)).status
        assert (reader.eos_token_id in labels) == (status == "ok")
        seen.add(status)
    assert {"ok", "stopped"} <= seen
    trainer = trainer_of(tiny.llama(300), store, tmp_path, eval_store=store)
    assert np.isfinite(trainer.evaluate()["eval_mapped_kl_loss"])


def test_a_prompt_that_leaves_no_room_is_kept_and_the_others_use_what_there_is(
    tmp_path: Path,
) -> None:
    """Positions that end: a model with a table of them reads none behind it, in any batch."""
    tokenizer = tiny.byte_bpe()
    config = GPT2Config(
        vocab_size=300,
        n_positions=24,
        n_embd=16,
        n_layer=1,
        n_head=2,
        eos_token_id=0,
        bos_token_id=0,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = GPT2LMHeadModel(config)
    teacher = tiny.save(tmp_path / "t", model, tokenizer)
    lengths = (30, 24, 23, 20, 20, 3, 3)
    write(tmp_path / "rows.jsonl", [{"prompt": "\x7f" * n} for n in lengths])
    store = logitstore.capture(
        teacher, tmp_path / "rows.jsonl", tmp_path / "s", top_k=8, generate=True, max_new_tokens=10
    )
    assert [store.text(i).status for i in (0, 1)] == ["too_long", "too_long"]
    for i, room in zip(range(2, 7), (1, 4, 4, 10, 10), strict=True):
        assert store.text(i).status in ("ok", "unfinished")
        assert len(store[i]) <= room
    assert [store.text(i).segments[0].text for i in range(7)] == ["\x7f" * n for n in lengths]


def test_batches_hold_the_budget_and_one_limit() -> None:
    wanted = [
        Wanted(i, [1] * n, limit) for i, (n, limit) in enumerate([(5, 9), (9, 5), (3, 9), (7, 9)])
    ]
    found = [[w.row for w in batch] for batch in batches(wanted, 30)]
    assert found == [[3], [0, 2], [1]]


def test_an_empty_prompt_has_a_line_and_no_completion(tmp_path: Path, folder: Path) -> None:
    write(tmp_path / "rows.jsonl", [{"prompt": ""}, {"prompt": None}, {"prompt": "x"}])
    store = logitstore.capture(
        folder / "teacher", tmp_path / "rows.jsonl", tmp_path / "s", generate=True,
        max_new_tokens=4, top_k=4,
    )  # fmt: skip
    assert [status for _, status in written(store)][:2] == ["empty", "empty"]
    assert len(store[2])


def test_ids_that_no_token_has_are_never_written(tmp_path: Path) -> None:
    """Heads are padded; here the padding is what the model likes best."""
    tokenizer = tiny.byte_bpe()
    model = tiny.llama(320)
    with torch.no_grad():
        model.lm_head.weight[300:] = model.lm_head.weight[5] * 3
    teacher = tiny.save(tmp_path / "t", model, tokenizer)
    write(tmp_path / "rows.jsonl", [{"prompt": p} for p in PROMPTS])
    store = logitstore.capture(
        teacher, tmp_path / "rows.jsonl", tmp_path / "s", generate=True, max_new_tokens=6, top_k=4
    )
    assert all(int(store[i].token_ids.max(initial=0)) < 300 for i in range(len(store)))


def test_a_character_cut_in_half_is_left_out(folder: Path) -> None:
    """Text is whole characters; the tokens of what is left are those of the text."""
    completer = completer_of(folder, Sampling(5))
    tokenizer = completer.reader.tokenizer
    ids = tokenizer.encode((logitstore.records.Segment("a🙂", True),), add_eos=False).token_ids
    found = completer._completion(ids[tokenizer.prefix_length :][:-1].tolist())
    assert found.text == "a"
    assert found.status == "unfinished"
    prompt = completer.reader.prompt(0)
    sequences = completer.reader.completed(0, prompt, found)
    assert not completer.reader.is_as_written(prompt, found, sequences[0])
    assert sequences[0].line.supervised_bytes == b"a"


def test_a_batch_that_does_not_fit_is_written_in_halves(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    completer = completer_of(folder, Sampling(NEW, temperature=1.0))
    wanted = [Wanted(i, completer.reader.prompt(i).token_ids.tolist(), NEW) for i in range(6)]
    whole = completer.write(wanted)
    generate = completer.model.generate

    def small(**kwargs: Any) -> Any:
        if len(kwargs["input_ids"]) > 2:
            raise torch.OutOfMemoryError("no room")
        return generate(**kwargs)

    monkeypatch.setattr(completer.model, "generate", small)
    assert completer.write(wanted) == whole

    def none(**kwargs: Any) -> Any:
        raise torch.OutOfMemoryError("no room")

    monkeypatch.setattr(completer.model, "generate", none)
    with pytest.raises(InputError, match=r"row 0: its prompt and completion.*--max-new-tokens"):
        completer.write(wanted[:2])


def completer_of(folder: Path, sampling: Sampling) -> ModelCompleter:
    rows = load_rows(folder / "prompts.jsonl", prompts=True)
    tokenizer = AutoTokenizer.from_pretrained(folder / "teacher")
    render = Renderer.make(rows, tokenizer, reader := ByteTokenizer(tokenizer))
    limits = limits_of(512, "split", None, reader.prefix_length)
    model = AutoModelForCausalLM.from_pretrained(folder / "teacher").eval()
    return ModelCompleter(model, PromptReader(render, limits), sampling, 4096, torch.device("cpu"))


REFUSED: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "a completion": (
        {"prompt": "x", "completion": "there"}, {}, r"row 0: has a completion already",
    ),
    "an answer": ({"messages": turns("Hi!", "Hello.")}, {}, r"row 0: has a completion already"),
    "text": ({"text": "x"}, {}, r"expected a column `prompt`.*found text.*--text-column"),
    "tokens": ({"input_ids": [1, 2]}, {}, r"expected a column `prompt`.*found input_ids"),
    "no tokens": ({"prompt": "x"}, {"max_new_tokens": 0}, r"--max-new-tokens is 0, expected 1"),
    "cold": ({"prompt": "x"}, {"generate_temperature": -1.0}, r"--generate-temperature is -1\.0"),
    "idle": ({"prompt": "x"}, {"top_p": 0.9}, r"--top-p is 0\.9, but without a temperature"),
    "no mass": ({"prompt": "x"}, {"top_p": 0.0, "generate_temperature": 1.0}, r"--top-p is 0\.0"),
    "a seed": ({"prompt": "x"}, {"seed": 3}, r"--seed is 3, but nothing is drawn at random"),
    "nothing": ({"prompt": "x"}, {"stop": ("",)}, r"--stop is empty"),
    "supervise": ({"messages": turns("x")}, {"supervise": "all"}, r"--supervise is all, but with"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_completed_is_refused_before_anything_is_written(
    folder: Path, tmp_path: Path, case: str
) -> None:
    row, settings, says = REFUSED[case]
    write(tmp_path / "rows.jsonl", [row])
    teacher = "chat" if "messages" in row else "teacher"
    with pytest.raises(InputError, match=says):
        logitstore.capture(
            folder / teacher, tmp_path / "rows.jsonl", tmp_path / "s", generate=True, **settings
        )
    assert not (tmp_path / "s").exists()


def test_a_dry_run_shows_what_the_teacher_writes(folder: Path, tmp_path: Path) -> None:
    """And what is to come: completions are most of it, and most of the time."""
    settings = {"top_k": 8, "max_new_tokens": NEW}
    found = preview(
        str(folder / "teacher"), str(folder / "prompts.jsonl"), tmp_path / "s", generate=True,
        **settings,
    )  # fmt: skip
    store = run(folder, tmp_path / "s")
    assert f"row 0: {store.text(0).status}" in found.sample.first
    assert "⟦" in found.sample.first
    assert found.records == pytest.approx(sum(map(len, store)), rel=0.5)
    assert found.seconds > 0


def test_a_log_counts_completions(folder: Path, tmp_path: Path) -> None:
    run(folder, tmp_path / "s", log_json=tmp_path / "log", stop=("e",))
    lines = [json.loads(line) for line in (tmp_path / "log").read_text().splitlines()]
    counts = [line for line in lines if line["event"] == "generated"]
    assert len(counts) > 3
    total = sum(line.get(s, 0) for line in counts for s in ("ok", "stopped", "unfinished"))
    assert total == len(PROMPTS)
    assert all("retokenised" in line for line in counts)


def test_flags_of_writing_do_nothing_without_generate(folder: Path, tmp_path: Path) -> None:
    for settings in ({"max_new_tokens": 5}, {"stop": ("x",)}, {"top_p": 0.5}):
        with pytest.raises(InputError, match=r"nothing is written without --generate"):
            logitstore.capture(
                folder / "teacher", folder / "prompts.jsonl", tmp_path / "s", **settings
            )


def test_a_column_of_prompts_may_have_any_name(folder: Path, tmp_path: Path) -> None:
    write(tmp_path / "rows.jsonl", [{"question": p, "completion": None} for p in PROMPTS])
    named = logitstore.capture(
        folder / "teacher", tmp_path / "rows.jsonl", tmp_path / "s", generate=True,
        text_column="question", max_new_tokens=NEW, top_k=8,
    )  # fmt: skip
    assert written(named) == written(run(folder, tmp_path / "t"))
