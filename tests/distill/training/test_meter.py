"""What is logged: sums over processes divided by what one process spent."""

import pytest
import torch
from torch import Tensor

from distill.training.meter import Meter


class TwoAlike:
    """An accelerator whose other process does exactly what this one does."""

    num_processes = 2

    def reduce(self, values: Tensor, reduction: str) -> Tensor:
        assert reduction == "sum"
        return 2 * values


def batch(tokens: int) -> dict[str, Tensor]:
    return {
        "tokens": torch.tensor([tokens]),
        "labels": torch.tensor([[-100] + [5] * (tokens - 1)]),
        "aligned": torch.tensor([(tokens - 1) // 2]),
        "example": torch.zeros(tokens - 1, dtype=torch.long),
        "skipped": torch.tensor([False]),
        "text_changed": torch.tensor([False]),
    }


def two_steps(meter: Meter) -> None:
    for ce in (1.0, 2.0):
        meter.start()
        meter.received()
        meter.add(batch(11), [torch.tensor(ce)], [torch.tensor(0.0)])
        meter.stop()


def test_values_are_means_over_steps_and_rates_are_of_all_processes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = iter(range(100))  # every look at the clock is a second later: a step takes two
    monkeypatch.setattr("time.perf_counter", lambda: float(next(clock)))
    meter = Meter(["ce"])
    two_steps(meter)
    report = meter.report(TwoAlike(), {})
    # Each process adds its share of the step's mean, so the two together are the mean.
    assert report["ce_loss"] == pytest.approx(2 * (1 + 2) / 2)
    assert report["tokens_per_second"] == pytest.approx(2 * 22 / 4)
    assert report["store_wait_fraction"] == pytest.approx(0.5)
    assert meter.report(TwoAlike(), {}) == {}
    totals = {
        "train_tokens": 44,
        "train_tokens_per_second": 11,
        "train_skipped_sequences": 0,
        "train_template_changed_text": 0,
        "train_unaligned_sequences": 0,
    }
    assert meter.totals() == pytest.approx(totals)


def test_a_second_training_starts_from_nothing() -> None:
    meter = Meter(["ce"])
    two_steps(meter)
    meter.report(TwoAlike(), {})
    two_steps(meter)
    meter.reset()
    assert meter.report(TwoAlike(), {}) == {}
    assert meter.totals()["train_tokens"] == 0
