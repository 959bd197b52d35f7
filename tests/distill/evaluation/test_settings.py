"""What an evaluation is asked for: each metric on what it is measured on, and nothing unused."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from distill.evaluation.settings import METRICS, EvaluationSettings
from logitstore.errors import InputError
from tests.kit.paths import ROOT


def test_of_both_sources_every_metric_can_be_measured() -> None:
    settings = EvaluationSettings(data="d", store="s", metrics=METRICS, samples=2)
    settings.check()
    both = [*settings.data_metrics, *settings.store_metrics]
    assert sorted(both) == sorted(METRICS)
    assert set(settings.answer_metrics) < set(settings.data_metrics)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({}, "--metrics bits_per_byte: measured on a dataset, but none is given"),
        ({"samples": 2}, "--samples 2: written after prompts of a dataset, but none is given"),
        ({"data": "d", "metrics": ["uld"]}, "--metrics uld: measured against a teacher"),
        ({"data": "d", "store": "s"}, "--store s: none of --metrics bits_per_byte reads it"),
        (
            {"data": "d", "store": "s", "metrics": ["uld"]},
            "d: none of --metrics uld reads a dataset",
        ),
        (
            {"data": "d", "references_column": "r"},
            "--references-column r: none of --metrics bits_per_byte reads it",
        ),
        (
            {"store": "s", "metrics": ["uld"], "parse_special": True},
            "--parse-special: says how the text of a dataset is read, and none is given.",
        ),
    ],
)
def test_what_lacks_and_what_is_unused_is_an_error(given: dict[str, Any], says: str) -> None:
    with pytest.raises(InputError) as raised:
        EvaluationSettings(**given).check()
    assert str(raised.value).startswith(says)


def test_samples_alone_are_a_use_of_a_dataset() -> None:
    EvaluationSettings(data="d", store="s", metrics=["uld"], samples=1).check()


def test_a_store_is_not_a_dataset(tmp_path: Path) -> None:
    (tmp_path / "store.json").touch()
    with pytest.raises(InputError, match="is a store, and where a dataset is expected"):
        EvaluationSettings(data=str(tmp_path)).check()


def test_settings_are_read_without_torch() -> None:
    code = "import sys, distill.evaluation.settings; print('torch' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "False"
