"""Start vLLM for a capture: what both ways of asking it have in common."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from logitstore.capture.passes.completer import Completer
from logitstore.capture.passes.encoding import Encoding
from logitstore.capture.passes.vllm.completer import VllmCompleter
from logitstore.capture.passes.vllm.engine import Engine
from logitstore.capture.passes.vllm.options import Options
from logitstore.capture.sampling import Sampling
from logitstore.capture.sequences.prompts import PromptReader
from logitstore.capture.teacher.teacher import Teacher
from logitstore.capture.teacher.weights import check_unchanged, is_quantized
from logitstore.console.launcher import Ranks
from logitstore.errors import InputError
from logitstore.format.spec import StoreSpec


@dataclass(frozen=True)
class Wanted:
    """What a capture wants of vLLM.

    Attributes:
        teacher: The teacher without its weights.
        spec: What the store keeps.
        options: What `--engine-args` say.
        max_length: Tokens of a sequence at most, if there is a limit.
        sampling: How completions are written, if they are.
        on_nan: `stop` at logits that are not finite, or `skip` the sequence.
        ranks: Which process of how many this is.
    """

    teacher: Teacher
    spec: StoreSpec
    options: Options
    max_length: int | None = None
    sampling: Sampling | None = None
    on_nan: str = "stop"
    ranks: Ranks = field(default_factory=Ranks)

    @property
    def is_quantized(self) -> bool:
        """Tell whether the weights are quantised, or what vLLM caches."""
        return is_quantized(self.teacher) or self.options.changes() is not None

    def start(self, **more: Any) -> Engine:
        """Start vLLM with the teacher; `more` are arguments of one of the ways.

        Raises:
            InputError: It cannot load the teacher, or this changed meanwhile.
            MissingLibraryError: vLLM is not installed.
        """
        teacher = self.teacher
        if teacher.tokenizer.size > self.spec.vocab_size:
            raise InputError(
                f"{teacher.name}: the teacher predicts {self.spec.vocab_size} ids, but its "
                f"tokenizer makes {teacher.tokenizer.size}. Use the tokenizer that belongs to this "
                "model, or resize its embeddings."
            )
        engine = Engine(teacher.name, {**self._arguments(), **more}, self.options, self.ranks)
        check_unchanged(teacher)
        return engine

    def _arguments(self) -> dict[str, Any]:
        teacher, stops = self.teacher, self.sampling is not None and self.sampling.stop
        found: dict[str, Any] = {
            "model": teacher.name,
            "dtype": teacher.dtype,
            "revision": getattr(teacher.config, "_commit_hash", None) or teacher.revision,
            "trust_remote_code": teacher.trust_remote_code,
            # Token ids go in and come out; stop strings alone are looked for in text.
            "skip_tokenizer_init": not stops,
            "generation_config": "vllm",  # of the model's own nothing is used
            # What is read to be kept is never taken from it: completions alone profit.
            "enable_prefix_caching": self.sampling is not None,
        }
        if self.max_length is not None:
            found["max_model_len"] = self.max_length + 1  # vLLM writes a token behind each prompt
        return found


class InVllm(Encoding):
    """The part of an engine that runs in vLLM which is the same for both ways."""

    def _run(self, wanted: Wanted, **more: Any) -> None:
        """Start vLLM; as `Wanted.start`."""
        self._engine = wanted.start(**more)
        self.place = self._engine.place
        self.versions = {"vllm": self._engine.version}
        self.devices, self.is_quantized = wanted.options.devices(), wanted.is_quantized

    def completer(
        self,
        reader: PromptReader,
        sampling: Sampling,
        budget: int,
        beat: Callable[[], None],
    ) -> Completer:
        """Make what writes completions."""
        return VllmCompleter(self._engine, reader, sampling, budget, beat, self.spec.vocab_size)

    def close(self) -> None:
        """End vLLM's processes."""
        self._engine.stop()
