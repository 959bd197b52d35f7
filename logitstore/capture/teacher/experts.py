"""Views of a teacher that is a mixture of experts: which of its N experts its routers use.

    --experts all     every expert, weighted by the whole gate
    --experts N-1     all but the one that the gate likes least
    --experts N-1 --expert-sample 0.05 --seed 1
                      likewise, but one token in twenty draws its N - 1 by the gate's probabilities,
                      without replacement, in every layer by itself

Experts that a router does not choose hold knowledge, too. Knowledge augmentation captures the text
several times, with a seed each, and a student learns from the mean of all views (arXiv:2502.12947;
two views and 0.05 in the paper). What a token draws depends on its place in the dataset, its layer
and the seed alone, not on batch, rank or resume. The weight of an expert is what the model's own
router makes of the gate's probabilities; how each router does is known here by its class.

Shape legend: n = tokens, N = experts.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from logitstore.capture.sequences.windows import TeacherSequence
from logitstore.capture.teacher.draws import EXPERTS, gumbel, random_words
from logitstore.errors import InputError

#: Configurations whose routers are known, and the class of these.
ROUTERS = {
    "mixtral": "MixtralTopKRouter",
    "qwen2_moe": "Qwen2MoeTopKRouter",
    "qwen3_moe": "Qwen3MoeTopKRouter",
    "olmoe": "OlmoeTopKRouter",
}
#: What configurations call the number of experts.
_COUNTS = ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts")


class View(NamedTuple):
    """A choice of experts.

    Attributes:
        active: How many at every token: `all` or `N-1`.
        sample: The share of tokens at which they are drawn.
        seed: Of these draws.
    """

    active: str
    sample: float = 0.0
    seed: int = 0

    def recorded(self) -> dict[str, Any]:
        """Describe it, as the spec has it."""
        drawn = {"sample": self.sample, "seed": self.seed} if self.sample else {}
        return {"active": self.active, **drawn}

    @classmethod
    def from_recorded(cls, found: dict[str, Any]) -> "View":
        """Read what `recorded` wrote."""
        return cls(found["active"], float(found.get("sample", 0)), int(found.get("seed", 0)))


def check_experts(name: str, config: Any) -> None:
    """Reject a teacher without experts, or whose routers are not known, before it is loaded.

    Raises:
        InputError: Says which it is.
    """
    text = config.get_text_config()
    if text.model_type in ROUTERS:
        return
    known = ", ".join(ROUTERS)
    if not any((getattr(text, each, None) or 0) > 1 for each in _COUNTS):
        raise InputError(
            f"--experts: {name} is a dense teacher ({text.model_type}), without experts to choose "
            f"from. Leave --experts out, or use a mixture of experts: {known}."
        )
    raise InputError(
        f"--experts: how the routers of {name} ({text.model_type}) weigh their experts is not "
        f"known here, only of {known}. Leave --experts out."
    )


class Routed:
    """Makes the routers of a loaded teacher choose a view's experts.

    Args:
        model: The teacher.
        view: The choice.

    Raises:
        InputError: It has no router that is known.
    """

    def __init__(self, model: nn.Module, view: View) -> None:
        self.view = view
        self._places_n3: Tensor | None = None
        classes = set(ROUTERS.values())
        routers = [each for each in model.modules() if type(each).__name__ in classes]
        if not routers:
            raise InputError(
                f"--experts: no router of {type(model).__name__} is one of {', '.join(classes)}, "
                "so its experts cannot be chosen. Leave --experts out."
            )
        for layer, router in enumerate(routers):
            router.register_forward_hook(self._hook(layer))

    def read(self, batch: Sequence[TeacherSequence], length: int) -> None:
        """Note where the tokens of the next forward pass are: rows of `length` tokens each."""
        if not self.view.sample:
            return
        places = torch.zeros(len(batch), length, 3, dtype=torch.long)
        for i, sequence in enumerate(batch):
            places[i, :, 0], places[i, :, 1] = sequence.line.row, sequence.line.part
        places[:, :, 2] = torch.arange(length)
        self._places_n3 = places.flatten(0, 1)

    def _hook(self, layer: int) -> Any:
        def chosen(router: Any, _given: Any, answer: tuple[Tensor, Tensor, Tensor]) -> Any:
            logits_nN, weights, _ = answer
            logprobs_nN = logits_nN.float().log_softmax(-1)
            count = logprobs_nN.shape[1] - (self.view.active != "all")
            ids = self._ranked(logprobs_nN, layer).topk(count).indices
            chosen = logprobs_nN.exp().gather(1, ids)
            if getattr(router, "norm_topk_prob", True):  # Mixtral's always does
                chosen = chosen / chosen.sum(-1, keepdim=True)
            return logits_nN, chosen.to(weights.dtype), ids

        return chosen

    def _ranked(self, logprobs_nN: Tensor, layer: int) -> Tensor:
        """Add Gumbel noise where experts are drawn: the largest are draws without replacement."""
        if not self.view.sample:
            return logprobs_nN
        assert self._places_n3 is not None, "a forward pass of unknown tokens"
        places_n3 = self._places_n3.to(logprobs_nN.device)
        assert len(places_n3) == len(logprobs_nN), "a forward pass of other tokens"
        experts = logprobs_nN.shape[1]
        words = random_words(places_n3, 1 + experts, self.view.seed, EXPERTS + layer)
        is_drawn_n1 = words[:, :1].double() < self.view.sample * 2.0**32
        return torch.where(is_drawn_n1, logprobs_nN + gumbel(words[:, 1:]), logprobs_nN)
