"""`capture --boundaries-of`: the teacher's distribution at every boundary of a student's tokens.

What a record must hold is computed here from the definition, one plain forward pass a boundary: the
teacher's tokens that end before it, then its tokens of the bytes in between.
"""

import json
import logging
import shutil
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

import logitstore
from logitstore.capture import preview
from logitstore.capture.boundaries.branches import BranchReader, placed
from logitstore.capture.boundaries.cost import check_asked
from logitstore.capture.boundaries.student import Student
from logitstore.capture.sequences.questions import Branch, Questions
from logitstore.capture.sequences.windows import TeacherSequence
from logitstore.capture.teacher.head import TeacherHead
from logitstore.capture.teacher.summary import HeadSettings
from logitstore.checking.repair import repair_store
from logitstore.checking.verify import verify_store
from logitstore.console.launcher import Ranks
from logitstore.errors import IncompleteStoreError, InputError, MismatchError
from logitstore.info import facts, info_text
from logitstore.moving.merge import merge
from logitstore.moving.subset import subset
from logitstore.records import SequenceText
from logitstore.store import LogitStore
from logitstore.testing import tiny
from logitstore.testing.buckets import Bucket
from logitstore.testing.stores import tree
from logitstore.text.middle import MiddleTokenizer
from logitstore.text.tokenizer import ByteTokenizer, TokenizedText
from tests.kit import templates
from tests.kit.families import SHAPE, V, build
from tests.kit.rows import rows_file, texts_file

SETTINGS: dict[str, Any] = {"top_k": 8, "shard_text_bytes": 700}
CODE = 0.02  # nats: what a stored log-probability may be off by


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a student of each kind, and rows of text."""
    here = tmp_path_factory.mktemp("boundaries")
    for name, made in (
        ("unigram", tiny.unigram()),
        ("bpe", tiny.byte_bpe(300)),
        ("sp", tiny.sp_bpe()),
        ("wordpiece", tiny.wordpiece()),
    ):
        made.save_pretrained(here / name)
    texts_file(here / "rows.jsonl", [*tiny.corpus(), ""])
    return here


@pytest.fixture(scope="module")
def store(teacher: Path, place: Path) -> LogitStore:
    return run(teacher, place, place / "store")


def run(teacher: Path, place: Path, out: Path, **settings: Any) -> LogitStore:
    given = SETTINGS | {"boundaries_of": str(place / "unigram")} | settings
    data = given.pop("data", place / "rows.jsonl")
    return logitstore.capture(teacher, str(data), out, **given)


def inside(store: LogitStore) -> LogitStore:
    (found,) = store.boundaries.values()
    return found


# ---- what a record holds ----


def plain(model: Any, ids: list[int]) -> torch.Tensor:
    """The log-probabilities behind some tokens, by a forward pass of their own."""
    with torch.inference_mode():
        row = model(input_ids=torch.tensor([ids])).logits[0, -1]
    logprobs: torch.Tensor = row.float().log_softmax(-1)
    return logprobs


def context(tokenizer: PreTrainedTokenizerFast, text: bytes, place: int) -> list[int] | None:
    """The teacher's tokens before a byte; None where the byte is inside a character."""
    ids = tokenizer(text.decode())["input_ids"]
    before, used = [], 0
    for i in ids:
        spelt = tokenizer.convert_ids_to_tokens(i)
        size = 0 if spelt.startswith("<|") else len(spelt)  # byte-level: a character a byte
        if used + size > place:
            break
        before.append(i)
        used += size
    try:
        rest = text[used:place].decode()
    except UnicodeDecodeError:
        return None
    return before + tokenizer(rest, add_special_tokens=False)["input_ids"]


