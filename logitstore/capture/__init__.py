"""The teacher pass: the only part of logitstore that imports torch.

    logitstore.capture(teacher, dataset, out="my-store", top_k=64)

The package itself can be called, so that `logitstore.capture` means one thing whichever of its
modules was imported first. See `logitstore.capture.job.capture` for the arguments.
"""

import sys
from types import ModuleType
from typing import Any


class _CapturePackage(ModuleType):
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        from logitstore.capture.job import capture

        return capture(*args, **kwargs)


sys.modules[__name__].__class__ = _CapturePackage
