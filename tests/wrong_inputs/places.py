"""A folder of things that are wrong, each in one way, and of right ones beside them."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import ByT5Tokenizer, PreTrainedTokenizerFast

from distill.data.dataset import StoreDataset
from logitstore import open_store
from logitstore.capture import capture
from logitstore.reading.shard_cache import FOLDER_VARIABLE
from logitstore.testing import tiny
from logitstore.text.tokenizer import ByteTokenizer
from tests.kit import students, templates
from tests.kit.rows import rows_file

TEXTS = ("The teacher reads.", "A student writes, then stops.", "One more row of text.")
TALK = templates.turns("Who reads?", "The teacher.", "And who writes?", "The student.")


def make(here: Path) -> Path:
    """Fills the folder; returns it."""
    _models(here)
    _datasets(here)
    _stores(here)
    _runs(here)
    _swapped_maps(here)
    return here


def _models(here: Path) -> None:
    tokenizer, other = tiny.byte_bpe(300), tiny.unigram()
    tiny.save(here / "teacher", tiny.llama(300), tokenizer)
    tiny.save(here / "student", tiny.llama(len(other)), other)
    chatty = templates.gemma()
    tiny.save(here / "stranger", tiny.llama(2), _stranger())
    tiny.save(here / "chatty", tiny.llama(len(chatty)), chatty)
    tiny.save(here / "small", tiny.llama(280), tokenizer)
    ByT5Tokenizer().save_pretrained(here / "placeless")
    tiny.save(here / "two-sided", students.t5(), tokenizer)
    tiny.save(here / "alibi", students.bloom(), tokenizer)
    broken: dict[str, Callable[[Path], object]] = {
        "no-config": lambda f: (f / "config.json").unlink(),
        "bad-config": lambda f: (f / "config.json").write_text('{"model_type": "llama",'),
        "translator": lambda f: (f / "config.json").write_text(
            '{"model_type": "t5", "vocab_size": 300}'
        ),
        "no-weights": lambda f: (f / "model.safetensors").unlink(),
        "cut-weights": lambda f: _cut(f / "model.safetensors"),
        "headless": lambda f: _without_head(f),
        "bad-tokenizer": lambda f: (f / "tokenizer.json").write_text('{"model": '),
        "no-tokenizer": lambda f: [p.unlink() for p in f.glob("tokenizer*")],
    }
    for name, breaks in broken.items():
        breaks(Path(shutil.copytree(here / "teacher", here / name)))


def _stranger() -> PreTrainedTokenizerFast:
    """A tokenizer that knows one word, in another script than all texts."""
    words = Tokenizer(WordLevel({"[UNK]": 0, "日本": 1}, unk_token="[UNK]"))
    words.pre_tokenizer = WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=words, unk_token="[UNK]", pad_token="[UNK]")


def _without_head(folder: Path) -> None:
    from safetensors.torch import load_file, save_file

    weights = load_file(folder / "model.safetensors")
    del weights["lm_head.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _datasets(here: Path) -> None:
    rows_file(here / "rows.jsonl", *({"text": text} for text in TEXTS))
    rows_file(here / "talk.jsonl", {"messages": TALK})
    rows_file(here / "talk-as-text.jsonl", {"text": TEXTS[0]})
    rows_file(here / "columns.jsonl", {"question": "?", "reply": "!"})
    rows_file(here / "singular.jsonl", {"conversation": TALK})
    rows_file(here / "sharegpt.jsonl", {"conversations": [{"from": "bing", "value": "?"}]})
    rows_file(here / "roles.jsonl", {"messages": [TALK[0], TALK[1] | {"role": "Assistant"}]})
    rows_file(here / "fraction.jsonl", {"messages": [TALK[0], TALK[1] | {"weight": 0.5}]})
    opposite = {"weight": 0, "train": True}
    rows_file(here / "opposite.jsonl", {"messages": [TALK[0], TALK[1] | opposite]})
    rows_file(here / "trained-user.jsonl", {"messages": [TALK[0] | {"train": True}, TALK[1]]})
    rows_file(here / "late.jsonl", {"text": "a"}, {"other": "b"})
    rows_file(here / "mixed.jsonl", {"text": "a"}, {"text": ["b"]})
    (here / "twice.jsonl").write_text('{"text": "a", "text": "b"}\n')
    (here / "nan.jsonl").write_text('{"messages": [{"role": "user", "content": "a", "x": NaN}]}\n')
    (here / "deep.jsonl").write_text('{"text": "a", "x": ' + "[" * 9000 + "]" * 9000 + "}\n")
    (here / "packed.jsonl.gz").write_bytes(b'{"text": "a"}\n')
    lengths = {"input_ids": [5, 6, 7], "seq_lengths": [2, 2]}
    rows_file(here / "lengths.jsonl", lengths)
    rows_file(here / "jump.jsonl", {"input_ids": [5, 6, 7], "position_ids": [0, 1, 5]})
    rows_file(here / "private.jsonl", {"text": "a", "teacher_prompt": "b"})
    answers = {"messages": TALK[:2], "teacher_messages": [TALK[0], TALK[3]]}
    rows_file(here / "answers.jsonl", answers)
    rows_file(here / "numbers.jsonl", {"text": 3})
    rows_file(here / "half.jsonl", {"prompt": "Who?", "completion": TALK[1:2]})
    rows_file(here / "no-role.jsonl", {"messages": [{"who": "human", "content": "?"}]})
    rows_file(
        here / "image.jsonl", {"messages": [{"role": "user", "content": [{"type": "image"}]}]}
    )
    rows_file(here / "system.jsonl", {"messages": templates.turns("?", "!", system="Be brief.")})
    rows_file(here / "far.jsonl", {"input_ids": [5, 6, 300]})
    rows_file(here / "shifted.jsonl", {"input_ids": [5, 6, 7], "labels": [6, 7, -100]})
    rows_file(here / "short.jsonl", {"input_ids": [5, 6, 7], "completion_mask": [0, 1]})
    rows_file(here / "monologue.jsonl", {"messages": TALK[:1]})
    (here / "cut.jsonl").write_text('{"text": "whole"}\n{"text": "cut\n')
    (here / "surrogate.jsonl").write_text('{"text": "whole"}\n{"text": "\\ud800"}\n')
    (here / "latin.txt").write_bytes("Größe\n".encode("latin-1"))
    (here / "empty.jsonl").write_text("")
    (here / "nothing.jsonl").write_text('{"text": ""}\n')
    (here / "rows.csv").write_text("text\na\n")
    (here / "bad.parquet").write_bytes(b"PAR1 but no more")
    (here / "bad.jinja").write_text("{% for m in messages %}{{ m.content }}")
    (here / "zero.jinja").write_text("{{ 1 / 0 }}")


def _stores(here: Path) -> None:
    data = here / "rows.jsonl"
    capture(str(here / "teacher"), str(data), here / "store", top_k=8, shard_text_bytes=30)
    capture(str(here / "teacher"), str(data), here / "blind", top_k=8, ids=False)
    for name, of in (("boundaries", "student"), ("other-boundaries", "chatty")):
        capture(str(here / "teacher"), str(data), here / name, boundaries_of=str(here / of))
    broken: dict[str, Callable[[Path], object]] = {
        "newer": lambda s: _with_version(s / "store.json", 9),
        "begun": lambda s: (s / "DONE").unlink(),
        "bad-header": lambda s: (s / "store.json").write_text("{"),
        "lost-shard": lambda s: (s / "shards" / "00001.zarr.zip").unlink(),
        "cut-shard": lambda s: _cut(s / "shards" / "00000.zarr.zip"),
        "bad-index": lambda s: _cut(s / "index.parquet"),
        "no-shards": lambda s: shutil.rmtree(s / "shards"),
    }
    for name, breaks in broken.items():
        breaks(Path(shutil.copytree(here / "store", here / name)))
    (here / "occupied").mkdir()
    (here / "occupied" / "thesis.tex").write_text("years")


def _swapped_maps(here: Path) -> None:
    """Kept maps of two kinds, each under the name of the other."""
    os.environ[FOLDER_VARIABLE], before = str(here / "swapped"), os.environ.get(FOLDER_VARIABLE)
    try:
        kept: list[Path] = []
        for kind in ("prefix", "canonical"):
            store, student = open_store(here / "store"), tiny.unigram()
            StoreDataset(store, ByteTokenizer(student), ["mapped_kl"], map=kind)
            kept += set((here / "swapped" / "maps").glob("*.npz")) - set(kept)
    finally:
        del os.environ[FOLDER_VARIABLE]
        if before is not None:
            os.environ[FOLDER_VARIABLE] = before
    first, second = kept
    whole = first.read_bytes()
    first.write_bytes(second.read_bytes())
    second.write_bytes(whole)


def _with_version(path: Path, version: int) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | {"version": version}))


def _runs(here: Path) -> None:
    """Output folders of `distill train`, and files of its flags."""
    shutil.copytree(here / "student", here / "bad-results")
    (here / "bad-results" / "results.json").write_text('{"name": "cut')
    shutil.copytree(here / "student", here / "good-results")
    (here / "good-results" / "results.json").write_text('{"name": "whole"}')
    for name, origin in (("resumed", "{"), ("other-run", '{"store_digest": "0", "sequences": 3}')):
        checkpoint = here / name / "checkpoint-2"
        shutil.copytree(here / "student", checkpoint)
        (checkpoint / "distill.json").write_text(origin)
        (checkpoint / "trainer_state.json").write_text("{}")
    shutil.copytree(here / "other-run", here / "cut-run")
    _cut(here / "cut-run" / "checkpoint-2" / "model.safetensors")
    shutil.copytree(here / "other-run", here / "cut-state")
    (here / "cut-state" / "checkpoint-2" / "optimizer.pt").write_bytes(b"PK\x03\x04")
    (here / "typo.yaml").write_text("learning_rte: 1e-4\n")
    (here / "list.yaml").write_text("- seed\n- 3\n")
    (here / "bomb.yaml").write_text("seed: &a [1, 1]\nloss: &b [*a, *a]\nce_weight: [*b, *b]\n")
    (here / "date.yaml").write_text("seed: 2026-13-40\n")
    (here / "deep.yaml").write_text("seed: " + "[" * 9000 + "]" * 9000)
    (here / "long.yaml").write_text("# \n" * 99_999)