def test_every_record_is_what_a_plain_forward_pass_says_behind_just_these_bytes(
    teacher: Path, place: Path, tmp_path: Path
) -> None:
    store = run(teacher, place, tmp_path / "s", boundaries_of=str(place / "bpe"))
    model = AutoModelForCausalLM.from_pretrained(teacher)
    tokenizer = tiny.byte_bpe(400, bos=True)
    compared = inside_tokens = 0
    for i in range(0, len(store), 3):
        text, records = store.text(i).supervised_bytes, inside(store)[i]
        own = {int(start) for start in store[i].byte_starts}
        entries = records.padded()
        for t in range(len(records)):
            start = int(records.byte_starts[t])
            ids = context(tokenizer, text, start)
            if ids is None:
                continue
            said = plain(model, ids)
            top = said.topk(8).values.numpy()
            likely = top > -12
            np.testing.assert_allclose(entries.logprobs[t][likely], top[likely], atol=CODE)
            np.testing.assert_allclose(
                records.token_logprob[t], said[int(records.token_ids[t])], atol=CODE
            )
            compared += 1
            inside_tokens += start not in own
    assert compared > 200
    assert inside_tokens > 50


def test_where_both_sides_have_a_boundary_the_record_is_the_ordinary_one(
    store: LogitStore,
) -> None:
    shared = 0
    for i in range(len(store)):
        own, other = store[i], inside(store)[i]
        at = {int(start): t for t, start in enumerate(own.byte_starts)}
        theirs, ours = own.padded(8), other.padded(8)
        for t, start in enumerate(other.byte_starts):
            k = at.get(int(start))
            if k is None:
                continue
            assert own.token_ids[k] == other.token_ids[t]
            assert own.token_logprob[k] == other.token_logprob[t]
            assert (theirs.ids[k] == ours.ids[t]).all()  # type: ignore[index]
            assert (theirs.logprobs[k] == ours.logprobs[t]).all()
            shared += 1
    assert shared > 500


@pytest.mark.parametrize("student", ["unigram", "bpe", "sp", "wordpiece"])
def test_records_begin_and_end_where_the_students_tokens_do(
    teacher: Path, place: Path, student: str, tmp_path: Path
) -> None:
    store = run(teacher, place, tmp_path / "s", boundaries_of=str(place / student))
    tokenizer = ByteTokenizer.from_folder(place / student)
    assert verify_store(store.path, deep=True).damaged == []
    for i in range(len(store)):
        records, line = inside(store)[i], store.text(i)
        tokens = tokenizer.encode(line.segments)
        kept = tokens.has_record & ((tokens.byte_lengths > 0) | tokens.is_eos)
        assert records.byte_starts.tolist() == tokens.byte_starts[kept].tolist()
        assert records.byte_lengths.tolist() == tokens.byte_lengths[kept].tolist()
        assert inside(store).text(i) == line


def test_the_token_of_a_record_begins_the_text_there(teacher: Path, store: LogitStore) -> None:
    tokenizer = ByteTokenizer.from_folder(teacher)
    for i in range(len(store)):
        text, records = store.text(i).supervised_bytes, inside(store)[i]
        for t in range(len(records)):
            written = tokenizer.token_bytes[int(records.token_ids[t])]
            if written is not None:
                assert text[int(records.byte_starts[t]) :].startswith(written)


def test_without_bos_the_first_boundary_has_no_record_and_those_inside_its_token_have(
    place: Path, tmp_path: Path
) -> None:
    tiny.save(tmp_path / "t", tiny.llama(400), tiny.byte_bpe(400))
    store = run(tmp_path / "t", place, tmp_path / "s", boundaries_of=str(place / "bpe"))
    read = [i for i in range(len(store)) if len(store[i])]
    assert all(inside(store)[i].byte_starts[0] > 0 for i in read)
    assert any(inside(store)[i].byte_starts[0] < store[i].byte_starts[0] for i in read)


# ---- rows of every kind ----


