"""What labels are compared with where a teacher was asked at the student's boundaries.

The referee asks the teacher itself, one plain forward pass a question. The student writes bytes, so
what it writes next is the next byte of what the teacher writes.
"""

import shutil
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

import logitstore
from distill.data.dataset import StoreDataset
from distill.data.self_test import try_records
from logitstore.errors import IncompleteStoreError, InputError, MismatchError
from logitstore.records import TokenRecords
from logitstore.store import LogitStore
from logitstore.testing import tiny
from logitstore.text.tokenizer import ByteTokenizer
from tests.kit.boundaries import inside, plain
from tests.kit.rows import rows_file, texts_file

TEXTS = [text for text in tiny.corpus() if text.isascii()][28:]
SHARPNESS = 8.0  # random weights say next to nothing


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    here = tmp_path_factory.mktemp("at_boundaries")
    tokenizer, student = tiny.byte_bpe(), tiny.byte_bpe(257)
    model = tiny.llama(len(tokenizer), seed=5)
    with torch.no_grad():
        model.get_output_embeddings().weight.mul_(SHARPNESS)
    tiny.save(here / "teacher", model, tokenizer)
    tiny.save(here / "student", tiny.llama(len(student)), student)
    texts_file(here / "rows.jsonl", TEXTS)
    logitstore.capture(
        here / "teacher", str(here / "rows.jsonl"), here / "store",
        top_k=len(tokenizer), boundaries_of=str(here / "student"),
    )  # fmt: skip
    return here


class Question(NamedTuple):
    """What a label is compared with, by the referee.

    Attributes:
        chances: Of each byte that the student can write next, not summing to one.
        is_mixed: Whether a token of the teacher may have ended here, behind bytes of another.
    """

    chances: dict[bytes, float]
    is_mixed: bool


@pytest.fixture(scope="module")
def questions(place: Path) -> list[dict[int, Question]]:
    """Ask the teacher about each row: by byte, where a label of it is compared with records."""
    store = logitstore.open_store(place / "store")
    model = AutoModelForCausalLM.from_pretrained(place / "teacher").eval()
    teacher = ByteTokenizer(tiny.byte_bpe())
    written = [each or b"" for each in teacher.token_bytes]
    return [
        asked(model, written, teacher.encode(store.text(i).segments).token_ids.tolist(), text)
        for i, text in enumerate(TEXTS)
    ]


def asked(model: Any, written: list[bytes], ids: list[int], text: str) -> dict[int, Question]:
    data, starts = text.encode(), np.cumsum([0, *(len(written[v]) for v in ids)]).tolist()
    found = {}
    for byte in range(starts[1] + 1, len(data)):
        j = max(n for n, start in enumerate(starts) if start < byte)  # the first has no record
        begun = data[starts[j] : byte]
        own = [v for v, each in enumerate(written) if each == begun]
        is_mixed = bool(own) and teacher_writes(begun) == own
        if not is_mixed and starts[j + 1] == byte:
            continue
        q = plain(model, ids[:j]).exp().double().tolist()
        chances: dict[bytes, float] = {}
        for v, each in enumerate(written):
            if each.startswith(begun) and len(each) > len(begun):
                following = each[len(begun) : len(begun) + 1]
                chances[following] = chances.get(following, 0) + q[v]
        if is_mixed:
            behind = plain(model, [*ids[:j], *own]).exp().double().tolist()
            for u, each in enumerate(written):
                chances[each[:1]] = chances.get(each[:1], 0) + q[own[0]] * behind[u]
        found[byte] = Question(chances, is_mixed)
    return found


def at_labels(data: StoreDataset, store: LogitStore, i: int) -> dict[int, dict[bytes, float]]:
    """The target of each label of a row, by its byte: the chances of what the student can write."""
    student, example = data.reader.tokenizer, data[i]
    arrays, found = example.teacher["mapped_kl"], {}
    starts = student.encode(store.text(i).segments).byte_starts[example.is_label]
    stop = np.cumsum(arrays["entry_count"])
    for p, label in enumerate(arrays["index"].tolist()):
        at = slice(int(stop[p] - arrays["entry_count"][p]), int(stop[p]))
        mass = np.exp(arrays["entry_logmass"][at].astype(float)).tolist()
        written = [student.token_bytes[u] or b"" for u in arrays["entry_ids"][at]]
        found[int(starts[label])] = dict(zip(written, mass, strict=True))
    return found


