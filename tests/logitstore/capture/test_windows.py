"""Windows: every supervised token once, whole characters, the row's own tokens, nothing lost."""

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM

import logitstore
from distill.data.dataset import StoreDataset
from logitstore.capture.sequences.windows import (
    TeacherSequence,
    limits_of,
    rendering_of,
    sequences_of_row,
)
from logitstore.checking.verify import verify_store
from logitstore.errors import InputError, MismatchError
from logitstore.info import facts, info_text
from logitstore.records import Segment, SequenceText
from logitstore.testing import tiny
from logitstore.text.tokenizer import ByteTokenizer
from tests.kit.rows import texts_file

FAMILIES = ("byte_bpe", "byte_bpe_bos", "unigram", "sp_bpe", "wordpiece")


@cache
def tokenizer(family: str) -> ByteTokenizer:
    made = {
        "byte_bpe": lambda: tiny.byte_bpe(320),
        "byte_bpe_bos": lambda: tiny.byte_bpe(320, bos=True),
        "unigram": tiny.unigram,
        "sp_bpe": tiny.sp_bpe,
        "wordpiece": tiny.wordpiece,
    }[family]()
    return ByteTokenizer(made)


def whole_row(family: str, segments: list[Segment]) -> TeacherSequence:
    text = tokenizer(family).encode(segments)
    return TeacherSequence(SequenceText(7, 0, text.status, tuple(segments)), text)


def windows(
    family: str,
    segments: list[Segment],
    max_length: int,
    stride: int | None = None,
    overflow: str = "split",
) -> list[TeacherSequence]:
    limits = limits_of(max_length, overflow, stride, tokenizer(family).prefix_length)
    return sequences_of_row(whole_row(family, segments), limits)


def data_of(segments: list[Segment]) -> bytes:
    return "".join(s.text for s in segments).encode()


def own_spans(sequences: list[TeacherSequence]) -> list[tuple[int, int, int]]:
    """(token, first byte, bytes) of every record, in order."""
    found = []
    for s in sequences:
        kept = s.text.has_record
        spans = (s.text.token_ids[kept], s.text.byte_starts[kept], s.text.byte_lengths[kept])
        found += list(zip(*(a.tolist() for a in spans), strict=True))
    return found


words = st.sampled_from(
    ["the ", "teacher ", "学生", "🙂", "👩‍👩‍👧‍👦", "e\u0301", "ß", "\n", "  ", "नमस्ते ", "x"]
)
texts = st.lists(words, max_size=25).map("".join)
rows = st.lists(st.builds(Segment, texts, st.booleans()), min_size=1, max_size=4)


