"""From a store to batches: which teacher record meets which student token, and what it brings."""

import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from distill.alignment.align import Spans
from distill.alignment.map_entries import VocabularyMap
from distill.data.collator import Collator
from distill.data.dataset import StoreDataset
from distill.data.ragged import rectangles, tensors_of
from distill.data.targets import position_groups
from distill.losses import find, option_values
from distill.losses.aligned import TOKEN_LOGPROB_ERROR_NATS, Aligned
from logitstore.errors import InputError, MismatchError
from logitstore.records import Segment, TokenRecords
from logitstore.testing import tiny
from logitstore.testing.fake_store import FakeStore, Row
from logitstore.text.tokenizer import ByteTokenizer

TEXTS = [
    "The old river counts.",
    "emoji: 🙂👍🏽, 学生は",
    "e\u0301 against é",
    "x",
    "",
    "two  spaces",
]


def text_rows(texts: list[str]) -> list[Row]:
    return [(Segment(text, supervised=True),) for text in texts]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> FakeStore:
    tokenizer = tiny.unigram()
    model = tiny.llama(len(tokenizer))
    rows = text_rows(TEXTS)
    rows += [(Segment("Question? ", supervised=False), Segment("An answer.", supervised=True))]
    return FakeStore.from_teacher(model, tokenizer, rows, tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture(scope="module")
def student() -> ByteTokenizer:
    return ByteTokenizer(tiny.byte_bpe())


def wide(arrays: dict[str, Any]) -> dict[str, np.ndarray[Any, Any]]:
    """A loss's arrays as its terms read them on the device."""
    return {key: found.numpy() for key, found in rectangles(tensors_of(arrays)).items()}


def arrays_of(
    name: str, records: TokenRecords, pairs: np.ndarray[Any, Any], **more: Any
) -> dict[str, np.ndarray[Any, Any]]:
    """What a loss makes of these records, for labels that are all token 0."""
    more.setdefault("label_ids", np.zeros(int(pairs[:, 3].max(initial=0)), np.int64))
    return find(name).arrays(Aligned(records, pairs, **more), option_values({}))


def records_of(entries: list[dict[int, float]], own: list[float]) -> TokenRecords:
    """Records with the given probabilities; what is missing to 1 is the tail."""
    n = len(entries)
    ids = np.array([i for e in entries for i in e], np.uint32)
    logprobs = np.log(np.array([p for e in entries for p in e.values()], np.float64))
    with np.errstate(divide="ignore"):
        tail = np.log([max(1 - sum(e.values()), 0.0) for e in entries])
        token_logprob = np.log(own)
    return TokenRecords(
        token_ids=np.arange(n, dtype=np.uint32),
        byte_starts=np.arange(n, dtype=np.int64),
        byte_lengths=np.ones(n, np.int64),
        token_logprob=token_logprob.astype(np.float32),
        entry_count=np.array([len(e) for e in entries], np.int64),
        entry_ids=ids,
        entry_logprobs=logprobs.astype(np.float32),
        tail_logmass=tail.astype(np.float32),
        entropy=np.zeros(n, np.float32),
    )


def spans(*lengths: int, start: int = 0, eos: bool = True) -> Spans:
    sizes = np.array([*lengths, *([0] if eos else [])], np.int64)
    return Spans(start + np.cumsum(sizes) - sizes, sizes, np.arange(len(sizes)) >= len(lengths))


# ---- pairing by position ----


def test_position_pairs_the_kth_with_the_kth_and_skips_the_students_end() -> None:
    groups = position_groups(spans(2, 2, 2), spans(3, 3), 0, 0)
    np.testing.assert_array_equal(groups, [[0, 1, 0, 1], [1, 2, 1, 2]])
    # The other way around, the teacher's end is its last token like any other.
    groups = position_groups(spans(3, 3), spans(1, 1, 1, 3), 0, 0)
    np.testing.assert_array_equal(groups[:, [0, 2]], [[0, 0], [1, 1], [2, 2]])


def test_a_first_token_without_a_record_is_still_the_first() -> None:
    """A student without BOS has no record of token 0; its record 0 belongs to token 1."""
    groups = position_groups(spans(1, 1, 1), spans(1, 1, start=1), 0, 1)
    np.testing.assert_array_equal(groups[:, [0, 2]], [[1, 0], [2, 1]])


def test_an_answer_without_a_position_gives_no_pair() -> None:
    assert len(position_groups(spans(), spans(), 0, 0)) == 0
    assert len(position_groups(spans(2, eos=False), spans(1, start=9), 0, 5)) == 0


def test_position_counts_tokens_of_the_text_not_records(store: FakeStore) -> None:
    """The teacher begins with BOS, the student does not: token 1 of both sides is one pair."""
    reader = ByteTokenizer(tiny.byte_bpe())
    data = StoreDataset(store, reader, ["uld"], pairing="position")
    arrays = wide(data[0].teacher["uld"])
    np.testing.assert_array_equal(
        arrays["entry_logprobs"][0], store.records[0].padded().logprobs[1]
    )
    np.testing.assert_array_equal(arrays["index"][:3], [0, 1, 2])
    assert not arrays["log_scale"].any()
    # After a prompt both sides predict their first token.
    arrays = wide(data[len(data) - 1].teacher["uld"])
    np.testing.assert_array_equal(
        arrays["entry_logprobs"][0], store.records[-1].padded().logprobs[0]
    )


def test_after_a_prompt_a_dropped_byte_is_no_missing_token(
    student: ByteTokenizer, tmp_path: Path
) -> None:
    """WordPiece drops a NUL between prompt and answer: its first record starts behind it."""
    tokenizer = tiny.wordpiece()
    row = (Segment("A question?", supervised=False), Segment("\0An answer", supervised=True))
    store = FakeStore.from_teacher(tiny.llama(len(tokenizer)), tokenizer, [row], tmp_path)
    assert store.records[0].byte_starts[0] == 1
    arrays = wide(StoreDataset(store, student, ["uld"], pairing="position")[0].teacher["uld"])
    np.testing.assert_array_equal(
        arrays["entry_logprobs"][0], store.records[0].padded().logprobs[0]
    )
    assert arrays["index"][0] == 0


# ---- a group's distribution ----


def test_a_groups_record_is_its_last_and_its_scale_the_earlier_ones() -> None:
    records = records_of([{5: 0.5, 6: 0.25}, {7: 0.9}, {8: 0.6, 9: 0.1}], own=[0.5, 0.25, 0.125])
    arrays = wide(arrays_of("uld", records, np.array([[0, 1, 0, 2], [1, 3, 2, 5]])))
    np.testing.assert_array_equal(arrays["index"], [1, 4])
    np.testing.assert_allclose(np.exp(arrays["entry_logprobs"]), [[0.5, 0.25], [0.6, 0.1]])
    np.testing.assert_allclose(np.exp(arrays["tail_logmass"]), [0.25, 0.3], rtol=1e-6)
    np.testing.assert_allclose(np.exp(arrays["log_scale"]), [1, 0.25])
    np.testing.assert_array_equal(arrays["earlier_index"], [0, 2, 3])
    np.testing.assert_array_equal(arrays["earlier_pair"], [0, 1, 1])


def test_a_token_the_teacher_excluded_spoils_no_other_group() -> None:
    records = records_of([{5: 1.0}] * 4, own=[0.0, 0.5, 0.5, 0.5])
    groups = np.array([[0, 2, 0, 1], [2, 4, 1, 2]])
    arrays = arrays_of("uld", records, groups, l1_max=0.1)
    np.testing.assert_allclose(np.exp(arrays["log_scale"]), [0, 0.5])
    assert arrays["codec_bound"][0] == 0


@given(
    true=st.lists(st.floats(0.01, 1), min_size=2, max_size=5),
    noise=st.lists(st.floats(-0.01, 0.01), min_size=5, max_size=5),
    own=st.lists(st.floats(0.001, 1), min_size=1, max_size=4),
    error=st.floats(-TOKEN_LOGPROB_ERROR_NATS, TOKEN_LOGPROB_ERROR_NATS),
)
def test_the_codec_bound_covers_rounded_entries_and_rounded_scales(
    true: list[float], noise: list[float], own: list[float], error: float
) -> None:
    live = np.array(true) / sum(true)
    stored = np.maximum(live + noise[: len(live)], 1e-6)
    stored /= stored.sum()
    earlier = len(own)
    records = records_of(
        [{0: 1.0}] * earlier + [dict(enumerate(stored))], own=[*(p * np.exp(error) for p in own), 1]
    )
    l1 = float(np.abs(live - stored).sum())
    arrays = arrays_of("uld", records, np.array([[0, earlier + 1, 0, 1]]), l1_max=l1)
    exact = np.prod(own) * live
    cached = np.exp(arrays["log_scale"][0], dtype=np.float64) * stored
    assert np.abs(exact - cached).sum() <= arrays["codec_bound"][0] * (1 + 1e-4) + 1e-9


# ---- mapped entries ----


@given(
    st.lists(st.dictionaries(st.integers(0, 9), st.floats(1e-3, 0.1)), min_size=1, max_size=4),
    st.lists(st.integers(-1, 3), min_size=10, max_size=10),
)
def test_mapped_masses_are_added_up_and_nothing_is_lost(
    entries: list[dict[int, float]], mapping: list[int]
) -> None:
    records = records_of(entries, own=[1.0] * len(entries))
    t, s = np.arange(len(entries)), 2 * np.arange(len(entries))
    pairs, sent = (
        np.stack([t, t + 1, s, s + 1], 1),
        VocabularyMap.of_ids(np.array(mapping, np.int32)),
    )
    arrays = wide(arrays_of("mapped_kl", records, pairs, mapping=sent))
    np.testing.assert_array_equal(arrays["index"], s)
    for p, entry in enumerate(entries):
        expected: dict[int, float] = {}
        rest = 1 - sum(entry.values())
        for token, probability in entry.items():
            if mapping[token] < 0:
                rest += probability
            else:
                expected[mapping[token]] = expected.get(mapping[token], 0) + probability
        found = {
            int(i): float(np.exp(m))
            for i, m in zip(arrays["entry_ids"][p], arrays["entry_logmass"][p], strict=True)
            if i >= 0
        }
        assert found == pytest.approx(expected, rel=1e-5)
        assert np.exp(arrays["rest_logmass"][p]) == pytest.approx(rest, abs=1e-5)


def test_the_rest_is_exact_where_the_head_holds_nearly_everything() -> None:
    """1 - sum would be noise of 1e-8 here; the tail itself is known to six digits."""
    records = replace(records_of([{0: 1.0}], own=[1.0]), tail_logmass=np.array([-40.0], np.float32))
    arrays = arrays_of(
        "mapped_kl",
        records,
        np.array([[0, 1, 0, 1]]),
        mapping=VocabularyMap.of_ids(np.array([3], np.int32)),
    )
    assert arrays["rest_logmass"][0] == pytest.approx(-40.0, rel=1e-6)


def test_ids_past_the_teachers_tokenizer_go_to_the_rest(
    store: FakeStore, student: ByteTokenizer
) -> None:
    """A head is often padded past its tokenizer, and its bytes are then unknown."""
    padded = replace(store, spec=replace(store.spec, vocab_size=9999))
    data = StoreDataset(padded, student, ["mapped_kl"], map="canonical")
    assert data.mappings["mapped_kl"] is not None
    assert len(data.mappings["mapped_kl"]) == 9999
    assert (data.mappings["mapped_kl"].ids[store.spec.vocab_size :] == -1).all()


# ---- rows and batches ----


@pytest.mark.parametrize("losses", [(), ("uld",), ("mapped_kl",), ("uld", "mapped_kl")])
def test_a_batch_is_its_rows_side_by_side(
    store: FakeStore, student: ByteTokenizer, losses: tuple[str, ...]
) -> None:
    data = StoreDataset(store, student, losses)
    collate = Collator(student.pad_id, losses)
    examples = data.__getitems__(list(range(len(data))))
    whole, parts = collate(examples), [collate([e]) for e in examples]
    labels = whole["labels"].flatten()[whole["rows"] + 1]
    assert (labels != -100).all()
    torch.testing.assert_close(labels, torch.cat([p["labels"][p["labels"] != -100] for p in parts]))
    assert (whole["labels"] != -100).sum() == len(labels)
    np.testing.assert_array_equal(
        whole["attention_mask"].sum(1), [len(e.token_ids) for e in examples]
    )
    for name in losses:
        shift = np.cumsum([0] + [len(p["rows"]) for p in parts])
        index = torch.cat(
            [p["teacher"][name]["index"] + s for p, s in zip(parts, shift, strict=False)]
        )
        torch.testing.assert_close(whole["teacher"][name]["index"], index)
        for key in ("tail_logmass", "log_scale", "codec_bound", "rest_logmass"):
            if key in whole["teacher"][name]:
                joined = torch.cat([p["teacher"][name][key] for p in parts])
                torch.testing.assert_close(whole["teacher"][name][key], joined)


def test_groups_keep_their_earlier_labels_in_a_batch(
    store: FakeStore, student: ByteTokenizer
) -> None:
    data = StoreDataset(store, student, ["uld"])
    batch = Collator(student.pad_id, ["uld"])(data.__getitems__([0, 1, 2]))
    uld = batch["teacher"]["uld"]
    last = uld["index"][uld["earlier_pair"]]
    assert len(last) > 0
    assert (uld["earlier_index"] < last).all()
    # A label and its pair lie in one row of the batch.
    assert (batch["example"][uld["earlier_index"]] == batch["example"][last]).all()


def test_every_aligned_token_writes_the_bytes_of_its_records(
    store: FakeStore, student: ByteTokenizer
) -> None:
    """Emoji, CJK and combining marks: both sides of a group are the same bytes."""
    data = StoreDataset(store, student, ["uld"])
    for i, sequence in enumerate(data.sequences):
        example, text = data[i], store.texts[sequence]
        uld = example.teacher["uld"]
        first = uld["index"].copy()
        np.minimum.at(first, uld["earlier_pair"], uld["earlier_index"])
        tokens = student.encode(text.segments)
        starts = tokens.byte_starts[tokens.has_record]
        ends = starts + tokens.byte_lengths[tokens.has_record]
        records = store.records[sequence]
        edges = set(records.byte_starts) | set(records.byte_starts + records.byte_lengths)
        assert set(starts[first]) <= edges
        assert set(ends[uld["index"]]) <= edges


def test_rows_without_records_are_never_sampled_and_are_counted(
    store: FakeStore, student: ByteTokenizer
) -> None:
    data = StoreDataset(store, student, ["uld"])
    assert data.without_records == 1  # the empty text
    assert 4 not in data.sequences
    assert len(data) == len(store) - 1


def test_a_store_without_any_record_is_refused(store: FakeStore, student: ByteTokenizer) -> None:
    empty = replace(store, records=store.records[4:5], texts=store.texts[4:5])
    with pytest.raises(InputError, match=r"none of its 1 sequence has a record .*logitstore info"):
        StoreDataset(empty, student)


def test_a_row_this_student_cannot_place_is_skipped_and_counted(
    store: FakeStore, student: ByteTokenizer
) -> None:
    losses = ("uld", "mapped_kl")
    changed = replace(
        store, texts=[t._replace(status="template_changed_text") for t in store.texts]
    )
    data = StoreDataset(changed, student, losses)
    example = data[0]
    assert example.skipped
    assert not example.is_label.any()
    batch = Collator(student.pad_id, losses)([example, example])
    assert batch["skipped"].sum() == 2
    assert batch["input_ids"].shape == (2, 1)
    assert all(len(batch["teacher"][name]["index"]) == 0 for name in losses)
    mixed = Collator(student.pad_id, losses)([example, StoreDataset(store, student, losses)[0]])
    alone = Collator(student.pad_id, losses)([StoreDataset(store, student, losses)[0]])
    torch.testing.assert_close(mixed["teacher"]["uld"], alone["teacher"]["uld"])


def test_a_cut_row_keeps_what_lies_before_the_cut(store: FakeStore, student: ByteTokenizer) -> None:
    whole = StoreDataset(store, student, ["uld", "mapped_kl"])[0]
    cut = StoreDataset(store, student, ["uld", "mapped_kl"], max_length=8)[0]
    assert len(cut.token_ids) == 8
    assert not cut.skipped
    for name, arrays in cut.teacher.items():
        count = len(arrays["index"])
        assert 0 < count < len(whole.teacher[name]["index"])
        np.testing.assert_array_equal(arrays["index"], whole.teacher[name]["index"][:count])


def test_a_window_counts_bytes_from_its_own_start(store: FakeStore, student: ByteTokenizer) -> None:
    """Records of a later part count from the row's first byte; its text starts later."""
    moved = [replace(r, byte_starts=r.byte_starts + 100) for r in store.records]
    later = [t._replace(supervised_start=100, part=1) for t in store.texts]
    here = StoreDataset(store, student, ["mapped_kl"])[1]
    there = StoreDataset(replace(store, records=moved, texts=later), student, ["mapped_kl"])[1]
    np.testing.assert_array_equal(
        here.teacher["mapped_kl"]["index"], there.teacher["mapped_kl"]["index"]
    )


def test_strict_pairs_are_fewer_and_of_equal_bytes(
    store: FakeStore, student: ByteTokenizer
) -> None:
    loose = StoreDataset(store, student, ["mapped_kl"])[0]
    strict = StoreDataset(store, student, ["mapped_kl"], map="strict")[0]
    assert 0 < len(strict.teacher["mapped_kl"]["index"]) < len(loose.teacher["mapped_kl"]["index"])
    assert strict.aligned < loose.aligned


def test_exact_pairs_are_strict_ones_where_the_teacher_expects_a_token_of_the_student(
    store: FakeStore, student: ByteTokenizer
) -> None:
    """DSKDv2's exact token alignment, in plain loops over bytes; an end is one on both sides."""
    teacher = ByteTokenizer.from_folder(store.tokenizer_path)
    strict, exact = (
        StoreDataset(store, student, ["mapped_kl"], map=kind) for kind in ("strict", "exact")
    )
    dropped = kept = 0
    for i in range(len(strict)):
        asked = strict.asked(i, "mapped_kl")
        assert asked is not None
        want = []
        for t, _, label, _ in asked.pairs.table.tolist():
            entries = entries_of(asked.records, t)
            written = teacher.token_bytes[entries[0]]
            if entries[0] in store.spec.eos_ids or (written and has_token(student, written)):
                want.append(label)
            else:
                dropped += 1
        found = exact[i].teacher["mapped_kl"]
        assert found["index"].tolist() == want
        assert (strict[i].aligned, exact[i].aligned) == (len(asked.pairs.table), len(want))
        kept += len(want)
    assert dropped > 5
    assert kept > 5
    no_entry = replace(store.records[0], entry_count=0 * store.records[0].entry_count,
                       entry_ids=store.records[0].entry_ids[:0],
                       entry_logprobs=store.records[0].entry_logprobs[:0])  # fmt: skip
    silent = replace(store, records=[no_entry, *store.records[1:]])
    nothing = StoreDataset(silent, student, ["mapped_kl"], map="exact")[0]
    assert len(nothing.teacher["mapped_kl"]["index"]) == 0


def entries_of(records: TokenRecords, t: int) -> list[int]:
    """The ids of a record's entries, most probable first."""
    first = int(records.entry_count[:t].sum())
    assert records.entry_ids is not None
    ids: list[int] = records.entry_ids[first : first + int(records.entry_count[t])].tolist()
    return ids


def has_token(reader: ByteTokenizer, written: bytes) -> bool:
    """Tell whether a tokenizer has a token of these bytes, other than a part of a character."""
    return any(
        each == written and not (reader.is_standin[i] and written >= b"\x80")
        for i, each in enumerate(reader.token_bytes)
    )


def test_strict_maps_a_token_only_to_the_same_bytes(
    store: FakeStore, student: ByteTokenizer
) -> None:
    teacher = ByteTokenizer.from_folder(store.tokenizer_path)
    loose = StoreDataset(store, student, ["mapped_kl"], map="prefix").mappings["mapped_kl"]
    strict = StoreDataset(store, student, ["mapped_kl"], map="strict").mappings["mapped_kl"]
    assert loose is not None
    assert strict is not None
    assert 0 < (strict.ids >= 0).sum() < (loose.ids >= 0).sum()
    assert strict.shares.sum() < loose.shares.sum()
    for teacher_id in np.flatnonzero(strict.ids >= 0):
        same = student.token_bytes[strict.ids[teacher_id]]
        assert same == teacher.token_bytes[teacher_id]


def test_a_store_without_ids_is_refused_where_ids_are_needed(
    store: FakeStore, student: ByteTokenizer
) -> None:
    blind = replace(store, spec=replace(store.spec, has_ids=False))
    with pytest.raises(MismatchError, match=r"captured with --no-ids, .*Use --loss uld"):
        StoreDataset(blind, student, ["mapped_kl"])
    assert len(StoreDataset(blind, student, ["uld"])) > 0


def test_a_dataset_travels_to_workers(store: FakeStore, student: ByteTokenizer) -> None:
    data = StoreDataset(store, student, ["uld", "mapped_kl"])
    again = pickle.loads(pickle.dumps(data))
    np.testing.assert_array_equal(data[1].token_ids, again[1].token_ids)


def test_a_row_alone_is_the_row_in_a_batch(store: FakeStore, student: ByteTokenizer) -> None:
    data = StoreDataset(store, student, ["uld"])
    together = data.__getitems__([2, 0])
    np.testing.assert_array_equal(together[1].token_ids, data[0].token_ids)
