"""Written answers: scored as the papers score them, and the same in any batch."""

import sys
from typing import Any

import pytest
from datasets import Dataset

from distill.evaluation import answers
from distill.evaluation.answers import exact_match, normalized, questions, score_answers, token_f1
from distill.evaluation.readers import renderer_of
from logitstore.errors import InputError
from logitstore.rows.dataset import load_rows
from logitstore.testing import tiny
from tests.kit import templates
from tests.kit.students import t5

PAIRS = [
    ("The cat sat.", "a cat sat", 1.0, 1.0),
    ("cat cat dog", "cat dog dog", 2 / 3, 0.0),  # each word as often as both have it
    ("in Paris, France", "Paris", 0.5, 0.0),
    ("", "Paris", 0.0, 0.0),
    ("the", "an", 1.0, 1.0),  # articles alone: nothing, and nothing is right
]


@pytest.mark.parametrize(("answer", "reference", "f1", "exact"), PAIRS)
def test_answers_are_scored_as_squad_does(
    answer: str, reference: str, f1: float, exact: float
) -> None:
    assert token_f1(answer, reference) == pytest.approx(f1)
    assert exact_match(answer, reference) == exact


def test_squad_normalises_case_punctuation_articles_and_spaces() -> None:
    assert normalized("The  U.S.A.'s\tan-them, another a!") == "usas anthem another"


def test_rouge_counts_n_grams_and_takes_lines_for_sentences() -> None:
    found = score_answers(["a cat sat.\nThe dogs"], [["the cat sat\ndog"]], ["rouge"])
    # Of 5 and 4 words ("dogs" is stemmed): 4 are common and 1 pair is; in order 3, by lines 4.
    expected = {"rouge1": 8 / 9, "rouge2": 2 / 7, "rougeL": 2 / 3, "rougeLsum": 8 / 9}
    assert found == pytest.approx(expected)
    assert score_answers(["one two"], [["one two"]], ["rouge"]) == dict.fromkeys(answers.ROUGE, 1.0)


def test_an_answer_counts_as_what_it_is_beside_its_best_reference() -> None:
    """Of each metric by itself: the best for one may be the worse for another."""
    answers_ = ["the cat sat down", "no"]
    references = [["cat", "a dog sat down there", "The cat sat down."], ["yes", "perhaps"]]
    found = score_answers(answers_, references, ["token_f1", "exact_match"])
    assert found == {"token_f1": 0.5, "exact_match": 0.5}
    several = score_answers(["a b c d"], [["a b x y", "a c d z"]], ["rouge"])
    alone = [score_answers(["a b c d"], [[r]], ["rouge"]) for r in ("a b x y", "a c d z")]
    assert alone[0]["rouge1"] < alone[1]["rouge1"]
    assert alone[0]["rouge2"] == alone[1]["rouge2"]
    assert several == {name: max(one[name] for one in alone) for name in answers.ROUGE}


@pytest.mark.parametrize("others", [["b", "c"], {"text": ["b", "c"], "answer_start": [1, 2]}])
def test_references_are_a_list_a_row_or_as_squad_has_them(others: Any) -> None:
    rows = [{"prompt": "Who?", "completion": "a", "references": others}]
    asked = questions(renderer_of(load_rows(Dataset.from_list(rows)), tiny.byte_bpe()))
    assert asked[0].references == ("a", "b", "c")


def test_references_may_have_another_name_or_be_missing() -> None:
    data = Dataset.from_list(
        [
            {"prompt": "Who?", "completion": "a", "answers": ["b"]},
            {"prompt": "What?", "completion": "c", "answers": None},
        ]
    )
    for column, expected in ((None, [("a",), ("c",)]), ("answers", [("a", "b"), ("c",)])):
        rows = load_rows(data, references_column=column)
        asked = questions(renderer_of(rows, tiny.byte_bpe()))
        assert [question.references for question in asked] == expected
    assert load_rows(data).digest() == load_rows(data, references_column="answers").digest()


def test_references_that_are_none_are_refused() -> None:
    rows = Dataset.from_list([{"prompt": "Who?", "completion": "a", "references": "b"}])
    with pytest.raises(InputError, match="row 0: 'references' holds 'b', expected a list of texts"):
        questions(renderer_of(load_rows(rows), tiny.byte_bpe()))
    with pytest.raises(InputError, match="no column 'answers'; found prompt, completion, ref"):
        load_rows(rows, references_column="answers")


