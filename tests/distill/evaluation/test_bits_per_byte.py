"""Bits per byte: what is counted, what is not, and that no setting of the machine changes it."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from distill.evaluation.bits_per_byte import Score, bits_per_byte, cut
from distill.evaluation.readers import LONGEST_WINDOW, renderer_of
from logitstore.errors import InputError
from logitstore.records import Segment
from logitstore.rows.dataset import load_rows
from logitstore.testing import tiny
from logitstore.testing.fake_store import dense_logprobs
from logitstore.text.tokenizer import ByteTokenizer
from tests.kit import templates

TEXTS = [*tiny.corpus()[36:], "", "x"]


def scored(tokenizer: PreTrainedTokenizerBase, texts: list[str], **how: Any) -> Score:
    rows = load_rows(Dataset.from_dict({"text": texts}))
    return bits_per_byte(tiny.llama(len(tokenizer)), renderer_of(rows, tokenizer), **how)


@pytest.mark.parametrize("make", [tiny.byte_bpe, tiny.unigram, tiny.wordpiece])
def test_the_split_of_a_row_changes_nothing_where_the_same_tokens_are_predicted(make: Any) -> None:
    """A token ` reads` that begins in the prompt is charged for the space that it predicts."""
    tokenizer, found = make(), []
    for prompt, completion in (("The teacher ", "reads."), ("The teacher", " reads.")):
        rows = load_rows(Dataset.from_dict({"prompt": [prompt], "completion": [completion]}))
        model = tiny.llama(len(tokenizer))
        found.append(bits_per_byte(model, renderer_of(rows, tokenizer)))
    inside, before = found
    if inside.tokens == before.tokens:
        assert inside[:3] == (pytest.approx(before.bits), before.bytes, before.tokens)
    assert inside.bytes - 6 == (inside.tokens == before.tokens)
    assert inside.bytes_left_out == before.bytes_left_out == 0


def test_white_space_that_is_written_as_one_space_counts_as_one_byte() -> None:
    """A tokenizer that drops white space gains nothing by it: what it cannot write is left out."""
    plain, spaced = (
        scored(tiny.wordpiece(), [text])
        for text in ("the teacher reads", "the \n\t teacher   reads")
    )
    assert spaced.bits == pytest.approx(plain.bits)
    assert spaced.bytes == plain.bytes
    assert (plain.bytes_left_out, spaced.bytes_left_out) == (0, 5)


@pytest.mark.parametrize("make", [tiny.byte_bpe, tiny.unigram, tiny.wordpiece])
def test_bits_are_those_of_every_token_that_something_predicts(make: Any) -> None:
    tokenizer = make()
    model, reader = tiny.llama(len(tokenizer)), ByteTokenizer(tokenizer)
    bits, size = 0.0, 0
    for text in TEXTS:
        tokens = reader.encode([Segment(text, True)], add_eos=False)
        places = np.flatnonzero(tokens.has_record)
        if len(places):
            logprobs = dense_logprobs(model, tokens.token_ids)
            bits -= float(logprobs[places - 1, tokens.token_ids[places]].sum()) / math.log(2)
            for at in places:
                place = int(tokens.byte_starts[at])
                piece = text.encode()[place : place + int(tokens.byte_lengths[at])]
                size += len(piece)
                if make is tiny.wordpiece:  # which writes one space or none, whatever was there
                    word, written = piece.lstrip(), reader.token_bytes[tokens.token_ids[at]] or b""
                    size -= len(piece) - len(word)
                    size += written.startswith(b" ") and len(piece) > len(word)
    score = scored(tokenizer, TEXTS)
    assert score.bits_per_byte == pytest.approx(bits / size, rel=1e-5)
    assert score.bytes == size
    assert score.bytes + score.bytes_left_out == sum(len(text.encode()) for text in TEXTS)


def test_a_model_that_knows_nothing_pays_for_every_byte() -> None:
    """A byte tokenizer and a uniform model: log2(V) bits for each byte but the first."""
    tokenizer = tiny.byte_bpe(258)
    model = tiny.llama(258)
    with torch.no_grad():
        model.lm_head.weight.zero_()
    rows = load_rows(Dataset.from_dict({"text": ["größer", "🙂"]}))
    score = bits_per_byte(model, renderer_of(rows, tokenizer))
    assert score.bits_per_byte == pytest.approx(math.log2(258))
    assert (score.bytes, score.bytes_left_out) == (8 + 4 - 2, 2)


def test_a_first_token_is_left_out_of_bits_and_of_bytes_unless_something_predicts_it() -> None:
    without, with_bos = (scored(tiny.byte_bpe(bos=bos), TEXTS) for bos in (False, True))
    assert with_bos.bytes_left_out == 0
    assert without.bytes_left_out > 0
    assert without.tokens == with_bos.tokens - (len(TEXTS) - 1)  # the empty text has no token


def test_only_the_completion_is_counted_and_the_prompt_is_read() -> None:
    rows = load_rows(Dataset.from_dict({"prompt": ["The teacher:"], "completion": ["reads."]}))
    tokenizer = tiny.byte_bpe()
    score = bits_per_byte(tiny.llama(len(tokenizer)), renderer_of(rows, tokenizer))
    assert (score.bytes, score.bytes_left_out) == (6, 0)
    alone = scored(tokenizer, ["reads."])
    assert score.bits != pytest.approx(alone.bits, rel=0.01)


def test_the_machines_settings_change_nothing() -> None:
    tokenizer = tiny.byte_bpe()
    reference = scored(tokenizer, TEXTS)
    for tokens_per_batch in (1, 100):
        other = scored(tokenizer, TEXTS, tokens_per_batch=tokens_per_batch)
        assert other.bits == pytest.approx(reference.bits, rel=1e-6)
        assert other[1:] == reference[1:]


def test_the_order_of_rows_changes_nothing() -> None:
    forward, backward = (scored(tiny.byte_bpe(), texts) for texts in (TEXTS, TEXTS[::-1]))
    assert forward.bits == pytest.approx(backward.bits, rel=1e-6)


@pytest.mark.parametrize("width", [2, 3, 8, 100])
def test_windows_count_every_token_once_and_show_it_half_a_window(width: int) -> None:
    reader = ByteTokenizer(tiny.byte_bpe())
    tokens = reader.encode([Segment(" ".join(TEXTS), True)], add_eos=False)
    counted = np.zeros(len(tokens.token_ids), int)
    start = 0
    for window in cut(tokens, width):
        # Where a window lies is known from its place in line.
        assert len(window.token_ids) <= width
        places = start + np.flatnonzero(window.is_counted)
        np.testing.assert_array_equal(
            window.token_ids, tokens.token_ids[start : start + len(window.token_ids)]
        )
        counted[places] += 1
        assert not window.is_counted[0]
        if start:
            assert np.flatnonzero(window.is_counted).min() >= min(width // 2, width - 1)
        start += max(1, width // 2)
    np.testing.assert_array_equal(counted, tokens.has_record.astype(int))


def test_a_long_row_is_scored_whole() -> None:
    long = "\n".join(TEXTS)
    whole, windows = (scored(tiny.byte_bpe(), [long], max_length=n) for n in (None, 16))
    assert len(ByteTokenizer(tiny.byte_bpe()).encode([Segment(long, True)]).token_ids) > 100
    assert windows[1:] == whole[1:]
    assert windows.bits != whole.bits  # less is read before each token
    assert windows.bits == pytest.approx(whole.bits, rel=0.2)


def test_a_window_is_never_longer_than_the_model_reads() -> None:
    tokenizer = tiny.byte_bpe()
    rows = load_rows(Dataset.from_dict({"text": ["word " * 100]}))
    model = tiny.llama(len(tokenizer), max_position_embeddings=32)
    seen: list[int] = []
    model.register_forward_pre_hook(
        lambda _module, _args, inputs: seen.append(inputs["input_ids"].shape[1]), with_kwargs=True
    )
    bits_per_byte(model, renderer_of(rows, tokenizer))
    assert max(seen) == 32
    assert LONGEST_WINDOW > 32


@pytest.mark.parametrize("texts", [[""], ["x", "y"]])
def test_nothing_to_predict_is_an_error(texts: list[str]) -> None:
    with pytest.raises(InputError, match=r"none of the \d rows? has a byte .* Check --split"):
        scored(tiny.byte_bpe(), texts)


def test_a_window_of_one_token_is_an_error() -> None:
    with pytest.raises(InputError, match="expected at least 2"):
        scored(tiny.byte_bpe(), TEXTS, max_length=1)


def test_files_are_read_as_capture_reads_them(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("\n".join(["one line", "another line"]) + "\n")
    tokenizer = tiny.byte_bpe()
    score = bits_per_byte(
        tiny.llama(len(tokenizer)), renderer_of(load_rows(str(tmp_path / "a.txt")), tokenizer)
    )
    assert score.rows == 2


def test_a_conversation_is_read_through_the_models_own_template(tmp_path: Path) -> None:
    """Only what the assistant said is counted: not the template, not the ends of turns."""
    talk = templates.turns("Hi!", "Größe.", "And?", "")
    rows = load_rows(Dataset.from_list([{"messages": talk}]))
    for make in templates.FAMILIES.values():
        tokenizer = make()
        score = bits_per_byte(tiny.llama(len(tokenizer)), renderer_of(rows, tokenizer))
        assert (score.bytes, score.bytes_left_out) == (len("Größe.".encode()), 0)
    last = renderer_of(rows, tokenizer, supervise="last")
    with pytest.raises(InputError, match="none of the 1 row"):
        bits_per_byte(tiny.llama(len(tokenizer)), last)


def test_token_ids_of_some_tokenizer_have_no_bits_per_byte() -> None:
    rows = load_rows(Dataset.from_list([{"input_ids": [1, 2]}]))
    with pytest.raises(InputError, match=r"token ids of one tokenizer.*--text-column"):
        renderer_of(rows, tiny.byte_bpe())