def test_prompts_are_context_and_a_token_that_crosses_is_asked_about_where_it_begins(
    teacher: Path, place: Path, tmp_path: Path
) -> None:
    tiny.byte_bpe(400, bos=True).save_pretrained(tmp_path / "longer")
    tiny.save(tmp_path / "t", tiny.llama(258), tiny.byte_bpe(258, bos=True))
    data = rows_file(tmp_path / "r.jsonl", {"prompt": "Every tok", "completion": "en reads."})
    store = run(
        tmp_path / "t", place, tmp_path / "s", data=data, boundaries_of=str(tmp_path / "longer")
    )
    records = inside(store)[0]
    assert records.byte_starts[0] == 0
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "t")
    tokenizer = tiny.byte_bpe(258, bos=True)
    longer = ByteTokenizer.from_folder(tmp_path / "longer")
    tokens = longer.encode(store.text(0).segments)
    begins = int(tokens.text_starts[tokens.has_record][0])
    assert begins < len("Every tok")
    said = plain(model, tokenizer("Every tok"[:begins])["input_ids"])
    np.testing.assert_allclose(records.padded().logprobs[0], said.topk(8).values, atol=CODE)


def test_windows_have_records_at_the_boundaries_of_their_own_text(
    teacher: Path, place: Path, tmp_path: Path
) -> None:
    store = run(teacher, place, tmp_path / "s", max_length=12)
    assert verify_store(store.path, deep=True).damaged == []
    tokenizer = ByteTokenizer.from_folder(place / "unigram")
    for i in (i for i in range(len(store)) if store.text(i).status == "split"):
        line, records = store.text(i), inside(store)[i]
        tokens = tokenizer.encode(line.segments)
        kept = tokens.has_record & (tokens.byte_lengths > 0)
        wanted = (tokens.byte_starts[kept] + line.supervised_start).tolist()
        assert records.byte_starts[records.byte_lengths > 0].tolist() == wanted
    assert max(store.text(i).part for i in range(len(store))) > 1


def test_rows_of_tokens_are_read_as_a_student_reads_them(
    teacher: Path, place: Path, tmp_path: Path
) -> None:
    made = tiny.byte_bpe(400, bos=True)
    rows = ({"input_ids": made(text)["input_ids"]} for text in tiny.corpus()[:12])
    data = rows_file(tmp_path / "tokens.jsonl", *rows)
    store = run(teacher, place, tmp_path / "s", data=data)
    texts = run(teacher, place, tmp_path / "texts")
    assert verify_store(store.path, deep=True).damaged == []
    for i in range(12):
        starts = inside(store)[i].byte_starts.tolist()
        assert starts == inside(texts)[i].byte_starts.tolist()[: len(starts)]
        assert len(starts) >= len(inside(texts)[i]) - 1


def test_conversations_are_rendered_by_each_sides_own_template(tmp_path: Path) -> None:
    theirs, ours = templates.chatml(), templates.gemma()
    tiny.save(tmp_path / "t", tiny.llama(len(theirs)), theirs)
    ours.save_pretrained(tmp_path / "s")
    talk = templates.turns("Who reads?", "The teacher reads.", "And then?", "A student writes it.")
    data = rows_file(tmp_path / "talk.jsonl", {"messages": talk})
    store = logitstore.capture(
        tmp_path / "t", str(data), tmp_path / "out", top_k=8, boundaries_of=str(tmp_path / "s")
    )
    assert verify_store(store.path, deep=True).damaged == []
    records = inside(store)[0]
    assert records.byte_starts[0] == 0
    assert (records.byte_lengths == 0).sum() == (store[0].byte_lengths == 0).sum() == 2
    ends = records.byte_starts + records.byte_lengths
    assert ends[-1] == len(store.text(0).supervised_bytes)
    assert "chat_template_sha256" in (inside(store).spec.boundaries_of or {})


# ---- the pass over keys and values ----


def sequence(length: int, seed: int) -> TeacherSequence:
    """A row of random tokens, with twice as many random branches."""
    random = np.random.default_rng(seed)
    zeros = np.zeros(length, np.int64)
    text = TokenizedText(
        random.integers(1, V, length),
        np.arange(length) > 0,
        **dict.fromkeys(("byte_starts", "byte_lengths", "text_starts", "text_ends"), zeros),
        **dict.fromkeys(("heads", "tails"), zeros),
        **dict.fromkeys(("is_eos", "has_added_space"), zeros.astype(bool)),
        is_verbatim=zeros == 0,
        status="ok",
    )
    branches = tuple(
        Branch(int(c), tuple(int(i) for i in random.integers(1, V, int(random.integers(1, 5)))))
        for c in np.sort(random.integers(0, length, 2 * length))
    )
    n = len(branches)
    targets = random.integers(1, V, n)
    no = np.zeros(n, np.int64)
    questions = Questions(None, n, no, no, targets, no - 1, branches)
    return TeacherSequence(SequenceText(seed, 0, "ok", ()), text, questions=questions)


