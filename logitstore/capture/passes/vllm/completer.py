"""Have completions written by vLLM: all rows of a shard at once, for it forms its own batches.

What is drawn at random is drawn by vLLM from a seed of each row's own, a function of `--seed` and
the row. So a completion does not depend on the rows beside it, on the rank or on a resume, as far
as vLLM promises: its logits may differ in their last bits with what else is read, and where two
tokens are that close, so may the completion (its VLLM_BATCH_INVARIANT=1 excludes even this, on the
devices that it names). It is another one than `transformers` writes from the same seed.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch

from logitstore.capture.passes.completer import Completer, Wanted
from logitstore.capture.passes.listed import Refused
from logitstore.capture.passes.vllm.engine import Engine
from logitstore.capture.sampling import Sampling
from logitstore.capture.sequences.prompts import Completion, PromptReader
from logitstore.capture.teacher.draws import GENERATION, random_words
from logitstore.errors import InputError

#: Ids without a token that can be ruled out by a bias: vLLM's second model runner takes no more.
_MOST_BIASES = 1024
_NEVER = -1e4


class VllmCompleter(Completer):
    """Writes completions with vLLM.

    Args:
        engine: A running vLLM.
        reader, sampling, budget, beat: As for `Completer`.
        vocab_size: Width of the teacher's logits.
    """

    def __init__(
        self,
        engine: Engine,
        reader: PromptReader,
        sampling: Sampling,
        budget: int,
        beat: Callable[[], None],
        vocab_size: int,
    ) -> None:
        super().__init__(reader, sampling, budget, frozenset(reader.tokenizer.eos_ids), beat)
        self._engine = engine
        engine.beat = beat
        unknown = range(reader.tokenizer.size, vocab_size)
        self._bias = dict.fromkeys(unknown, _NEVER) if 0 < len(unknown) <= _MOST_BIASES else None

    def batches(self, wanted: Sequence[Wanted]) -> Iterator[list[Wanted]]:
        """Yield all at once."""
        if wanted:
            yield list(wanted)

    def write(self, batch: Sequence[Wanted]) -> list[Completion]:
        """Write a completion for each prompt.

        Raises:
            InputError: vLLM dies of it, refuses a prompt, or writes what is no token.
        """
        prompts, params = [w.token_ids for w in batch], [self._params(w) for w in batch]
        answers = self._engine.asked(
            lambda: self._engine.generate(prompts, params), lambda: f"from row {batch[0].row:,} on"
        )
        return [self._read(w, answer) for w, answer in zip(batch, answers, strict=True)]

    def _params(self, wanted: Wanted) -> Any:
        sampling = self.sampling
        drawn: dict[str, Any] = {}
        if not sampling.is_greedy:
            drawn = {"top_k": sampling.top_k, "top_p": sampling.top_p, "seed": self._seed(wanted)}
        return self._engine.params(
            max_tokens=wanted.limit,
            temperature=sampling.temperature,
            stop=list(sampling.stop),
            detokenize=bool(sampling.stop),
            stop_token_ids=sorted(self.ends),
            ignore_eos=True,  # the ends are named
            logit_bias=self._bias,
            **drawn,
        )

    def _seed(self, wanted: Wanted) -> int:
        """Return 63 random bits of the row's own."""
        place = torch.tensor([[wanted.row, 0, 0]])
        high, low = random_words(place, 2, self.sampling.seed, GENERATION)[0].tolist()
        return (int(high) >> 1) << 32 | int(low)

    def _read(self, wanted: Wanted, answer: Any) -> Completion:
        where = f"row {wanted.row:,}: {self._engine.place}"
        if isinstance(answer, Refused):
            raise InputError(
                f"{where} refuses its prompt: {answer}. Leave the row out.", kind="engine"
            )
        ids = [int(i) for i in answer.outputs[0].token_ids]
        unknown = next((i for i in ids if not 0 <= i < self.reader.tokenizer.size), None)
        if unknown is not None:
            raise InputError(
                f"{where} writes id {unknown}, and the teacher's tokenizer has "
                f"{self.reader.tokenizer.size}. Use the tokenizer that belongs to this model.",
                kind="engine",
            )
        return self._completion(ids)