def test_rouge_that_is_not_installed_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "rouge_score.rouge_scorer", None)
    with pytest.raises(InputError, match=r"pip install 'logitstore\[evaluate\]'"):
        answers.rouge()


def rows_of(prompts: list[str], completions: list[str]) -> Dataset:
    return Dataset.from_dict({"prompt": prompts, "completion": completions})


def test_an_answer_does_not_depend_on_its_batch() -> None:
    tokenizer = tiny.byte_bpe(bos=True)
    model = tiny.llama(len(tokenizer), bos_token_id=1, eos_token_id=0)
    prompts = ["The teacher", "A", "My sister forgets the long page twice, and then", "12"]
    render = renderer_of(load_rows(rows_of(prompts, ["x"] * 4)), tokenizer)
    asked = questions(render)
    one, all_ = (
        answers.write_answers(
            model, tokenizer, asked, pad_id=0, max_new_tokens=6, tokens_per_batch=budget
        )
        for budget in (1, 10_000)
    )
    assert one == all_
    assert len(set(one)) > 1
    assert all(answer and not answer.startswith(p) for answer, p in zip(one, prompts, strict=True))


def test_a_greedy_answer_is_the_most_probable_token_each_time() -> None:
    import torch

    tokenizer = tiny.byte_bpe()
    model = tiny.llama(len(tokenizer))
    asked = questions(renderer_of(load_rows(rows_of(["The river "], ["x"])), tokenizer))
    ids = list(asked[0].token_ids)
    for _ in range(5):
        with torch.no_grad():
            ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
    written = answers.write_answers(
        model, tokenizer, asked, pad_id=0, max_new_tokens=5, tokens_per_batch=100
    )
    assert written == [tokenizer.decode(ids[-5:], skip_special_tokens=True).strip()]


def test_an_encoder_reads_the_prompt_and_its_end_and_the_answer_is_all_that_is_decoded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import torch

    tokenizer, model = tiny.byte_bpe(), t5()
    model.generation_config.decoder_start_token_id = 7
    asked = questions(renderer_of(load_rows(rows_of(["The river "], ["x"])), tokenizer))
    prompt = torch.tensor([[*asked[0].token_ids, tokenizer.eos_token_id]])
    ids = [7]
    for _ in range(5):
        with torch.no_grad():
            logits = model(input_ids=prompt, decoder_input_ids=torch.tensor([ids])).logits
        ids.append(int(logits[0, -1].argmax()))
    seen, generate = [], model.generate

    def spy(input_ids: torch.Tensor, **how: Any) -> torch.Tensor:
        seen.append(input_ids.tolist())
        return generate(input_ids=input_ids, **how)

    monkeypatch.setattr(model, "generate", spy)
    written = answers.write_answers(
        model, tokenizer, asked, pad_id=0, max_new_tokens=5, tokens_per_batch=100
    )
    assert written == [tokenizer.decode(ids[1:], skip_special_tokens=True).strip()]
    assert len(written[0]) == 5
    assert seen == [prompt.tolist()]


def test_the_last_turn_is_asked_for_and_what_is_before_it_read() -> None:
    talk = templates.turns("Hi!", "Hello.", "And?", "Nothing.")
    tokenizer = next(iter(templates.FAMILIES.values()))()
    asked = questions(renderer_of(load_rows(Dataset.from_list([{"messages": talk}])), tokenizer))
    assert asked[0].reference.startswith("Nothing.")
    prompt = tokenizer.decode(asked[0].token_ids)
    assert "Hello." in prompt
    assert "Nothing." not in prompt


def test_rows_without_a_prompt_have_nothing_to_answer() -> None:
    rows = load_rows(Dataset.from_dict({"text": ["some text"]}))
    with pytest.raises(InputError, match="none of its 1 row has a prompt and a completion"):
        questions(renderer_of(rows, tiny.byte_bpe()))


def test_a_limit_that_leaves_no_room_for_a_prompt_is_an_error() -> None:
    tokenizer = tiny.byte_bpe()
    asked = questions(renderer_of(load_rows(rows_of(["a"], ["b"])), tokenizer))
    with pytest.raises(InputError, match="--max-new-tokens 32: the model reads 32 tokens"):
        answers.write_answers(
            tiny.llama(len(tokenizer), max_position_embeddings=32),
            tokenizer,
            asked,
            pad_id=0,
            max_new_tokens=32,
            tokens_per_batch=100,
        )