@given(st.sampled_from(FAMILIES), rows, st.integers(6, 40), st.data())
def test_every_supervised_token_has_its_record_once_and_the_parts_are_the_text(
    family: str, segments: list[Segment], max_length: int, data: st.DataObject
) -> None:
    stride = data.draw(st.integers(0, (max_length - 1) // 2))
    whole = whole_row(family, segments)
    parts = windows(family, segments, max_length, stride)
    if whole.length <= max_length or not whole.records:
        assert [p.line for p in parts] == [whole.line]
        assert parts[0].text.token_ids.tolist() == whole.text.token_ids.tolist()
        return
    if parts[0].line.status == "too_long":  # a character of more tokens than a window has room for
        assert max_length - stride < 16
        return
    assert own_spans(parts) == own_spans([whole])
    supervised = "".join(s.text for s in segments if s.supervised).encode()
    assert [p.line.part for p in parts] == list(range(len(parts)))
    for p in parts:
        assert (p.line.status, p.line.row) == ("split", 7)
        assert p.records > 0
        assert p.length <= max_length
        begin = p.line.supervised_start
        end = begin + len(p.line.supervised_bytes)
        assert p.line.supervised_bytes == supervised[begin:end]
        written = "".join(s.text for s in p.line.segments).encode()
        if family.startswith("byte_bpe"):  # others leave holes at the ends of a window
            first = int(p.text.text_starts[tokenizer(family).prefix_length])
            assert written == data_of(segments)[first : int(p.text.text_ends[-1])]
        kept = p.text.has_record
        starts, lengths = p.text.byte_starts[kept], p.text.byte_lengths[kept]
        assert begin <= starts.min()
        assert (starts + lengths).max() <= end
    ends = [p.line.supervised_start + len(p.line.supervised_bytes) for p in parts]
    assert all(a <= p.line.supervised_start for a, p in zip(ends, parts[1:], strict=False))


@given(st.sampled_from(FAMILIES), texts, st.integers(8, 40), st.data())
def test_a_window_of_a_text_is_a_slice_of_its_tokens_behind_the_prefix(
    family: str, text: str, max_length: int, data: st.DataObject
) -> None:
    stride = data.draw(st.integers(0, (max_length - 1) // 2))
    prefix = tokenizer(family).prefix_length
    segments = [Segment(text, True)]
    whole = whole_row(family, segments)
    parts = windows(family, segments, max_length, stride)
    if len(parts) == 1:
        return
    joined = "".join(s.text for p in parts for s in p.line.segments if s.supervised)
    assert joined == text
    stop = prefix
    for number, p in enumerate(parts):
        context = int(np.argmax(p.text.has_record)) - prefix
        begin = stop - context if number else prefix
        kept = slice(begin, begin + p.length - prefix)
        assert p.text.token_ids[:prefix].tolist() == whole.text.token_ids[:prefix].tolist()
        assert p.text.token_ids[prefix:].tolist() == whole.text.token_ids[kept].tolist()
        assert number == 0 or context <= max(stride, not prefix) + 3  # a character is 4 at most
        stop = kept.stop
    assert stop == whole.length


def test_the_context_of_a_window_is_as_long_as_asked_for() -> None:
    parts = windows("byte_bpe_bos", [Segment("abcdefghijklmnopqrstuvwxyz" * 2, True)], 21, 5)
    assert len(parts) > 2
    for p in parts[1:]:
        assert int(np.argmax(p.text.has_record)) == 1 + 5  # BOS, then the context
        assert [s.supervised for s in p.line.segments] == [False, True]
        assert len(p.line.segments[0].text) == int(
            (p.text.text_ends - p.text.text_starts)[1:6].sum()
        )
    assert all(p.length >= 20 for p in parts[:-1])  # 21, but never just before EOS


def test_without_bos_a_window_has_a_token_of_context_even_at_stride_0() -> None:
    parts = windows("byte_bpe", [Segment("abcdefghij" * 5, True)], 12, 0)
    assert [int(np.argmax(p.text.has_record)) for p in parts] == [1] * len(parts)
    assert len(own_spans(parts)) == whole_row("byte_bpe", [Segment("abcdefghij" * 5, True)]).records


@pytest.mark.parametrize("family", FAMILIES)
def test_no_window_begins_or_ends_inside_a_character(family: str) -> None:
    for length in range(8, 30):
        for p in windows(family, [Segment("🙂🙃👍🏽ß学" * 12, True)], length):
            assert "\ufffd" not in "".join(s.text for s in p.line.segments)
            assert p.line.status == "split"


def test_a_character_of_more_tokens_than_a_window_is_too_long() -> None:
    (only,) = windows("byte_bpe_bos", [Segment("🙃" * 9, True)], 4, 0)
    assert (only.line.status, only.records) == ("too_long", 0)
    assert only.line.supervised_bytes == ("🙃" * 9).encode()


def test_the_end_of_the_text_stays_with_its_last_token() -> None:
    text = "abcdefghij" * 3
    for length in range(6, 34):
        last = windows("byte_bpe_bos", [Segment(text, True)], length)[-1]
        assert last.text.is_eos[-1]
        assert last.text.has_record[-2:].all()


def test_the_end_of_a_turn_stays_with_what_it_ends() -> None:
    made = tiny.byte_bpe(320, bos=True)
    made.add_special_tokens({"additional_special_tokens": ["<|im_end|>"]})
    chat = ByteTokenizer(made)
    turn = [Segment("user: hi\n", False), Segment("a 🙃 b c", True), Segment("<|im_end|>\n", False)]
    text = chat.encode(turn * 6)
    events = int((text.is_eos & text.has_record).sum())
    assert events == 6
    for length in range(12, 40):
        whole = TeacherSequence(SequenceText(0, 0, "ok", tuple(turn * 6)), text)
        parts = sequences_of_row(whole, limits_of(length, "split", None, 1))
        assert sum(int((p.text.is_eos & p.text.has_record).sum()) for p in parts) == events
        for p in parts:
            for at in np.flatnonzero(p.text.is_eos & p.text.has_record):
                assert p.text.has_record[at - 1], "an event alone, without the text it ends"


def test_a_long_prompt_is_cut_on_the_left_and_leaves_half_a_window_for_the_completion() -> None:
    prompt, answer = Segment("p q " * 60, False), Segment("the answer is 42 " * 40, True)
    whole = whole_row("byte_bpe_bos", [prompt, answer])
    parts = windows("byte_bpe_bos", [prompt, answer], 65, 8)
    assert len(parts) > 2
    assert own_spans(parts) == own_spans([whole])
    assert int(parts[0].text.has_record.sum()) == 32
    assert parts[0].length == 65
    assert parts[0].line.segments[0].text == prompt.text[-len(parts[0].line.segments[0].text) :]
    short = windows("byte_bpe_bos", [prompt, Segment("42", True)], 65, 8)
    assert [(p.length, p.line.status, p.line.part) for p in short] == [(65, "split", 0)]


def test_a_prompt_that_fits_is_kept_whole() -> None:
    prompt, answer = Segment("p q r ", False), Segment("the answer is 42 " * 40, True)
    parts = windows("byte_bpe_bos", [prompt, answer], 65, 8)
    assert parts[0].line.segments[0] == prompt


def test_context_in_the_middle_is_not_read_twice_for_nothing() -> None:
    turns = [Segment("q" * 30, False), Segment("a" * 30, True)]
    parts = windows("byte_bpe_bos", [*turns, Segment("z" * 300, False), *turns], 60, 10)
    supervised = sum(p.length for p in parts)
    assert supervised < 4 * 60
    assert own_spans(parts) == own_spans(
        [whole_row("byte_bpe_bos", [*turns, Segment("z" * 300, False), *turns])]
    )


def test_skip_and_truncate_keep_the_line_and_say_so() -> None:
    segments = [Segment("abc " * 50, True)]
    (skipped,) = windows("byte_bpe_bos", segments, 20, overflow="skip")
    assert (skipped.line.status, skipped.records) == ("too_long", 0)
    (cut,) = windows("byte_bpe_bos", segments, 20, overflow="truncate")
    encoded = tokenizer("byte_bpe_bos").encode(segments, max_length=20)
    assert (cut.line.status, cut.text.status) == ("truncated", encoded.status)
    for name in ("token_ids", "has_record", "byte_starts", "byte_lengths", "is_eos"):
        np.testing.assert_array_equal(getattr(cut.text, name), getattr(encoded, name))
    prompted = [Segment("abc " * 50, False), *segments]
    (cut,) = windows("byte_bpe_bos", prompted, 20, overflow="truncate")
    assert (cut.line.status, cut.records) == ("no_supervised_text", 0)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ((64, "wrap", None, 1), r"--overflow is wrap, expected split, truncate, skip"),
        ((64, "skip", 8, 1), r"--stride is 8, but with --overflow skip no row is cut"),
        ((64, "split", 32, 1), r"--stride is 32, expected 0 to 31: at most half .* of 64 tokens"),
        ((64, "split", -1, 1), r"--stride is -1, expected 0 to 31"),
    ],
)
def test_limits_that_cannot_be_are_refused(arguments: Any, says: str) -> None:
    with pytest.raises(InputError, match=says):
        limits_of(*arguments)


def test_truncating_stores_are_described_as_they_were_before_there_were_windows() -> None:
    assert rendering_of(limits_of(64, "truncate", None, 1)) == {}
    assert rendering_of(limits_of(None, "split", None, 1)) == {}
    assert rendering_of(limits_of(64, "split", None, 1)) == {"overflow": "split", "stride": 8}
    assert rendering_of(limits_of(64, "skip", None, 1)) == {"overflow": "skip"}


# ---- in a store ----


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    model = tiny.llama(400, max_position_embeddings=48)
    folder = tmp_path_factory.mktemp("windows") / "teacher"
    return tiny.save(folder, model, tiny.byte_bpe(400, bos=True))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    texts = ["short", " ".join(tiny.corpus()), "", "also short 🙂", " ".join(tiny.corpus()[::-1])]
    return texts_file(tmp_path_factory.mktemp("windows") / "rows.jsonl", texts)


@pytest.fixture(scope="module")
def store(
    teacher: Path, data: Path, tmp_path_factory: pytest.TempPathFactory
) -> logitstore.LogitStore:
    return logitstore.capture(teacher, str(data), tmp_path_factory.mktemp("windows") / "s", top_k=8)


def test_a_store_has_all_windows_of_a_row_within_what_the_teacher_reads(
    store: logitstore.LogitStore,
) -> None:
    long = " ".join(tiny.corpus())
    parts = store.row(1)
    assert [store.text(i).part for i in parts] == list(range(len(parts)))
    assert b"".join(store.text(i).supervised_bytes for i in parts) == long.encode()
    ends = 0
    for i in parts:
        records = store[i]
        assert len(records) < 48
        assert records.byte_starts[0] == ends
        ends = int(records.byte_starts[-1] + records.byte_lengths[-1])
    assert ends == len(long.encode())
    assert len(store.row(0)) == len(store.row(3)) == 1
    assert verify_store(store.path, deep=True).damaged == []


def test_a_windows_record_is_what_the_live_teacher_says_of_that_window(
    teacher: Path, store: logitstore.LogitStore
) -> None:
    model, tokens = AutoModelForCausalLM.from_pretrained(teacher), tokenizer_of(teacher)
    whole = TeacherSequence(
        SequenceText(1, 0, "ok", (Segment(" ".join(tiny.corpus()), True),)),
        tokens.encode([Segment(" ".join(tiny.corpus()), True)]),
    )
    parts = sequences_of_row(whole, limits_of(48, "split", None, 1))
    for p, i in list(zip(parts, store.row(1), strict=True))[1:4]:
        assert store.text(i) == p.line
        ids = torch.from_numpy(p.text.token_ids)
        with torch.no_grad():
            logp = model(ids[None]).logits[0].double().log_softmax(-1)
        own = logp[:-1].gather(1, ids[1:, None]).squeeze(1)[p.text.has_record[1:]]
        np.testing.assert_allclose(store[i].token_logprob, own, atol=1 / 1024 + 1e-5)


def tokenizer_of(folder: Path) -> ByteTokenizer:
    return ByteTokenizer.from_folder(folder)


def test_rows_by_status_are_counted_in_info(store: logitstore.LogitStore) -> None:
    found = facts(store)
    windows_of_both = len(store.row(1)) + len(store.row(4))
    assert found["statuses"] == {"ok": 2, "empty": 1, "split": windows_of_both}
    assert (found["rows"], found["sequences"]) == (5, 3 + windows_of_both)
    assert found["rendering"]["overflow"] == "split"
    assert found["rendering"]["stride"] == 6
    assert f"{windows_of_both} split" in info_text(found)


def test_a_store_of_other_windows_is_not_resumed(
    teacher: Path, data: Path, store: logitstore.LogitStore
) -> None:
    for other, says in (
        ({"stride": 3}, r"rendering\.stride is 6 in the store, 3 now"),
        ({"overflow": "skip"}, r'rendering\.overflow is "split" in the store, "skip" now'),
    ):
        with pytest.raises(MismatchError, match=says):
            logitstore.capture(teacher, str(data), store.path, top_k=8, **other)  # type: ignore[arg-type]


@pytest.mark.parametrize("max_length", [24, 48, 400])
@pytest.mark.parametrize("family", ["byte_bpe", "sp_bpe"])
def test_a_student_of_any_length_learns_what_both_have(
    store: logitstore.LogitStore, family: str, max_length: int
) -> None:
    student = tokenizer(family)
    examples = StoreDataset(store, student, ("uld", "mapped_kl"), max_length=max_length)
    aligned = {i: examples[n].aligned for n, i in enumerate(examples.sequences)}
    assert sum(aligned.values()) > 0
    for n, i in enumerate(examples.sequences):
        example, line = examples[n], store.text(int(i))
        assert len(example.token_ids) <= max_length
        assert example.skipped or example.is_label.any()
        if max_length == 400:
            assert not example.skipped
            labels = example.token_ids[example.is_label].tolist()
            is_last = int(i) == store.row(line.row)[-1]
            # Only the last window of a row is followed by the end of the text.
            assert (labels[-1] == student.eos_token_id) == is_last
            written = b"".join(student.token_bytes[t] or b"" for t in labels)
            if line.part:  # without BOS, a first token of a row is no label
                assert line.supervised_bytes.strip() in written


def test_a_student_that_reads_more_aligns_more(store: logitstore.LogitStore) -> None:
    counts = [
        sum(e.aligned for e in (examples[n] for n in range(len(examples))))
        for examples in (
            StoreDataset(store, tokenizer("byte_bpe"), ("uld",), max_length=m)
            for m in (24, 48, 400)
        )
    ]
    assert counts[0] < counts[1] <= counts[2]
