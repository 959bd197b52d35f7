"""A student against a store: each figure is what its definition says, one position at a time."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from distill.alignment.align import align
from distill.data.targets import student_spans, teacher_spans
from distill.evaluation.against_store import judge
from distill.evaluation.sums import CALIBRATION_BINS, Calibration
from distill.student.text import StudentReader
from logitstore.errors import InputError, MismatchError
from logitstore.testing import tiny
from logitstore.testing.fake_store import FakeStore, dense_logprobs
from logitstore.text.tokenizer import ByteTokenizer
from tests.kit.students import ragged_rows


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> FakeStore:
    tokenizer = tiny.unigram()
    folder = tmp_path_factory.mktemp("teacher")
    return FakeStore.from_teacher(
        tiny.llama(len(tokenizer), seed=7), tokenizer, ragged_rows(), folder, top_k=16
    )


def reader_of(store: FakeStore, tokenizer: Any) -> StudentReader:
    return StudentReader(ByteTokenizer(tokenizer), store.spec.rendering, store.path)


def by_definition(store: FakeStore, model: Any, tokenizer: Any) -> dict[str, float]:
    """Position by position, from dense logits."""
    student, teacher = ByteTokenizer(tokenizer), ByteTokenizer.from_folder(store.tokenizer_path)
    reader = StudentReader(student, store.spec.rendering, store.path)
    equal, compatible, hits, confidence, ulds = [], [], [], [], []
    for records, line in zip(store.records, store.texts, strict=True):
        spans = teacher_spans(records, line, store.spec.eos_ids, teacher)
        tokens, *_ = reader.read(line, spans)
        assert tokens is not None
        places = np.flatnonzero(tokens.has_record)
        probs = dense_logprobs(model, tokens.token_ids)[places - 1].exp()
        best = probs.argmax(-1).tolist()
        hits += [int(tokens.token_ids[p]) == b for p, b in zip(places, best, strict=True)]
        confidence += probs.amax(-1).tolist()
        found = align(spans, student_spans(tokens))
        entries = records.padded()
        assert entries.ids is not None
        for t, s in found.shared_starts:
            theirs, ours = int(entries.ids[t, 0]), best[s]
            ends = theirs in teacher.eos_ids, ours in student.eos_ids
            a, b = teacher.token_bytes[theirs], student.token_bytes[ours]
            same = all(ends) or bool(not any(ends) and a and a == b)
            equal.append(same)
            either = bool(not any(ends) and a and b and (a.startswith(b) or b.startswith(a)))
            compatible.append(same or either)
        for t0, t1, s0, s1 in found.groups:
            k = int(records.entry_count[t1 - 1])
            q = np.exp(entries.logprobs[t1 - 1, :k].astype(float))
            b_scale = np.exp(records.token_logprob[t0 : t1 - 1].astype(float).sum())
            ids = tokens.token_ids[places]
            a_scale = float(np.prod([float(probs[j, ids[j]]) for j in range(s0, s1 - 1)]))
            p = probs[s1 - 1].sort(descending=True).values.numpy()
            tail = b_scale * np.exp(float(records.tail_logmass[t1 - 1]))
            ulds.append(
                np.abs(a_scale * p[:k] - b_scale * q).sum() + abs(a_scale * p[k:].sum() - tail)
            )
    error = 0.0
    for low in range(CALIBRATION_BINS):
        inside = [
            i
            for i, c in enumerate(confidence)
            if low / CALIBRATION_BINS < c <= (low + 1) / CALIBRATION_BINS
        ]
        error += abs(sum(hits[i] - confidence[i] for i in inside)) / len(confidence)
    return {
        "agreement": float(np.mean(equal)),
        "agreement_prefix": float(np.mean(compatible)),
        "uld": float(np.mean(ulds)),
        "calibration_error": error,
    }


def agreeing(store: FakeStore, model: Any, tokenizer: Any) -> FakeStore:
    """With most probable tokens that the student's equal, or begin with, each a third of them."""
    student, teacher = ByteTokenizer(tokenizer), ByteTokenizer.from_folder(store.tokenizer_path)
    records = []
    for each, line in zip(store.records, store.texts, strict=True):
        spans = teacher_spans(each, line, store.spec.eos_ids, teacher)
        tokens = StudentReader(student, store.spec.rendering, store.path).read(line, spans).tokens
        assert tokens is not None
        places = np.flatnonzero(tokens.has_record)
        best = dense_logprobs(model, tokens.token_ids)[places - 1].argmax(-1).tolist()
        starts = student_spans(tokens)
        ids = each.padded().ids
        assert ids is not None
        for t, s in align(spans, starts).shared_starts[::3]:
            own = student.token_bytes[best[s]] or b"?"
            ids[t, 0] = teacher.token_bytes.index(own if s % 2 and len(own) == 1 else own[:1])
        records.append(replace(each, entry_ids=ids.ravel()))
    return replace(store, records=records)