def tiny_model(name: str) -> Any:
    """A model of a family that does something of its own with positions or masks."""
    kinds: dict[str, tuple[str, dict[str, Any]]] = {
        "mistral, sliding": ("Mistral", SHAPE | {"sliding_window": 8}),
        "qwen3": ("Qwen3", SHAPE | {"head_dim": 8}),
        "qwen2, sliding above": (
            "Qwen2",
            SHAPE | {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1},
        ),
        "gemma2, sliding": (
            "Gemma2",
            SHAPE | {"head_dim": 8, "sliding_window": 8, "query_pre_attn_scalar": 8},
        ),
        "gemma3, sliding": (
            "Gemma3Text",
            SHAPE
            | {
                "head_dim": 8,
                "sliding_window": 8,
                "query_pre_attn_scalar": 8,
                "layer_types": ["sliding_attention", "full_attention"],
            },
        ),
        "bloom": ("Bloom", {"vocab_size": V, "hidden_size": 16, "n_layer": 2, "n_head": 2}),
    }
    if name not in kinds:
        return build(name)
    family, settings = kinds[name]
    config = getattr(transformers, f"{family}Config")(**settings)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = getattr(transformers, f"{family.removesuffix('Text')}ForCausalLM")(config)
    model.config.use_cache = False
    return model.eval()


@pytest.mark.parametrize(
    ("family", "by_cache"),
    [
        ("llama", True),
        ("gpt2", True),
        ("opt", True),
        ("cohere scale", True),
        ("mistral, sliding", True),
        ("qwen3", True),
        ("qwen2, sliding above", True),
        ("gemma2, sliding", True),
        ("gemma3, sliding", True),
        ("bloom", False),
    ],
)
@pytest.mark.filterwarnings("ignore:.*bos_token_id must be")
def test_branches_say_what_plain_forward_passes_say(
    family: str, by_cache: bool, caplog: pytest.LogCaptureFixture
) -> None:
    model = tiny_model(family)
    head = TeacherHead(model, HeadSettings(8))
    reader = BranchReader(model, head, torch.device("cpu"), 0)
    batch = [sequence(20, 1), sequence(13, 2), sequence(3, 3)]
    rows, mask = torch.zeros(3, 20, dtype=torch.long), torch.zeros(3, 20, dtype=torch.long)
    for i, s in enumerate(batch):
        rows[i, : s.length] = torch.from_numpy(s.text.token_ids)
        mask[i, : s.length] = 1
    cache = reader.cache_for(batch)
    assert (cache is not None) == by_cache
    assert ("read as a row of its own" in caplog.text) == (not by_cache)
    if cache is not None:
        inputs = {"input_ids": rows, "attention_mask": mask, "past_key_values": cache}
        head(inputs | {"use_cache": True}, torch.tensor([0]), torch.tensor([1]))  # type: ignore[arg-type]
    branches = placed(batch)
    said = reader.read(branches, cache, rows)
    for n, (row, _, target, branch) in enumerate(branches):
        exact = plain(model, [*rows[row, : branch.context].tolist(), *branch.ids])
        assert torch.allclose(said.entry_logprobs[n], exact.topk(8).values, atol=1e-4)
        assert torch.allclose(said.token_logprob[n], exact[target], atol=1e-4)


