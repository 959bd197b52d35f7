"""A student that was taught to end its turns stops there when it writes."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from distill.student.arguments import StudentArguments
from distill.student.generation_ends import list_ends
from distill.training.config import CachedTeacherConfig
from distill.training.run import train
from logitstore.testing import tiny
from logitstore.text.chat_template import ChatTemplate
from logitstore.text.tokenizer import ByteTokenizer
from tests.kit import templates
from tests.kit.shapes import SHAPES
from tests.kit.talks import capture

ROWS = [{"messages": templates.turns("Hi!", text)} for text in tiny.corpus()[:8]]


def saved(folder: Path, tokenizer: Any) -> Path:
    """A base model: it lists its EOS alone."""
    model = tiny.llama(len(tokenizer))
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    return tiny.save(folder, model, tokenizer)


def trained(student: Path, store: Path, out: Path) -> Path:
    args = CachedTeacherConfig(
        output_dir=str(out), store=str(store), loss="uld", max_steps=1, use_cpu=True,
        disable_tqdm=True, save_strategy="no", learning_rate=1e-3,
    )  # fmt: skip
    train(args, StudentArguments(model_name_or_path=str(student)))
    return out


def ends_of(folder: Path) -> Any:
    """As anybody who loads the student reads it."""
    return GenerationConfig.from_pretrained(folder).eos_token_id


def test_a_saved_student_lists_the_end_of_its_template_beside_eos(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tokenizer = templates.chatml()
    student = saved(tmp_path / "base", tokenizer)
    capture(student, ROWS, tmp_path / "s")
    out = trained(student, tmp_path / "s", tmp_path / "out")
    eos, end = tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert eos != end
    assert ends_of(out) == [eos, end]
    (said,) = [e for e in capsys.readouterr().err.splitlines() if "chat template ends" in e]
    assert said == (
        "the student's chat template ends turns with <|im_end|>: generation_config.eos_token_id "
        f"is [{eos}, {end}] now, so that generate() stops there, too"
    )
    # One that would write nothing but ends writes one.
    model = AutoModelForCausalLM.from_pretrained(out)
    model.lm_head.register_forward_hook(lambda _m, _i, logits: logits.index_fill(2, only, 99.0))
    only = torch.tensor([end])
    prompt = torch.tensor([[5, 6, 7]])
    written = model.generate(prompt, do_sample=False, max_new_tokens=8)[0].tolist()
    assert written == [5, 6, 7, end]


@pytest.mark.parametrize("kind", ["text", "its own end"])
def test_nothing_is_changed_where_nothing_is_taught_that_is_not_listed(
    kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tokenizer = templates.mistral() if kind == "its own end" else templates.chatml()
    student = saved(tmp_path / "base", tokenizer)
    rows = ROWS if kind == "its own end" else [{"text": text} for text in tiny.corpus()[:8]]
    capture(student, rows, tmp_path / "s")
    out = trained(student, tmp_path / "s", tmp_path / "out")
    ends = ends_of(out)
    assert (ends if isinstance(ends, list) else [ends]) == [tokenizer.eos_token_id]
    assert "chat template ends" not in capsys.readouterr().err


def test_what_a_model_lists_already_stays_first_and_stays() -> None:
    tokenizer = SHAPES["channels"].tokenizer()
    reader = ByteTokenizer(tokenizer)
    template = ChatTemplate.of(tokenizer, reader)
    names = ["<|call|>", "<|end|>", "<|return|>"]
    call, middle, last = tokenizer.convert_tokens_to_ids(names)
    model = tiny.llama(len(tokenizer))
    for listed, expected in (
        ([call, reader.eos_token_id], [call, reader.eos_token_id, middle, last]),
        (None, [reader.eos_token_id, middle, last]),
        (last, [last, middle]),
        ([middle, last], [middle, last]),
    ):
        model.generation_config.eos_token_id = listed
        said = list_ends(model, reader, template)
        assert model.generation_config.eos_token_id == expected
        assert bool(said) == (expected != listed)
    assert list_ends(model, reader, None) == ""
    model.generation_config = None
    assert list_ends(model, reader, template) == ""


def test_evaluation_and_the_template_of_a_trained_student_agree(tmp_path: Path) -> None:
    """The folder as it is passed on: config, tokenizer and generation config."""
    student = saved(tmp_path / "base", templates.chatml())
    capture(student, ROWS, tmp_path / "s")
    out = trained(student, tmp_path / "s", tmp_path / "out")
    moved = shutil.move(out, tmp_path / "moved")
    tokenizer = AutoTokenizer.from_pretrained(moved)
    template = ChatTemplate.of(tokenizer, ByteTokenizer(tokenizer))
    listed = json.loads((Path(moved) / "generation_config.json").read_text())["eos_token_id"]
    assert set(template.end_ids) <= set(listed)
