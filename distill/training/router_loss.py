"""The loss that a mixture of experts adds to its own, so that its router uses all experts.

A model whose config says `output_router_logits` computes it in its forward (`aux_loss`), and adds
`router_aux_loss_coef` times it to its own loss, which is not used here. So it is added here. It is
not a sum over labels: that of a micro-batch counts by the micro-batch's share of the labels.
"""

from typing import Any

from torch import Tensor, nn

from logitstore.errors import InputError

_COEFFICIENTS = ("router_aux_loss_coef", "aux_loss_coef")
_OTHERS = ("router_z_loss_coef", "z_loss_coefficient")


def router_weight(model: nn.Module) -> float:
    """Return the weight of a model's router loss; 0 if its config asks for none.

    Raises:
        InputError: It asks for one that is not known here.
    """
    config: Any = model.config
    config = config.get_text_config(decoder=True)
    if not getattr(config, "output_router_logits", False):
        return 0.0
    found = [getattr(config, name, None) for name in _COEFFICIENTS]
    known = [float(value) for value in found if value is not None]
    if not known or config.is_encoder_decoder or any(getattr(config, n, 0) for n in _OTHERS):
        raise _unknown(model)
    return known[0]


def router_loss(found: Tensor | None, weight: float, model: nn.Module, share: Tensor) -> Tensor:
    """Return what a micro-batch adds to the loss of its step.

    Args:
        found: The model's `aux_loss`.
        weight: As :func:`router_weight` says, above 0.
        model: The model, for the message.
        share: Of the labels of the whole step, how many are in this micro-batch.

    Raises:
        InputError: The model did not give it.
    """
    if found is None:
        raise _unknown(model)
    return weight * found.float() * share


def _unknown(model: nn.Module) -> InputError:
    return InputError(
        f"{getattr(model, 'name_or_path', '') or 'the student'}: its config asks for the loss of a "
        f"router (output_router_logits), and that of {type(model).__name__} cannot be added here. "
        "Set output_router_logits to false in its config.json to train without that loss."
    )
