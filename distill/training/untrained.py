"""See to it that a run which trained nothing does not end as if it had.

A student can come out of a run as it went in: every row of its batches was lost, no pair covered a
label and nothing stood in, the learning rate was 0 throughout, `--fp16` skipped every step, or each
update was lost in the rounding of bfloat16 weights. Weight decay alone is no training either.
"""

from typing import Any

import torch
from torch import Tensor, nn

from distill.training.own_weights import is_own
from logitstore.console.counts import counted
from logitstore.errors import InputError

_INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


class Untrained:
    """Watches whether a run trains: whether weights change, and the loss is ever other than 0.

    Args:
        model: The model as it is trained, wrapped and sharded.
    """

    def __init__(self, model: nn.Module) -> None:
        self._before = marks_of(model)
        self._loss: Tensor | None = None
        self._labels = 0

    def add(self, loss: Tensor, labels: int) -> None:
        """Count the loss of a micro-batch's labels, without waiting for it, and these labels.

        What a router's loss adds is not of any label: a student may not be trained by that alone.
        """
        size = loss.detach().abs().float()
        self._loss = size if self._loss is None else self._loss + size
        self._labels += labels

    def check(self, model: nn.Module, args: Any, steps: int, accelerator: Any) -> None:
        """Reject a run whose student is as it was. Every process must call it.

        Args:
            model: The same model, after training.
            args: The run's configuration.
            steps: Steps that were taken.
            accelerator: Adds up over processes.

        Raises:
            InputError: Says what is likely the reason, and what to do.
        """
        has_changed = float(marks_of(model) != self._before)
        loss = 0.0 if self._loss is None else float(self._loss)
        facts = torch.tensor([has_changed, loss, float(self._labels)], device=args.device)
        changed, loss, labels = accelerator.reduce(facts, reduction="sum").tolist()
        if changed and loss:
            return
        raise InputError(
            f"--output_dir {args.output_dir}: not saved, for the student is as it was: "
            f"{_why(args, steps, loss=loss, labels=labels)}",
            kind="untrained",
        )


def marks_of(model: nn.Module) -> list[int]:
    """Compute a number of every trainable tensor (here: of its shard) that a change would change.

    It is the sum of the bits of its values, read as integers.
    """
    sums = []
    for name, each in model.named_parameters():
        if not each.requires_grad or is_own(name):  # a loss's weights are not the student
            continue
        local: Tensor = getattr(each, "ds_tensor", each).detach()  # DeepSpeed's shard, or itself
        local = local.to_local() if hasattr(local, "to_local") else local  # FSDP 2's
        bits = local.contiguous().view(_INTEGERS[local.element_size()])
        sums.append(bits.sum(dtype=torch.int64).cpu())
    return [int(each) for each in sums]


def _why(args: Any, steps: int, *, loss: float, labels: float) -> str:
    """Say what is likely the reason, and what to do."""
    if not steps:
        return "not one step was taken. Give --max_steps, or more --num_train_epochs."
    if not labels:
        return (
            f"the {counted(steps, 'step')} had no label, for it can use none of their rows. Take "
            f"more steps; `distill coverage {args.store} STUDENT` says why rows are lost."
        )
    if not loss:
        return (
            f"the loss was 0 in each of the {counted(steps, 'step')}: no pair of --loss "
            f"{args.loss} covers "
            "a label. Leave --ce_weight 0 and --uncovered out, or use another --loss."
        )
    if args.fp16:
        return (
            f"no weight changed in {counted(steps, 'step')}; --fp16 skips steps whose gradients "
            "are infinite. Use --bf16, or take more steps."
        )
    return (
        f"no weight changed in {counted(steps, 'step')}: updates were 0, or lost in rounding. Use "
        f"a --learning_rate above {args.learning_rate:g}, fewer --warmup_steps, or float32 weights."
    )