@pytest.mark.parametrize("kind", ["canonical", "counted", "prefix"])
def test_every_label_is_compared_with_tokens_that_go_on_and_those_behind_one_that_ended(
    place: Path, questions: list[dict[int, Question]], kind: str
) -> None:
    store = inside(logitstore.open_store(place / "store"))
    student = ByteTokenizer(tiny.byte_bpe(257))
    data = StoreDataset(store, student, ("mapped_kl",), map=kind)
    for i, of_row in enumerate(questions):
        found = at_labels(data, store, i)
        for byte, question in of_row.items():
            total, target = sum(question.chances.values()), found[byte]
            for x, mass in question.chances.items():
                if not b"" < x < b"\x80":
                    continue  # not every token without bytes is an end, nor are parts of characters
                assert abs(target.get(x, 0.0) - mass / total) <= 0.02, (byte, x)
    every = [question for of_row in questions for question in of_row.values()]
    assert len(every) > 150
    assert sum(question.is_mixed for question in every) > 60


def teacher_writes(begun: bytes) -> list[int]:
    ids: list[int] = tiny.byte_bpe()(begun.decode(), add_special_tokens=False)["input_ids"]
    return ids


def test_records_at_boundaries_are_read_beside_those_of_the_store_around_them(
    place: Path, tmp_path: Path
) -> None:
    store = logitstore.open_store(place / "store")
    within = logitstore.open_store(inside(store).path)
    assert within.outer.path == store.path
    for one, other in zip(within.read_around([2, 0]), store.read_many([2, 0]), strict=True):
        np.testing.assert_array_equal(one.token_ids, other.token_ids)
        np.testing.assert_array_equal(one.entry_logprobs, other.entry_logprobs)
    moved = tmp_path / "boundaries" / "alone"
    shutil.copytree(str(inside(store).path), moved)
    alone = logitstore.open_store(moved)
    with pytest.raises(MismatchError, match=r"is no store\. Move it back"):
        alone.read_around([0])


def test_records_at_boundaries_of_another_store_are_refused(place: Path, tmp_path: Path) -> None:
    data = rows_file(tmp_path / "rows.jsonl", *({"text": text} for text in TEXTS[2:]))
    other = logitstore.capture(place / "teacher", str(data), tmp_path / "other", top_k=8)
    store = logitstore.open_store(place / "store")
    inner = inside(store).path
    moved = tmp_path / "other" / "boundaries" / inner.name
    shutil.copytree(str(inner), moved)
    with pytest.raises(MismatchError, match=f"does not belong to .*{other.path.name}"):
        logitstore.open_store(moved).read_around([0])


def test_records_at_boundaries_without_those_around_them_are_refused(
    place: Path, tmp_path: Path
) -> None:
    whole = tmp_path / "store"
    logitstore.capture(
        place / "teacher", str(place / "rows.jsonl"), whole, top_k=8, shard_text_bytes=200,
        boundaries_of=str(place / "student"),
    )  # fmt: skip
    within = inside(logitstore.open_store(whole))
    (whole / "DONE").unlink()
    (whole / "shards" / "00001.zarr.zip").unlink()
    with pytest.raises(IncompleteStoreError, match=r"lacks 1 of the \d+ shards .* \(shard 1 first"):
        logitstore.open_store(within.path).read_around([0])


def test_answers_of_other_boundaries_are_noticed_before_training(place: Path) -> None:
    """As the records around them are: the entries of each are those of another one here."""
    store = inside(logitstore.open_store(place / "store"))
    data = StoreDataset(store, ByteTokenizer(tiny.byte_bpe(257)), ("mapped_kl",))
    assert try_records(data).outcome == "cannot tell"
    read = store.read_many

    def shifted(indices: Iterable[int]) -> list[TokenRecords]:
        found = read(indices)
        return [replace(r, token_logprob=np.roll(r.token_logprob, 1)) for r in found]

    store.read_many = shifted  # type: ignore[method-assign]
    with pytest.raises(InputError, match="two different log-probabilities"):
        try_records(data)
