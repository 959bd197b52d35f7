"""Read `--engine-args` of vLLM: the way to ask it, and arguments of `vllm.LLM`."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

from logitstore.errors import InputError

PUBLIC, WORKER = "public", "worker"
WAYS = (PUBLIC, WORKER)
#: Arguments of `vllm.LLM` that other flags or this program decide.
_ELSEWHERE: Mapping[str, str] = {
    "model": "TEACHER names it",
    "tokenizer": "TEACHER has it",
    "dtype": "use --dtype",
    "revision": "use --revision",
    "tokenizer_revision": "use --revision",
    "trust_remote_code": "use --trust-remote-code",
    "hf_token": "set HF_TOKEN in the environment, so that no store has it",
    "seed": "use --seed",
    "max_logprobs": "it follows from --top-k",
    "logprobs_mode": "a store holds raw log-probabilities",
    "data_parallel_size": "start several processes, with a launcher or --claim",
    "enable_prefix_caching": "a cached prefix would have no records",
    "hf_overrides": "change the teacher's config.json",
    "speculative_config": "nothing is written but with --generate",
    "runner": "a teacher generates",
    "convert": "a teacher generates",
    "task": "a teacher generates",
    "skip_tokenizer_init": "this program decides it",
    "worker_cls": "this program decides it",
    "worker_extension_cls": "this program decides it",
    "generation_config": "flags of --generate say how completions are written",
    "logits_processors": "a store holds the teacher's own distribution",
}
#: Arguments that change what the teacher says, which a store's spec therefore has.
_CHANGES = ("quantization", "kv_cache_dtype")


@dataclass(frozen=True)
class Options:
    """What is asked for.

    Attributes:
        way: `PUBLIC` or `WORKER`; None: as what is asked for needs it.
        arguments: Arguments of `vllm.LLM`, by name.
    """

    way: str | None = None
    arguments: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, args: Sequence[str]) -> Self:
        """Read options of the form key=value; a value is JSON, or else a text.

        Raises:
            InputError: One is of another form, is given twice, or belongs elsewhere.
        """
        found: dict[str, Any] = {}
        for arg in args:
            key, equals, value = arg.partition("=")
            key = key.replace("-", "_")
            if not equals or not key.isidentifier():
                raise InputError(
                    f"--engine-args {arg}: expected KEY=VALUE: way=public or way=worker, or an "
                    "argument of vllm.LLM, such as tensor_parallel_size=8."
                )
            if key in found:
                raise InputError(f"--engine-args {arg}: {key} is given twice. Give it once.")
            if key in _ELSEWHERE:
                raise InputError(
                    f"--engine-args {arg}: not to be given here: {_ELSEWHERE[key]}. Leave it out."
                )
            found[key] = _value(value)
        way = found.pop("way", None)
        if way not in (None, *WAYS):
            raise InputError(f"--engine-args way={way}: expected {' or '.join(WAYS)}.")
        made = cls(way, found)
        made.devices()
        return made

    def devices(self) -> int:
        """Return how many devices hold the teacher.

        Raises:
            InputError: One of the numbers is none.
        """
        count = 1
        for name in ("tensor_parallel_size", "pipeline_parallel_size"):
            given = self.arguments.get(name, 1)
            if not isinstance(given, int) or isinstance(given, bool) or given < 1:
                raise InputError(f"--engine-args {name}={given}: expected a number, 1 or more.")
            count *= given
        return count

    def changes(self) -> dict[str, Any] | None:
        """Return what changes the teacher's distribution, for a store's spec; None: nothing."""
        found = {name: self.arguments[name] for name in _CHANGES if name in self.arguments}
        return found or None


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text
