"""Rows of every kind have records at the boundaries of a student's tokens."""

from pathlib import Path

import numpy as np
from transformers import AutoModelForCausalLM

import logitstore
from logitstore.checking.verify import verify_store
from logitstore.testing import tiny
from logitstore.text.tokenizer import ByteTokenizer
from tests.kit import templates
from tests.kit.boundaries import CODE, inside, plain, run
from tests.kit.rows import rows_file


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


def test_no_question_asks_for_more_tokens_than_the_teacher_reads(
    place: Path, tmp_path: Path
) -> None:
    tokenizer = tiny.byte_bpe(400, bos=True)
    tiny.save(tmp_path / "t", tiny.llama(400, max_position_embeddings=9), tokenizer)
    store = run(tmp_path / "t", place, tmp_path / "s", boundaries_of=str(place / "bpe"))
    assert verify_store(store.path, deep=True).damaged == []
    assert inside(store).token_counts.sum() > 500
