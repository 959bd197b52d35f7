"""The entropy of rows of logits, which no gradient is taken of.

H = log Z - E_p[z], a few rows at a time: a copy of all of them would be as large as a chunk.

Shape legend: c = rows; b = rows of a block; V = vocabulary.
"""

import torch
from torch import Tensor

#: Logits of a block: on a CPU what its last cache holds; a GPU would wait for many small steps.
BLOCK_LOGITS, BLOCK_LOGITS_ON_GPU = 2**20, 2**23
#: So far below the largest logit there is no mass left, in any precision.
_NOTHING = -100.0


@torch.no_grad()
def entropies(logits_cV: Tensor) -> Tensor:
    """Compute (c,) the entropy of each row in nats; tokens of -inf have no part in it.

    Args:
        logits_cV: float32 or float64, of any offset.
    """
    limit = BLOCK_LOGITS if logits_cV.device.type == "cpu" else BLOCK_LOGITS_ON_GPU
    size = max(1, limit // logits_cV.shape[1])
    found = [_of_block(logits_cV[i : i + size]) for i in range(0, len(logits_cV), size)]
    return torch.cat(found) if found else logits_cV.new_zeros(0)


def _of_block(logits_bV: Tensor) -> Tensor:
    below_bV = (logits_bV - logits_bV.amax(-1, keepdim=True)).clamp_(min=_NOTHING)
    e_bV = below_bV.exp()
    sum_b = e_bV.sum(-1)
    mean_b: Tensor = torch.linalg.vecdot(e_bV, below_bV) / sum_b
    return sum_b.log() - mean_b
