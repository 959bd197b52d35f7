"""Adapters: made of the seed alone, gone on from where they are named, merged when asked."""

from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from distill.student.arguments import StudentArguments
from distill.student.loading import load_student, make_student
from distill.training.config import CachedTeacherConfig
from distill.training.run import train
from logitstore.capture import capture
from logitstore.errors import InputError
from logitstore.testing import tiny
from tests.kit.rows import texts_file

FILE = "adapter_model.safetensors"
pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated")


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A student, adapters that have learned something on it, and a store."""
    folder = tmp_path_factory.mktemp("adapters")
    tokenizer = tiny.byte_bpe()
    for name, seed in (("teacher", 0), ("student", 1)):
        tiny.save(folder / name, tiny.llama(len(tokenizer), seed), tokenizer)
    base = AutoModelForCausalLM.from_pretrained(folder / "student")
    config = peft.LoraConfig(r=4, task_type="CAUSAL_LM", target_modules=["q_proj", "v_proj"])
    learned: Any = peft.get_peft_model(base, config)
    torch.manual_seed(0)
    for name, weight in learned.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.5)
    learned.save_pretrained(folder / "learned")
    tokenizer.save_pretrained(folder / "learned")
    data = texts_file(folder / "rows.jsonl", tiny.corpus()[:6])
    capture(folder / "teacher", data, folder / "store", top_k=8)
    return folder


def trained(here: Path, out: Path, rate: float = 1e-6, **student: Any) -> dict[str, Any]:
    config = CachedTeacherConfig(
        output_dir=str(out), store=str(here / "store"), loss="ce", max_steps=1, use_cpu=True,
        save_strategy="no", report_to=[], disable_tqdm=True, learning_rate=rate, seed=1,
    )  # fmt: skip
    arguments = StudentArguments(**({"use_peft": True} | student))
    return dict(train(config, arguments))


def test_adapters_of_two_seeds_differ(here: Path) -> None:
    arguments = StudentArguments(model_name_or_path=str(here / "student"), use_peft=True)
    one, other = (
        torch.cat([p.flatten() for n, p in model.named_parameters() if "lora_A" in n])
        for model, _ in (make_student(arguments, seed) for seed in (1, 2))
    )
    assert not torch.equal(one, other)


def test_training_goes_on_from_the_adapters_that_are_named(here: Path, tmp_path: Path) -> None:
    trained(here, tmp_path / "out", model_name_or_path=str(here / "learned"))
    before, after = load_file(here / "learned" / FILE), load_file(tmp_path / "out" / FILE)
    torch.testing.assert_close(after, before)
    trained(here, tmp_path / "far", 1e-1, model_name_or_path=str(here / "learned"))
    moved = load_file(tmp_path / "far" / FILE)
    assert all(not torch.equal(moved[name], before[name]) for name in before)


def logits(model: Any) -> Tensor:
    with torch.no_grad():
        found: Tensor = model.eval()(torch.arange(3, 40)[None]).logits
    return found


def test_merged_adapters_are_a_whole_model(here: Path, tmp_path: Path) -> None:
    """The same student as that of the same run, which saves its adapters."""
    named: dict[str, Any] = {"model_name_or_path": str(here / "learned"), "rate": 1e-2}
    run = trained(here, tmp_path / "whole", lora_merge=True, **named)
    trained(here, tmp_path / "adapters", **named)
    assert not (tmp_path / "whole" / FILE).exists()
    assert not (tmp_path / "whole" / "adapter_config.json").exists()
    assert (run["lora"], run["lora_merged"]["lora_r"]) == (None, 4)
    whole = AutoModelForCausalLM.from_pretrained(tmp_path / "whole")
    with_adapters, _ = load_student(str(tmp_path / "adapters"))
    torch.testing.assert_close(logits(whole), logits(with_adapters), rtol=1e-4, atol=1e-4)
    base = AutoModelForCausalLM.from_pretrained(here / "student")
    assert not torch.allclose(logits(whole), logits(base), atol=1e-2)


@pytest.mark.parametrize(
    ("student", "says"),
    [
        ({"use_peft": False}, r"holds adapters for .*student, not a whole model.*Add --use_peft"),
        ({"lora_r": 4}, r"--lora_r: .*learned holds adapters, which have a rank.*Leave --lora_r"),
    ],
)
def test_adapters_are_never_dropped_nor_left_untrained(
    student: dict[str, Any], says: str, here: Path
) -> None:
    given: Any = {"use_peft": True, "model_name_or_path": str(here / "learned")} | student
    with pytest.raises(InputError, match=says):
        make_student(StudentArguments(**given), 0)


def test_the_model_that_adapters_lack_is_named(here: Path, tmp_path: Path) -> None:
    (tmp_path / "moved").mkdir()
    for path in (here / "learned").iterdir():
        text = path.read_bytes().replace(b"/student", b"/students")
        (tmp_path / "moved" / path.name).write_bytes(text)
    says = r"moved: holds adapters for .*/students, and that model cannot be loaded"
    arguments = StudentArguments(model_name_or_path=str(tmp_path / "moved"), use_peft=True)
    with pytest.raises(InputError, match=says):
        make_student(arguments, 0)
    with pytest.raises(InputError, match=says):
        load_student(str(tmp_path / "moved"))
    (tmp_path / "moved" / "adapter_config.json").write_text("{}")
    with pytest.raises(InputError, match="does not say which model its adapters are for"):
        load_student(str(tmp_path / "moved"))


def test_a_merge_of_no_adapters_is_refused() -> None:
    with pytest.raises(InputError, match="--lora_merge True would have no effect"):
        StudentArguments(model_name_or_path="x", lora_merge=True)
