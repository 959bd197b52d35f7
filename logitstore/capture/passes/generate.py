"""Let the teacher write completions for prompts, in batches, the same whatever the batch.

`transformers` generates: prompts padded on the left, with a cache. What is drawn at random is drawn
as the largest of logit plus Gumbel noise, and the noise of a token belongs to its row, its place in
the completion and its column (see draws.py). So a row's completion does not depend on its batch, on
the rank or on a resume, but for logits so close that their last bits decide. Sampling by a
generator that a batch shares could not be repeated row by row.

Of the model's own `generation_config` only its end tokens are used: all else comes from the user's
flags, and is recorded in the store. The token that ended a completion ends it in the store, too:
another end, such as EOS, may be one that the teacher never writes there.

Shape legend: B = rows of a batch, L = padded length, V = vocabulary.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    StoppingCriteria,
    StoppingCriteriaList,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from logitstore.capture.passes.completer import Completer, Wanted
from logitstore.capture.sampling import Sampling
from logitstore.capture.sequences.prompts import Completion, PromptReader
from logitstore.capture.teacher.draws import GENERATION, gumbel, random_words
from logitstore.capture.teacher.memory import free_memory, is_out_of_memory
from logitstore.console.counts import counted
from logitstore.errors import InputError
from logitstore.models.listed_ends import ends_listed


class ModelCompleter(Completer):
    """Writes completions with a model of `transformers`, a padded batch at a time.

    Args:
        model: A causal language model in eval mode, on its device.
        reader, sampling, budget, beat: As for `Completer`.
        device: Device of the model's input.

    Raises:
        InputError: The model cannot generate.
    """

    def __init__(
        self,
        model: Any,
        reader: PromptReader,
        sampling: Sampling,
        budget: int,
        device: torch.device,
        beat: Callable[[], None] = lambda: None,
    ) -> None:
        can_generate = getattr(model, "can_generate", None)
        if can_generate is None or not can_generate():
            raise InputError(
                f"{model.name_or_path}: {type(model).__name__} cannot generate text. Give a causal "
                "model of transformers, or completions in the dataset without --generate."
            )
        # The model's own ends, and what ends a turn for its tokenizer and its chat template.
        ends = frozenset([*ends_listed(model.generation_config), *reader.tokenizer.eos_ids])
        super().__init__(reader, sampling, budget, ends, beat)
        self.model, self.device = model, device
        model.generation_config = _config()  # else its values fill in what a call leaves out

    def write(self, batch: Sequence[Wanted]) -> list[Completion]:
        """Write a completion for each prompt of a batch, all with one limit; in halves if need be.

        Raises:
            InputError: One alone does not fit the device's memory.
        """
        try:
            return self._write(batch)
        except (RuntimeError, MemoryError) as e:
            if not is_out_of_memory(e):
                raise
        free_memory()  # here, where the error no longer holds the tensors
        if len(batch) == 1:
            tokens = len(batch[0].token_ids) + batch[0].limit
            raise InputError(
                f"row {batch[0].row:,}: its prompt and completion, up to "
                f"{counted(tokens, 'token')}, do not "
                f"fit the memory of {self.device}. Use a smaller --max-new-tokens or --max-length.",
                kind="out-of-memory",
            )
        middle = len(batch) // 2
        return self.write(batch[:middle]) + self.write(batch[middle:])

    def _write(self, batch: Sequence[Wanted]) -> list[Completion]:
        length = max(len(w.token_ids) for w in batch)
        pad = self.reader.tokenizer.pad_id
        ids_BL = torch.full((len(batch), length), pad)
        mask_BL = torch.zeros_like(ids_BL)
        for ids_L, mask_L, w in zip(ids_BL, mask_BL, batch, strict=True):
            ids_L[length - len(w.token_ids) :] = torch.tensor(w.token_ids)
            mask_L[length - len(w.token_ids) :] = 1
        out_BL = self.model.generate(
            input_ids=ids_BL.to(self.device),
            attention_mask=mask_BL.to(self.device),
            generation_config=_config(
                max_new_tokens=batch[0].limit,
                do_sample=False,  # the noise that makes it a draw is added by a processor
                eos_token_id=sorted(self.ends) or None,
                pad_token_id=pad,
            ),
            logits_processor=self._processors(batch, length),
            stopping_criteria=self._criteria(len(batch), length),
        )
        return [self._completion(ids) for ids in out_BL[:, length:].tolist()]

    def _processors(self, batch: Sequence[Wanted], length: int) -> LogitsProcessorList:
        """List the processors of logits in the order in which `transformers` samples."""
        sampling = self.sampling
        processors: list[LogitsProcessor] = [_OnlyTokens(self.reader.tokenizer.size, self.beat)]
        if not sampling.is_greedy:
            processors.append(TemperatureLogitsWarper(sampling.temperature))
            if sampling.top_k:
                processors.append(TopKLogitsWarper(sampling.top_k))
            if sampling.top_p < 1:
                processors.append(TopPLogitsWarper(sampling.top_p))
            rows = torch.tensor([w.row for w in batch], device=self.device)
            processors.append(_Noise(rows, length, sampling.seed))
        return LogitsProcessorList(processors)

    def _criteria(self, count: int, length: int) -> StoppingCriteriaList:
        criteria = []
        if self.sampling.stop:
            criteria.append(_StopStrings(self._bytes_of, self.sampling.stop, count, length))
        return StoppingCriteriaList(criteria)


class _OnlyTokens(LogitsProcessor):
    """Excludes ids that the tokenizer does not have: heads are often padded.

    Writing a token may take a second, so each beats the heartbeat.
    """

    def __init__(self, size: int, beat: Callable[[], None]) -> None:
        self._size, self._beat = size, beat

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        self._beat()
        if scores.shape[1] <= self._size:
            return scores
        scores = scores.clone()
        scores[:, self._size :] = -torch.inf
        return scores


class _Noise(LogitsProcessor):
    """Adds noise that makes the largest logit a draw, from numbers of each row's own."""

    def __init__(self, rows: Tensor, length: int, seed: int) -> None:
        self._rows, self._length, self._seed = rows, length, seed

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        step = torch.full_like(self._rows, input_ids.shape[1] - self._length)
        places = torch.stack([self._rows, torch.zeros_like(step), step], 1).to(scores.device)
        return scores + gumbel(random_words(places, scores.shape[1], self._seed, GENERATION))


class _StopStrings(StoppingCriteria):
    """Ends a row when its text has one of the strings; looks at the newest bytes only."""

    def __init__(
        self, bytes_of: Callable[[int], bytes], stop: Sequence[str], count: int, length: int
    ) -> None:
        self._bytes_of, self._stop = bytes_of, [s.encode() for s in stop]
        self._longest, self._length = max(map(len, self._stop)), length
        self._texts = [b""] * count

    def __call__(self, input_ids: Tensor, scores: Any, **_: Any) -> Tensor:
        done = []
        for i, token_id in enumerate(input_ids[:, -1].tolist()):
            new = self._bytes_of(token_id)
            self._texts[i] = self._texts[i][-self._longest :] + new
            done.append(any(s in self._texts[i] for s in self._stop))
        return torch.tensor(done, device=input_ids.device)


def _config(**settings: Any) -> GenerationConfig:
    return GenerationConfig(**settings)  # type: ignore[no-untyped-call]
