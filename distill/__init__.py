"""Train students from a :mod:`logitstore`: the teacher's distributions without the teacher.

    trainer = distill.CachedTeacherTrainer(model=…, args=distill.CachedTeacherConfig(…), …)
    data = distill.batches("store", tokenizer, loss="uld:1.5")    # for a loop of your own
    @distill.loss(needs={"entries", "ids", "tail"})               # a loss of your own

The names are loaded when first used: `import distill` alone imports neither torch nor transformers.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from distill.evaluation.bits_per_byte import bits_per_byte
    from distill.losses.declared import loss
    from distill.training.batches import batches
    from distill.training.config import CachedTeacherConfig
    from distill.training.loop import Batches
    from distill.training.trainer import CachedTeacherTrainer

_HOME = {
    "Batches": "distill.training.loop",
    "CachedTeacherConfig": "distill.training.config",
    "CachedTeacherTrainer": "distill.training.trainer",
    "batches": "distill.training.batches",
    "bits_per_byte": "distill.evaluation.bits_per_byte",
    "loss": "distill.losses.declared",
}

__all__ = [
    "Batches",
    "CachedTeacherConfig",
    "CachedTeacherTrainer",
    "batches",
    "bits_per_byte",
    "loss",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'distill' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME[name]), name)