def test_every_figure_is_its_definition(store: FakeStore) -> None:
    tokenizer = tiny.byte_bpe()
    model = tiny.llama(len(tokenizer))
    store = agreeing(store, model, tokenizer)
    found = judge(model, store, reader_of(store, tokenizer))
    expected = by_definition(store, model, tokenizer)
    assert {key: found[key] for key in expected} == pytest.approx(expected, abs=1e-5)
    assert 0 < found["agreement"] < found["agreement_prefix"] < 1


def test_the_teacher_agrees_with_itself_and_is_as_calibrated_as_it_is(store: FakeStore) -> None:
    tokenizer = tiny.unigram()
    found = judge(tiny.llama(len(tokenizer), seed=7), store, reader_of(store, tokenizer))
    assert (found["agreement"], found["agreement_prefix"]) == (1, 1)
    assert found["uld"] == pytest.approx(0, abs=1e-4)
    assert found["calibration_error"] == pytest.approx(found["teacher_calibration_error"], abs=1e-4)
    another = judge(tiny.llama(len(tokenizer), seed=8), store, reader_of(store, tokenizer))
    assert another["agreement"] < 0.5
    assert another["uld"] > 0.05


def test_batches_change_nothing(store: FakeStore) -> None:
    tokenizer = tiny.byte_bpe()
    model, reader = tiny.llama(len(tokenizer)), reader_of(store, tokenizer)
    whole = judge(model, store, reader, tokens_per_batch=10_000)
    for tokens in (100, 1):
        cut = judge(model, store, reader, tokens_per_batch=tokens)
        for key in ("agreement", "agreement_prefix", "uld", "uld_gap", "calibration_error"):
            assert cut[key] == pytest.approx(whole[key], rel=1e-5)
        assert cut["judged"] == whole["judged"]


def test_calibration_is_the_mean_distance_of_accuracy_from_confidence() -> None:
    calibration = Calibration()
    calibration.add(np.array([0.9, 0.92, 0.1, 1.0]), np.array([True, False, False, True]))
    # One bin holds 0.9 and 0.92, one 0.1, and the last 1.0: |1 - 1.82| + 0.1 + 0, over four.
    assert calibration.error == pytest.approx((0.82 + 0.1) / 4)
    assert Calibration().error is None


@pytest.mark.parametrize(
    ("held", "says"),
    [({"top_k": 0}, "captured with --top-k 0"), ({"has_ids": False}, "captured with --no-ids")],
)
def test_agreement_needs_to_know_the_teachers_tokens(
    store: FakeStore, held: dict[str, Any], says: str
) -> None:
    blind = replace(store, spec=replace(store.spec, **held))
    tokenizer = tiny.byte_bpe()
    with pytest.raises(MismatchError, match=says):
        judge(tiny.llama(300), blind, reader_of(store, tokenizer), ["agreement"])


def test_a_store_that_the_student_cannot_read_is_an_error(store: FakeStore) -> None:
    texts = [text._replace(status="too_long") for text in store.texts]
    tokenizer = tiny.byte_bpe()
    with pytest.raises(InputError, match="can read none of its 8 sequences"):
        judge(
            tiny.llama(300), replace(store, texts=texts), reader_of(store, tokenizer), ["agreement"]
        )


def test_the_largest_ids_are_those_of_the_largest_logits() -> None:
    from distill.head.query import HeadQuery
    from distill.head.student_head import StudentHead

    model = tiny.llama(40)
    ids = torch.randint(40, (2, 9), generator=torch.Generator().manual_seed(0))
    rows = torch.arange(18)
    query = HeadQuery(ids.flatten(), top_k=3, has_top_ids=True)
    with torch.no_grad():
        expected = model(ids).logits.flatten(0, 1).topk(3).indices
        for dense_, chunk in ((False, 4), (False, 18), (True, None)):
            head = StudentHead(model, chunk_tokens=chunk, dense=dense_)
            found = head(model, {"input_ids": ids}, rows, query).top_ids_NK
            assert found is not None
            assert torch.equal(found, expected)
