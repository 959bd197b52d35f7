"""A figure is of rows that stayed as they were while it was measured."""

from pathlib import Path
from typing import Any

import datasets
import pytest

from distill.evaluation import evaluate as module
from distill.evaluation.evaluate import Measured, evaluate
from distill.evaluation.settings import EvaluationSettings
from logitstore.errors import InputError
from logitstore.testing import tiny


def test_rows_that_change_while_they_are_measured_give_no_figure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows that are mapped change when their file does, in the middle of a measurement too."""
    tokenizer = tiny.byte_bpe()
    student = tiny.save(tmp_path / "student", tiny.llama(len(tokenizer)), tokenizer)
    datasets.Dataset.from_dict({"text": tiny.corpus()[:4]}).save_to_disk(str(tmp_path / "data"))
    settings = EvaluationSettings(data=str(tmp_path / "data"))
    assert evaluate(str(student), settings)["bits_per_byte"] > 0
    measures = module._predict

    def edits_meanwhile(*arguments: Any) -> Measured:
        found = measures(*arguments)
        with next((tmp_path / "data").glob("*.arrow")).open("r+b") as file:
            file.write(file.read(1))
        return found

    monkeypatch.setattr(module, "_predict", edits_meanwhile)
    with pytest.raises(InputError, match=r"\.arrow was written to while it was read"):
        evaluate(str(student), settings)
