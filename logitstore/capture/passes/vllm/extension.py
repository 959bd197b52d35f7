"""What vLLM's workers are given besides their own methods, as their `worker_extension_cls`.

`collective_rpc` calls it in every worker: `logitstore_begin` before a batch, `logitstore_take`
after it. vLLM puts this class among the bases of its worker, so it has no constructor, and its
names are ones that no worker has.
"""

import json
from typing import Any

from logitstore.capture.passes.vllm.hooks import hook
from logitstore.capture.passes.vllm.summaries import Summaries
from logitstore.capture.teacher.summary import HeadSettings

#: The name by which vLLM imports it.
NAME = f"{__name__}.WorkerExtension"


class WorkerExtension:
    """Summarises prompts inside a worker of vLLM."""

    model_runner: Any

    def logitstore_begin(self, settings: str) -> str:
        """Begin a batch; what was not taken of the one before is forgotten.

        Args:
            settings: `HeadSettings` as JSON.

        Returns:
            Nothing; or why this worker cannot summarise.
        """
        is_new = not hasattr(self, "logitstore_summaries")
        if is_new and (why := hook(self.model_runner, self._logitstore_take_step)):
            return why
        asked = json.loads(settings)
        asked["temperatures"] = tuple(asked["temperatures"])
        self.logitstore_summaries = Summaries(HeadSettings(**asked), _is_first())
        return ""

    def logitstore_take(self) -> bytes | None:
        """Return the summaries of a batch; None from a worker that makes none."""
        return self.logitstore_summaries.packed()

    def _logitstore_take_step(self, *step: Any) -> None:
        self.logitstore_summaries.add(*step)


def _is_first() -> bool:
    """Tell whether this is the first worker of those that share the output head."""
    from vllm.distributed import get_tensor_model_parallel_rank

    return int(get_tensor_model_parallel_rank()) == 0
