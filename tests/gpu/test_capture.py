"""Capture on a CUDA device: the CPU's records to rounding, automatic budgets, device maps."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import logitstore
from logitstore.checking.verify import verify_store
from logitstore.testing import tiny

pytestmark = pytest.mark.gpu

K = 8


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A teacher's folder and rows of text."""
    folder = tmp_path_factory.mktemp("source")
    tokenizer = tiny.byte_bpe()
    teacher = tiny.save(folder / "teacher", tiny.llama(len(tokenizer), seed=7), tokenizer)
    rows = folder / "rows.jsonl"
    rows.write_text("".join(json.dumps({"text": text}) + "\n" for text in tiny.corpus()[:40]))
    return teacher, rows


def capture(source: tuple[Path, Path], out: Path, **how: Any) -> Any:
    store = logitstore.capture(*source, out=out, top_k=K, **how)
    assert verify_store(store.path).damaged == []
    return store


@pytest.fixture(scope="module")
def expected(source: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Any:
    return capture(source, tmp_path_factory.mktemp("cpu") / "store", device="cpu")


def assert_alike(store: Any, expected: Any, nats: float) -> None:
    """Scalars agree; of the entries those far from the boundary, where ties may fall otherwise."""
    assert len(store) == len(expected)
    for i in range(len(store)):
        a, b = store[i], expected[i]
        np.testing.assert_array_equal(a.token_ids, b.token_ids)
        np.testing.assert_allclose(a.token_logprob, b.token_logprob, atol=nats)
        np.testing.assert_allclose(a.entropy, b.entropy, atol=nats)
        ours, theirs = a.padded(K // 2).logprobs, b.padded(K // 2).logprobs
        np.testing.assert_allclose(ours, theirs, atol=nats)


def test_records_of_the_device_are_those_of_the_cpu(
    source: tuple[Path, Path], expected: Any, device: str, tmp_path: Path
) -> None:
    assert_alike(capture(source, tmp_path / "store", device=device), expected, nats=0.02)


def test_the_same_device_writes_the_same_bytes_again(
    source: tuple[Path, Path], device: str, tmp_path: Path
) -> None:
    one = capture(source, tmp_path / "one", device=device)
    other = capture(source, tmp_path / "other", device=device)
    assert one.digest == other.digest


def test_bfloat16_is_within_its_own_rounding(
    source: tuple[Path, Path], expected: Any, device: str, tmp_path: Path
) -> None:
    store = capture(source, tmp_path / "store", device=device, dtype="bfloat16")
    assert_alike(store, expected, nats=0.5)


def test_an_automatic_budget_fits_the_device(
    source: tuple[Path, Path], expected: Any, device: str, tmp_path: Path
) -> None:
    store = capture(source, tmp_path / "store", device=device, tokens_per_batch="auto")
    assert_alike(store, expected, nats=0.02)


def test_a_device_map_spreads_the_teacher(
    source: tuple[Path, Path], expected: Any, device: str, tmp_path: Path
) -> None:
    store = capture(source, tmp_path / "store", device_map="auto")
    assert_alike(store, expected, nats=0.02)


def test_a_quantised_teacher_is_captured(
    source: tuple[Path, Path], expected: Any, device: str, tmp_path: Path
) -> None:
    pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed")
    if device == "cpu" or not torch.cuda.is_available():
        pytest.skip("8-bit weights need CUDA")
    store = capture(source, tmp_path / "store", device=device, quantization="bitsandbytes-8bit")
    assert_alike(store, expected, nats=1.0)
