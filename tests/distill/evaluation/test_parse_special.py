"""Text that a model's own template wrote: its marks are context, read as tokens, not counted."""

import json
import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

from distill.cli import main
from distill.evaluation.evaluate import evaluate
from distill.evaluation.settings import EvaluationSettings
from logitstore.errors import InputError
from logitstore.testing.fake_store import dense_logprobs
from logitstore.text.tokenizer import ByteTokenizer
from tests.kit.rows import rows_file
from tests.kit.talks import TALKS, save_families
from tests.kit.templates import FAMILIES


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return save_families(tmp_path_factory.mktemp("models"))


def written(folder: Path, out: Path) -> Path:
    """A column of text, rendered by the model's own template."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    talks = [talk for talk in TALKS if all(m["content"] for m in talk)]
    texts = [tokenizer.apply_chat_template(talk, tokenize=False) for talk in talks]
    return rows_file(out, *({"text": text} for text in texts))


def run(folder: Path, data: Path, **how: Any) -> Any:
    return evaluate(str(folder), EvaluationSettings(data=str(data), parse_special=True, **how))


@pytest.mark.parametrize("family", FAMILIES)
def test_bits_are_those_of_the_tokens_that_are_no_marks(
    family: str, folders: dict[str, Path], tmp_path: Path
) -> None:
    """By hand: BOS stands there once, though the tokenizer adds one, and EOS is not counted."""
    folder, data = folders[family], tmp_path / "rows.jsonl"
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder)
    found = run(folder, written(folder, data))
    bits, size, tokens = 0.0, 0, 0
    written_by = ByteTokenizer(tokenizer)
    special = {i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
    for line in data.read_text(encoding="utf-8").splitlines():
        ids = np.array(tokenizer(json.loads(line)["text"], add_special_tokens=False).input_ids)
        if written_by.prefix_length and ids[0] != tokenizer.bos_token_id:
            ids = np.concatenate([[tokenizer.bos_token_id], ids])
        logprobs = dense_logprobs(model, ids)
        for at in range(1, len(ids)):
            if int(ids[at]) not in special:
                bits -= float(logprobs[at - 1, ids[at]]) / math.log(2)
                size += len(written_by.written(ids[at : at + 1])[0])
                tokens += 1
    assert found["evaluation"]["tokens"] == tokens
    assert found["evaluation"]["bits"] == pytest.approx(bits, rel=1e-5)
    assert found["evaluation"]["bytes"] == pytest.approx(size, abs=2 * tokens)


def test_the_prompt_of_an_answer_ends_with_the_last_mark(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    data = written(folders["chatml"], tmp_path / "rows.jsonl")
    found = run(folders["chatml"], data, metrics=["exact_match"], samples=2, max_new_tokens=2)
    assert found["answered"]["prompts"] == 3
    assert found["samples"]["texts"][0]["reference"].endswith("The teacher reads.")
    assert "<|im_start|>user" in found["samples"]["texts"][0]["prompt"]


def test_rows_that_are_no_text_are_refused_by_name(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    data = rows_file(tmp_path / "rows.jsonl", {"messages": TALKS[0]})
    with pytest.raises(InputError, match=r"so --parse-special would have no effect\. Leave it"):
        run(folders["chatml"], data)


def test_the_command_has_the_flag(
    folders: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    data = written(folders["chatml"], tmp_path / "rows.jsonl")
    said = []
    for flags in ([], ["--parse-special"]):
        monkeypatch.setattr(
            sys, "argv", ["distill", "evaluate", str(folders["chatml"]), str(data), *flags]
        )
        with pytest.raises(SystemExit) as ended:
            main()
        assert ended.value.code == 0
        said.append(capsys.readouterr().out)
    assert said[0] != said[1]
