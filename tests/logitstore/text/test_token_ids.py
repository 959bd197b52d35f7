"""Rows of tokens: captured as they are, and taught to any student."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
from transformers import AutoTokenizer

from distill.data.targets import teacher_spans
from logitstore.capture.sequences.row_reader import RowReader
from logitstore.capture.sequences.windows import limits_of
from logitstore.errors import InputError
from logitstore.rows.dataset import load_rows
from logitstore.rows.renderer import Renderer
from logitstore.testing import tiny
from logitstore.text.token_ids import TokenRow, for_student, read_tokens
from logitstore.text.tokenizer import ByteTokenizer
from tests.kit import templates
from tests.kit.talks import TALKS, capture, dataset_of, save_families, trainer_of
from tests.kit.templates import FAMILIES, turns


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return save_families(tmp_path_factory.mktemp("models"))


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
    assert found["eval_covered_fraction"] == 1


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
        tokens, *_ = data.reader.read(
            line, teacher_spans(store[i], line, store.spec.eos_ids, data.teacher)
        )
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
        ours = teacher_spans(store[0], store.text(0), store.spec.eos_ids, data.teacher)
        tokens, *_ = data.reader.read(store.text(0), ours)
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
    # One that puts its own there by itself needs no other: the student would read two.
    assert [s.text for s in for_student(segments, own)] == ["", "one"]
    bare = ByteTokenizer(tiny.unigram(bos=False))
    assert [s.text for s in for_student(segments, bare)] == ["<s>", "one"]
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
        ({"conversation": turns("a", "b")}, "Rename 'conversation' to 'messages'"),
        ({"messages": [{"who": "a", "value": "b"}]}, "row 0: messages: message 0 is not a message"),
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
