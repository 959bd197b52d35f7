"""Train students from a :mod:`logitstore`: the teacher's distributions without the teacher.

    trainer = distill.CachedTeacherTrainer(model=…, args=distill.CachedTeacherConfig(…), …)

The names are loaded when first used: `import distill` alone imports neither torch nor transformers.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from distill.evaluation.bits_per_byte import bits_per_byte
    from distill.training.config import CachedTeacherConfig
    from distill.training.trainer import CachedTeacherTrainer

_HOME = {
    "CachedTeacherConfig": "distill.training.config",
    "CachedTeacherTrainer": "distill.training.trainer",
    "bits_per_byte": "distill.evaluation.bits_per_byte",
}

__all__ = ["CachedTeacherConfig", "CachedTeacherTrainer", "bits_per_byte"]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'distill' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME[name]), name)
