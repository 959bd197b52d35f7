"""The teacher's records come from hidden states, and are what the model's own logits say."""

import logging

import pytest
import torch

from logitstore.capture.teacher.head import TeacherHead
from logitstore.capture.teacher.summary import HeadSettings, summarise
from logitstore.models.output_embedding import PROBE_ROWS
from tests.kit.families import FAMILIES, V, build

CAUSAL = [name for name in FAMILIES if not name.startswith("bart")]


@pytest.mark.parametrize("family", CAUSAL)
def test_records_are_those_of_the_models_own_logits(
    family: str, caplog: pytest.LogCaptureFixture
) -> None:
    model = build(family)
    gen = torch.Generator().manual_seed(0)
    ids = torch.randint(1, V, (3, 9), generator=gen)
    mask = torch.arange(9) < torch.tensor([[9], [5], [7]])
    inputs = {"input_ids": ids * mask, "attention_mask": mask.long()}
    at = (mask & (torch.arange(9) > 0)).flatten().nonzero().squeeze(1)
    settings = HeadSettings(7, max_tail=0.2, temperatures=(2.0, 0.5), logit_std=True)
    with caplog.at_level(logging.WARNING):
        head = TeacherHead(model, settings)
        for _ in range(2):  # the checked call, then an unchecked one
            found = head(inputs, at - 1, ids.flatten()[at])
            with torch.no_grad():
                rows = model(**inputs).logits.flatten(0, 1)[at - 1]
            wanted = summarise(rows, ids.flatten()[at], settings)
            for ours, theirs in zip(vars(found).values(), vars(wanted).values(), strict=True):
                torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    assert "Its own logits are used whole" not in caplog.text


def test_the_full_logits_of_a_batch_never_exist(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also not on the first batch, which is checked."""
    chunk = 6
    monkeypatch.setattr("logitstore.capture.teacher.head.CHUNK_ROWS", chunk)
    model = build("llama")
    forward, rows = model.lm_head.forward, []

    def watched(hidden: torch.Tensor) -> torch.Tensor:
        rows.append(hidden.shape[:-1].numel())
        return forward(hidden)

    model.lm_head.forward = watched
    ids = torch.randint(1, V, (4, 16), generator=torch.Generator().manual_seed(0))
    at = torch.arange(1, 16)
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    head = TeacherHead(model, HeadSettings(5))
    head(inputs, at - 1, ids.flatten()[at])
    head(inputs, at - 1, ids.flatten()[at])
    assert max(rows) == PROBE_ROWS
    assert sorted(rows) == [0, 3, 3, 6, 6, 6, 6, PROBE_ROWS]
