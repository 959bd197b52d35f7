"""Time every loss on hidden states beside Liger's fused cross-entropy: value and both gradients.

N = 8,192 labels, D = 2,048, V = 128,256, bfloat16. Each contender takes hidden states and the
output embedding and leaves the gradient of both, alone on the device:

* Liger's fused linear cross-entropy, and its fused linear JSD against a dense teacher;
* our chunked cross-entropy, recomputed and with the gradient taken in the forward pass;
* cross-entropy and each loss of ours from a store's top 64, as the trainer takes them;
* ULD by its definition, both vocabularies sorted, and TRL's: on a part of the labels that fits.

Shape legend: N = labels, D = hidden width, V = vocabulary.
"""

import importlib.util
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from tools import loss_contenders
from tools.benchmark import goal
from tools.gpu import stage
from tools.gpu.timing import Device
from tools.loss_arrays import Sizes
from tools.loss_contenders import IN_FORWARD, LOSSES, RECOMPUTED, SORTED, TINY, TRL

LARGE = Sizes(N=8192, D=2048, V=128_256, B=8, device="cuda", dtype=torch.bfloat16)
#: Of the labels, that contenders of whole vocabularies take; what they need is scaled up.
PART = 8
LIGER, LIGER_JSD = "Liger's fused CE", "Liger's fused JSD"
REPEATS = 5


def measure(device: Device, partial: stage.Partial) -> dict[str, Any]:
    sizes = TINY if device.is_cpu else LARGE
    few = Sizes(**vars(sizes) | {"N": max(sizes.B, sizes.N // PART)})
    found: dict[str, dict[str, float]] = partial.known().get("contenders", {})
    results: dict[str, Any] = {}
    for name, make in contenders(device).items():
        if name in found:
            continue
        whole = name not in (SORTED, TRL, LIGER_JSD)
        own = sizes if whole else few
        found[name] = one(make, own, device)
        if not whole:
            found[name] = {key: value * sizes.N / own.N for key, value in found[name].items()}
        results = {"sizes": said(sizes), "contenders": found, "goals": judged(found)}
        partial.write(results)
    return results


def said(sizes: Sizes) -> dict[str, Any]:
    return {
        key: value if isinstance(value, int) else str(value) for key, value in vars(sizes).items()
    }


def one(make: Callable[[Sizes], Any], sizes: Sizes, device: Device) -> dict[str, float]:
    step = make(sizes)
    return device.measure(step, repeats=2 if device.is_cpu else REPEATS)


def contenders(device: Device) -> dict[str, Callable[[Sizes], Any]]:
    ours = {
        name: loss_contenders.CONTENDERS[name] for name in (RECOMPUTED, IN_FORWARD, *LOSSES, SORTED)
    }
    has_liger = not device.is_cpu and importlib.util.find_spec("liger_kernel") is not None
    liger = {LIGER: liger_ce, LIGER_JSD: liger_jsd} if has_liger else {}
    has_trl = importlib.util.find_spec("trl") is not None
    return {**liger, **ours, **({TRL: loss_contenders.CONTENDERS[TRL]} if has_trl else {})}


def liger_ce(sizes: Sizes) -> Any:
    from liger_kernel.transformers import LigerFusedLinearCrossEntropyLoss

    hidden, weight, labels = loss_contenders.hidden_and_weight(sizes)
    fused = LigerFusedLinearCrossEntropyLoss()
    return loss_contenders.stepped(hidden, weight, lambda: fused(weight, hidden, labels))


def liger_jsd(sizes: Sizes) -> Any:
    """Its teacher is a dense layer of the same size, whose logits it makes chunk by chunk."""
    from liger_kernel.chunked_loss import LigerFusedLinearJSDLoss

    hidden, weight, labels = loss_contenders.hidden_and_weight(sizes)
    theirs = nn.Parameter(weight.detach().clone(), requires_grad=False)
    fused = LigerFusedLinearJSDLoss(weight_hard_loss=0.5, weight_soft_loss=0.5, beta=0.0)
    student: Tensor = hidden
    return loss_contenders.stepped(
        hidden, weight, lambda: fused(student, weight, hidden.detach(), theirs, labels)
    )


def judged(found: dict[str, dict[str, float]]) -> dict[str, Any]:
    """Compare time and memory with Liger's cross-entropy, or with ours where it is not there."""
    base = LIGER if LIGER in found else IN_FORWARD
    if base not in found:
        return {}
    return {
        name: {
            f"time of {base}": goal(found[name]["seconds"] / found[base]["seconds"], at_most=1.15),
            f"memory of {base}": goal(
                found[name]["peak_bytes"] / found[base]["peak_bytes"], at_most=1.1
            ),
        }
        for name in found
        if name in LOSSES or (name == IN_FORWARD and base == LIGER)
    }


if __name__ == "__main__":
    stage.main(measure)