def test_a_teacher_that_reads_branches_as_rows_gives_the_same_records(
    teacher: Path, place: Path, store: LogitStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(BranchReader, "_works", lambda self, sequence: False)
    other = run(teacher, place, tmp_path / "s")
    assert tree(other.path / "shards") == tree(store.path / "shards")
    for i in range(len(store)):
        one, two = inside(store)[i].padded(8), inside(other)[i].padded(8)
        likely = one.logprobs > -12
        np.testing.assert_allclose(one.logprobs[likely], two.logprobs[likely], atol=2 * CODE)


def test_no_question_asks_for_more_tokens_than_the_teacher_reads(
    place: Path, tmp_path: Path
) -> None:
    tokenizer = tiny.byte_bpe(400, bos=True)
    tiny.save(tmp_path / "t", tiny.llama(400, max_position_embeddings=9), tokenizer)
    store = run(tmp_path / "t", place, tmp_path / "s", boundaries_of=str(place / "bpe"))
    assert verify_store(store.path, deep=True).damaged == []
    assert inside(store).token_counts.sum() > 500


# ---- pieces of a text ----


@pytest.mark.parametrize("made", [tiny.unigram(), tiny.sp_bpe(), tiny.byte_bpe(400)])
def test_a_piece_from_the_middle_is_written_without_a_space_in_front(
    made: PreTrainedTokenizerFast,
) -> None:
    reader = ByteTokenizer(made)
    middle = MiddleTokenizer(made, reader)
    for piece in (b"eacher", b" the", b"e", "ß".encode(), "ß".encode()[:1], b"\x9f und", b"\n\t "):
        ids = middle.ids(piece)
        assert ids is not None
        assert b"".join(reader.token_bytes[i] or b"" for i in ids) == piece
    if reader.adds_space:
        begun = middle.ids(b"Th", True)
        assert b"".join(reader.token_bytes[i] or b"" for i in begun or ()) == b" Th"


# ---- the store around it ----


def test_the_ordinary_records_are_the_same_bytes_with_and_without_a_student(
    teacher: Path, place: Path, store: LogitStore, tmp_path: Path
) -> None:
    alone = run(teacher, place, tmp_path / "s", boundaries_of=None)
    with_student = tree(store.path)
    assert tree(alone.path) == {
        name: data for name, data in with_student.items() if not str(name).startswith("boundaries")
    }
    assert alone.boundaries == {}
    assert alone.digest == store.digest != inside(store).digest


def test_a_finished_store_gets_another_students_boundaries_added(
    teacher: Path, place: Path, store: LogitStore, tmp_path: Path
) -> None:
    out = tmp_path / "s"
    run(teacher, place, out, boundaries_of=None)
    run(teacher, place, out)
    assert tree(out) == tree(store.path)
    both = run(teacher, place, out, boundaries_of=str(place / "bpe"))
    assert len(both.boundaries) == 2
    text = info_text(facts(both))
    assert str(place / "bpe") in text
    assert str(place / "unigram") in text
    with pytest.raises(MismatchError, match="has no records at the boundaries of nobody"):
        both.boundaries_of("0" * 64, "nobody")


@pytest.mark.parametrize("lost", ["own shard", "answers", "both", "seals", "header"])
def test_a_capture_that_was_killed_is_resumed_to_the_same_bytes(
    teacher: Path, place: Path, store: LogitStore, lost: str, tmp_path: Path
) -> None:
    out = tmp_path / "s"
    shutil.copytree(store.path, out)
    folder = out / "boundaries" / inside(store).path.name
    for path in {
        "own shard": [out / "DONE", out / "shards" / "00001.zarr.zip"],
        "answers": [folder / "DONE", folder / "shards" / "00000.zarr.zip"],
        "both": [
            out / "DONE",
            folder / "DONE",
            folder / "index.parquet",
            folder / "shards" / "00002.zarr.zip",
            out / "shards" / "00001.zarr.zip",
        ],
        "seals": [out / "DONE", folder / "DONE"],
        "header": [out / "DONE", folder / "DONE", folder / "index.parquet", folder / "store.json"],
    }[lost]:
        path.unlink()
    if lost == "answers":
        (student,) = store.boundaries
        with pytest.raises(IncompleteStoreError, match="--boundaries-of` again"):
            logitstore.open_store(out).boundaries_of(student)
    run(teacher, place, out)
    assert tree(out) == tree(store.path)


def test_ranks_and_claiming_workers_write_the_same_stores(
    teacher: Path, place: Path, store: LogitStore, tmp_path: Path
) -> None:
    from logitstore.capture.job import run_capture
    from logitstore.capture.settings import CaptureSettings

    settings = CaptureSettings(**SETTINGS, boundaries_of=str(place / "unigram"))
    data, out = str(place / "rows.jsonl"), tmp_path / "ranks"
    threads = [
        threading.Thread(
            target=run_capture,
            args=(str(teacher), data, out, settings),
            kwargs={"ranks": Ranks(rank, 2)},
        )
        for rank in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert tree(out) == tree(store.path)
    run(teacher, place, tmp_path / "claims", claim=True)
    assert tree(tmp_path / "claims") == tree(store.path)


def test_in_a_bucket_it_is_the_same_objects(
    teacher: Path, place: Path, store: LogitStore, bucket: Bucket
) -> None:
    settings = SETTINGS | {"boundaries_of": str(place / "unigram")}
    data = str(place / "rows.jsonl")
    other = logitstore.capture(teacher, data, f"{bucket.url}/s", **settings)
    assert bucket.tree("s") == tree(store.path)
    assert (inside(other)[3].token_ids == inside(store)[3].token_ids).all()
    assert verify_store(other.path, deep=True).damaged == []


def test_damage_in_it_is_found_and_captured_again(
    teacher: Path, place: Path, store: LogitStore, tmp_path: Path
) -> None:
    from logitstore.capture.again import capture_again
    from logitstore.storage.paths import store_path

    out = tmp_path / "s"
    shutil.copytree(store.path, out)
    folder = out / "boundaries" / inside(store).path.name
    shard = folder / "shards" / "00001.zarr.zip"
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 1
    shard.write_bytes(data)
    damaged = verify_store(out).damaged
    assert [d.file for d in damaged] == [f"boundaries/{folder.name}/shards/00001.zarr.zip"]
    report = repair_store(out)
    assert not report.is_complete
    assert (out / "DONE").exists()
    assert report.missing_shards == 1
    capture_again(store_path(out))
    assert tree(out) == tree(store.path)
    assert verify_store(out, deep=True).damaged == []


def test_a_store_that_belongs_elsewhere_is_not_taken(
    teacher: Path, place: Path, store: LogitStore, tmp_path: Path
) -> None:
    other = run(teacher, place, tmp_path / "other", top_k=4, boundaries_of=None)
    shutil.copytree(store.path / "boundaries", other.path / "boundaries")
    with pytest.raises(MismatchError, match="holds the records of another store"):
        _ = logitstore.open_store(other.path).boundaries
    assert "describes other records" in verify_store(other.path).damaged[0].reason


def test_a_copy_of_rows_says_that_it_leaves_the_boundaries_behind(
    store: LogitStore, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        few = subset(store.path, "0:5", tmp_path / "few")
    assert few.boundaries == {}
    assert "stays behind. Its records at the boundaries of" in caplog.text
    with pytest.raises(InputError, match="belongs to the store around it"):
        subset(inside(store).path, "0:5", tmp_path / "inner")
    copy = shutil.copytree(inside(store).path, tmp_path / "copy")
    with pytest.raises(InputError, match="belongs to the store around it"):
        merge([inside(store).path, copy], tmp_path / "merged")


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


def events(out: Path) -> Iterator[dict[str, Any]]:
    for line in out.with_name(f"{out.name}.journal.jsonl").read_text().splitlines():
        yield json.loads(line)


def test_the_journal_beside_the_store_has_what_was_written_inside_it(store: LogitStore) -> None:
    within = [e for e in events(Path(str(store.path))) if e.get("within")]
    assert {e["event"] for e in within} == {"shard", "sealed"}
    assert not list((Path(str(store.path)) / "boundaries").glob("*journal*"))


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
