"""Text that a chat template has written already: its marks are tokens, not letters."""

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import AutoTokenizer

from logitstore.errors import InputError
from logitstore.records import Segment
from logitstore.testing import tiny
from logitstore.text.parse_special import SpecialNames
from logitstore.text.token_ids import BEGIN, END, MARK
from logitstore.text.tokenizer import ByteTokenizer
from tests.kit import templates
from tests.kit.talks import TALKS, capture, dataset_of, save_families, trainer_of
from tests.kit.templates import FAMILIES, turns


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return save_families(tmp_path_factory.mktemp("models"))


def written_by(folder: Path) -> list[dict[str, Any]]:
    """Texts as people put them into a column: rendered by a chat template."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    talks = [talk for talk in TALKS if all(m["content"] for m in talk)]
    return [{"text": tokenizer.apply_chat_template(talk, tokenize=False)} for talk in talks]


@pytest.mark.parametrize("family", FAMILIES)
def test_the_tokens_are_those_that_the_template_writes(
    family: str, folders: dict[str, Path], tmp_path: Path
) -> None:
    """BOS once, though the tokenizer adds one and the text has one; EOS once, too."""
    tokenizer = AutoTokenizer.from_pretrained(folders[family])
    rows = written_by(folders[family])
    store = capture(folders[family], rows, tmp_path / "s", parse_special=True)
    assert store.spec.rendering["parse_special"] is True
    data = dataset_of(folders[family], store)
    for i, row in enumerate(rows):
        expected = tokenizer(row["text"], add_special_tokens=False).input_ids
        ids = data[i].token_ids.tolist()
        bos = tokenizer.bos_token_id
        if bos is not None and expected[0] != bos and ByteTokenizer(tokenizer).prefix_length:
            expected = [bos, *expected]
        if expected[-1] not in ByteTokenizer(tokenizer).eos_ids:
            expected = [*expected, tokenizer.eos_token_id]
        assert ids == expected
        special = set(tokenizer.all_special_ids) - set(ByteTokenizer(tokenizer).eos_ids)
        assert not special & set(store[i].token_ids.tolist())  # marks are context
        assert data[i].aligned == data[i].is_label.sum()
    trainer = trainer_of(folders[family], store, tmp_path / "o")
    assert trainer.evaluate()["eval_uld_loss"] <= store.fidelity.l1_max


@pytest.mark.parametrize("student", FAMILIES)
def test_a_student_of_another_tokenizer_is_not_taught_to_spell_marks(
    student: str, folders: dict[str, Path], tmp_path: Path
) -> None:
    rows = written_by(folders["chatml"])
    store = capture(folders["chatml"], rows, tmp_path / "s", parse_special=True)
    assert b"<|" not in b"".join(store.text(i).supervised_bytes for i in range(len(store)))
    data = dataset_of(folders[student], store)
    tokenizer = AutoTokenizer.from_pretrained(folders[student])
    reader = ByteTokenizer(tokenizer)
    for i in range(len(data)):
        ids, is_label = data[i].token_ids, data[i].is_label
        taught = b"".join(reader.written(ids[is_label & ~np.isin(ids, reader.eos_ids)]))
        assert b"im_" not in taught
        ends = sum(segment.role == END for segment in store.text(i).segments)
        assert ends > 1
        assert np.isin(ids[is_label], reader.eos_ids).sum() == ends
        assert ids.tolist().count(reader.bos_token_id) <= 1


def test_without_the_flag_it_is_said_and_counted(
    folders: dict[str, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rows = [*written_by(folders["llama3"]), {"text": "Nothing here."}]
    with caplog.at_level(logging.WARNING):
        store = capture(folders["llama3"], rows, tmp_path / "s")
    [said] = [r.getMessage() for r in caplog.records if "special tokens" in r.getMessage()]
    marks = sum(row["text"].count("<|") for row in rows)
    assert f"{len(rows) - 1} of {len(rows)} rows hold {marks} special tokens" in said
    assert "such as <|begin|>" in said
    assert "--parse-special" in said
    assert "parse_special" not in store.spec.rendering
    assert store.spec.rendering["kind"] == "text"


SAID = turns("Which?", "I write <|im_end|> here.", "And?", "No more.")


def _part(text: str) -> Any:
    return [{"type": "text", "text": text}]


AS_ROWS: dict[str, Any] = {
    "messages": {"messages": SAID},
    "messages in a JSON string": {"messages": json.dumps(SAID)},
    "parts": {"messages": turns(_part("Which?"), _part("<|im_end|>"))},
    "prompt and completion": {"prompt": SAID[:1], "completion": SAID[1:2]},
}


@pytest.mark.parametrize(
    ("form", "is_file"),
    [
        (form, is_file)
        for form in AS_ROWS
        for is_file in (False, True)
        if is_file or "JSON" not in form
    ],
)
def test_special_tokens_that_messages_say_are_counted(
    form: str,
    is_file: bool,
    folders: dict[str, Path],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Where an answer says an end, that is what is supervised in the middle of its turn."""
    row = AS_ROWS[form]
    rows: Any = [row, json.loads(json.dumps(row).replace("<|im_end|>", "<im_end>")), row]
    if is_file:
        (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        rows = str(tmp_path / "rows.jsonl")
    with caplog.at_level(logging.WARNING):
        store = capture(folders["chatml"], rows, tmp_path / "s")
    [said] = [r.getMessage() for r in caplog.records if "special tokens" in r.getMessage()]
    assert "in 2 of 3 rows messages say 2 special tokens" in said
    assert "such as <|im_end|>" in said
    assert "--parse-special" not in said
    if form == "messages":
        end = AutoTokenizer.from_pretrained(folders["chatml"]).convert_tokens_to_ids("<|im_end|>")
        assert [(store[i].token_ids == end).sum() for i in range(3)] == [3, 2, 3]


@pytest.mark.parametrize(
    "rows",
    [
        [{"text": "No mark <b>at all</b>."}],
        [{"prompt": "a", "completion": " b"}],
        [{"messages": turns("Who <b>?", "Nobody <im>.")}],
    ],
)
def test_ordinary_text_is_no_reason_for_a_warning(
    rows: Any, folders: dict[str, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        capture(folders["llama3"], rows, tmp_path / "s")
    assert not [r for r in caplog.records if "special tokens" in r.getMessage()]


def test_ordinary_text_is_read_the_same_with_the_flag(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    rows = [{"prompt": "The sky is", "completion": " blue."}, {"prompt": "a", "completion": ""}]
    plain = capture(folders["mistral"], rows, tmp_path / "plain", max_lost=1)
    asked = capture(folders["mistral"], rows, tmp_path / "asked", max_lost=1, parse_special=True)
    for i in range(2):
        assert plain[i].token_ids.tolist() == asked[i].token_ids.tolist()
        assert plain[i].token_logprob.tolist() == asked[i].token_logprob.tolist()
    for student in ("mistral", "llama3"):
        a, b = (dataset_of(folders[student], store) for store in (plain, asked))
        assert len(a) == len(b)
        for i in range(len(a)):
            assert a[i].token_ids.tolist() == b[i].token_ids.tolist()
            assert a[i].aligned == b[i].aligned


def test_each_mark_is_a_segment_with_a_role() -> None:
    names = SpecialNames(ByteTokenizer(templates.llama3()))
    text = "<|begin|><|start_header_id|>user<|end_header_id|>\n\nHi!<|eot_id|>"
    found = names.parsed([Segment(text, True)], add_eos=True)
    assert found == (
        Segment("<|start_header_id|>", False, MARK),
        Segment("user", True),
        Segment("<|end_header_id|>", False, MARK),
        Segment("\n\nHi!", True),
        Segment("<|eot_id|>", False, END),
    )
    bare = SpecialNames(ByteTokenizer(tiny.sp_bpe(bos=False)))
    assert bare.parsed([Segment("<s>a", True)], add_eos=True) == (
        Segment("<s>", False, BEGIN),
        Segment("a", True),
        Segment("</s>", False, END),
    )
    # As in rows of ids, an end without text before it ends an empty turn.
    assert bare.parsed([Segment("a", False), Segment("</s></s>", True)], add_eos=True) == (
        Segment("a", False),
        Segment("", True),
        Segment("</s>", False, END),
        Segment("", True),
        Segment("</s>", False, END),
    )
    assert bare.parsed([Segment("", False), Segment("", True)], add_eos=False) == (
        Segment("", False),
        Segment("", True),
    )


def test_prompts_that_a_template_wrote_are_gone_on_with(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folders["llama3"])
    prompt = tokenizer.apply_chat_template(TALKS[0][:1], tokenize=False, add_generation_prompt=True)
    made = {"generate": True, "max_new_tokens": 5, "parse_special": True}
    store = capture(folders["llama3"], [{"prompt": prompt}], tmp_path / "s", **made)
    talk = capture(
        folders["llama3"],
        [{"messages": TALKS[0][:1]}],
        tmp_path / "t",
        generate=True,
        max_new_tokens=5,
    )
    assert store[0].token_ids.tolist() == talk[0].token_ids.tolist()
    data = dataset_of(folders["llama3"], store)
    assert data[0].token_ids.tolist().count(tokenizer.bos_token_id) == 1
    assert data[0].aligned == len(store[0])


@pytest.mark.parametrize("row", [{"messages": TALKS[0]}, {"input_ids": [5, 6]}])
def test_the_flag_is_refused_where_it_does_nothing(
    row: Any, folders: dict[str, Path], tmp_path: Path
) -> None:
    with pytest.raises(InputError, match="--parse-special would have no effect"):
        capture(folders["llama3"], [row], tmp_path / "s", parse_special=True)
