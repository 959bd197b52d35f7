"""The weights that a loss has of its own: trained with the student, saved beside it, never inside.

    trained/model.safetensors         the student, as if there were no such weights
    trained/loss_weights.safetensors  those of the losses, in checkpoints likewise

They hang on the student as a module while it is trained. So whatever trains a student trains them
too: the optimizer is given them, DistributedDataParallel adds up their gradients, the norm that is
clipped has them in it. What the student says its state is has none of them, whoever asks.

They are float32, and drawn from a generator of their own, so that a student's other random numbers
are what they are without them.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from distill.data.joined import StudentData, parts_of, uses_of
from distill.losses import find
from distill.losses.loss import Options, Widths
from distill.losses.own_rate import RATE
from distill.losses.uses import loss_of, store_of
from logitstore.errors import InputError, in_a_line
from logitstore.storage import commit

#: Beside a student's weights, and in each checkpoint.
WEIGHTS_FILE = "loss_weights.safetensors"
_GROUP = "of_losses"
#: The name of the module on the student.
_NAME = "distill_loss_weights"


def attach(model: nn.Module, data: StudentData, *, seed: int = 0) -> nn.ModuleDict | None:
    """Hang the weights of a run's losses on its student; None where no loss has any.

    Args:
        model: The student, not wrapped.
        data: What it is trained on.
        seed: Of their first values.

    Raises:
        InputError: The student is one that they do not fit, or has some of other losses.
    """
    wanted = [use for use in uses_of(data) if find(use).module is not None]
    before = of(model)
    if before is not None and list(before) != wanted:
        raise InputError(
            f"the student has the weights of {', '.join(before)} from a run before, and these "
            f"losses have {', '.join(wanted) or 'none'}. Load the student again."
        )
    if not wanted or before is not None:
        return before
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        made = nn.ModuleDict({use: _made(model, data, use) for use in wanted})
    made.to(next(model.parameters()).device)
    model.add_module(_NAME, made)
    hooked: Any = model
    hooked.register_state_dict_post_hook(_without)
    hooked.register_load_state_dict_post_hook(_not_missed)
    return made


def check_not_sharded(args: Any) -> None:
    """Reject wrappers that would shard the weights of losses with the student's.

    Raises:
        InputError: Names the flag.
    """
    for flag in ("fsdp", "deepspeed"):
        if getattr(args, flag, None):
            raise InputError(
                f"--{flag}: --loss {args.loss} has weights of its own, which are saved apart from "
                f"the student's, and --{flag} keeps them in pieces. Leave it out: several "
                "processes without it train them too."
            )


def give_own_rate(
    optimizer: torch.optim.Optimizer, weights: list[nn.Parameter], options: Options
) -> None:
    """Move the weights of losses of an optimizer to a group with a learning rate of their own."""
    if not weights or any(group.get(_GROUP) for group in optimizer.param_groups):
        return
    own = {id(each) for each in weights}
    for group in optimizer.param_groups:
        group["params"] = [each for each in group["params"] if id(each) not in own]
    rate = options[RATE.name]
    optimizer.add_param_group({"params": weights, "lr": rate, "weight_decay": 0.0, _GROUP: True})


def of(model: nn.Module) -> nn.ModuleDict | None:
    """Find the weights of losses that hang on a student; None: none do."""
    found = getattr(model, _NAME, None)
    return found if isinstance(found, nn.ModuleDict) else None


def parameters_of(model: nn.Module) -> list[nn.Parameter]:
    """List the parameters of losses on a student."""
    found = of(model)
    return [] if found is None else list(found.parameters())


def is_own(name: str) -> bool:
    """Tell whether a parameter of a student, by its name there, is one of a loss."""
    return f"{_NAME}." in name


def _made(model: Any, data: StudentData, use: str) -> nn.Module:
    """Make the weights of a loss for the teacher of one store."""
    part = parts_of(data)[store_of(use)]
    hidden, module = part.store.spec.hidden, find(use).module
    assert module is not None
    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    if head is None or embedding is None:
        raise InputError(
            f"{type(model).__name__}: has no output or input embedding, between which --loss "
            f"{loss_of(use)} puts its weights. Use another --loss."
        )
    widths = Widths(
        0 if hidden is None else hidden.width,
        None if hidden is None else hidden.embedding_width,
        int(head.weight.shape[1]),
        int(embedding.weight.shape[1]),
        part.store.lm_head if hidden is not None and hidden.has_head else None,
    )
    try:
        return module(widths, data.options).float()
    except ValueError as error:
        raise InputError(
            f"--loss {loss_of(use)}: {error}. Use another --loss, or another teacher."
        ) from error


def _without(_model: nn.Module, state: dict[str, Any], _prefix: str, _about: Any) -> None:
    for name in [name for name in state if is_own(name)]:
        del state[name]


def _not_missed(_model: nn.Module, keys: Any) -> None:
    keys.missing_keys[:] = [name for name in keys.missing_keys if not is_own(name)]


def save_beside(model: nn.Module, folder: Path) -> None:
    """Write the weights of losses into a student's folder; nothing where there are none."""
    found = of(model)
    if found is None:
        return
    tensors = {name: each.detach().cpu().contiguous() for name, each in _named(found).items()}
    commit.write_whole(folder / WEIGHTS_FILE, save(tensors))


def load_beside(model: nn.Module, folder: Path) -> None:
    """Read the weights of losses of a checkpoint back; nothing where there are none.

    Raises:
        InputError: The file is missing, damaged, or of other losses.
    """
    found = of(model)
    if found is None:
        return
    path = folder / WEIGHTS_FILE
    try:
        tensors = load_file(path)
        found.load_state_dict(tensors)
    except (OSError, SafetensorError, RuntimeError) as error:
        raise InputError(
            f"{path}: does not hold the weights of {', '.join(map(loss_of, found))} "
            f"({in_a_line(error)}). Name another checkpoint-N folder with "
            "--resume_from_checkpoint, or start anew in another --output_dir."
        ) from error


def _named(found: nn.ModuleDict) -> Mapping[str, Tensor]:
    return dict(found.named_parameters())
