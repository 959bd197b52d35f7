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

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from itertools import groupby
from typing import TYPE_CHECKING, Any, NamedTuple

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

from logitstore.capture.sampling import Sampling
from logitstore.capture.sequences.prompts import (
    OK,
    STOPPED,
    TOO_LONG,
    UNFINISHED,
    Completion,
    Prompt,
    PromptReader,
)
from logitstore.capture.sequences.windows import TeacherSequence
from logitstore.capture.teacher.draws import GENERATION, gumbel, random_words
from logitstore.capture.teacher.memory import free_memory, is_out_of_memory
from logitstore.errors import InputError
from logitstore.models.listed_ends import ends_listed
from logitstore.text.token_budget import by_token_budget

if TYPE_CHECKING:
    from logitstore.capture.passes.engine import Engine
    from logitstore.capture.task import Task


_WARM_TOKENS = 2


class Wanted(NamedTuple):
    """Asks for a completion.

    Attributes:
        row: Row of the dataset; decides the random numbers.
        token_ids: Tokens of the prompt.
        limit: Tokens to write at most.
    """

    row: int
    token_ids: list[int]
    limit: int


class CompletedRows:
    """Makes the sequences of rows with their completions, as a `RowReader` does.

    Attributes:
        retokenised: Number of rows whose text has other tokens than the teacher wrote.
    """

    def __init__(
        self, reader: PromptReader, prompts: dict[int, Prompt], written: dict[int, Completion]
    ) -> None:
        self.reader, self.prompts, self.written = reader, prompts, written
        self.retokenised = 0

    def counts(self) -> dict[str, int]:
        """Count completions by status, and `retokenised` among the rows read so far."""
        statuses = Counter(completion.status for completion in self.written.values())
        return {**dict(sorted(statuses.items())), "retokenised": self.retokenised}

    def sequences(self, row: int) -> list[TeacherSequence]:
        """Return the row as one sequence if it fits, else as the limits say; at least one."""
        prompt, written = self.prompts[row], self.written[row]
        sequences = self.reader.completed(row, prompt, written)
        if len(sequences) > 1 or not self.reader.is_as_written(prompt, written, sequences[0]):
            self.retokenised += 1
        return sequences


class Completer:
    """Writes completions for prompts.

    Args:
        model: A causal language model in eval mode, on its device.
        reader: Reads prompts.
        sampling: How to choose the next token, and when to stop.
        budget: Padded tokens of a batch, prompts and completions together.
        device: Device of the model's input.
        beat: Called often while work goes on, to keep the process's heartbeat.

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
        self.model, self.reader, self.sampling = model, reader, sampling
        self.budget, self.device, self.beat = budget, device, beat
        can_generate = getattr(model, "can_generate", None)
        if can_generate is None or not can_generate():
            raise InputError(
                f"{model.name_or_path}: {type(model).__name__} cannot generate text. Give a causal "
                "model of transformers, or completions in the dataset without --generate."
            )
        # The model's own ends, and what ends a turn for its tokenizer and its chat template.
        self.ends = frozenset([*ends_listed(model.generation_config), *reader.tokenizer.eos_ids])
        model.generation_config = _config()  # else its values fill in what a call leaves out

    @classmethod
    def of(
        cls,
        teacher: "Engine",
        task: "Task",
        budget: int,
        beat: Callable[[], None] = lambda: None,
    ) -> "Completer | None":
        """Make a completer for a task that asks for completions; None for one that does not."""
        sampling = task.settings.sampling
        if sampling is None:
            return None
        from logitstore.capture.passes.teacher_pass import TeacherPass

        assert isinstance(task.reader, PromptReader)
        assert isinstance(teacher, TeacherPass)  # the settings allow no other engine
        return cls(teacher.model, task.reader, sampling, budget, teacher.device, beat)

    def warm_up(self, rows: Sequence[int]) -> None:
        """Write a few tokens and drop them: the first ones are slow, for kernels are chosen."""
        prompts = [self.reader.prompt(row).token_ids.tolist() for row in rows]
        wanted = [Wanted(0, ids, min(_WARM_TOKENS, self._limit(len(ids)))) for ids in prompts]
        for one in wanted:
            if one.token_ids and one.limit > 0:
                self.write([one])

    def complete(self, rows: Sequence[int]) -> CompletedRows:
        """Write the completions of rows.

        Raises:
            InputError: A prompt cannot be read; names the row.
        """
        prompts = {row: self.reader.prompt(row) for row in rows}
        wanted = [
            Wanted(row, prompt.token_ids.tolist(), self._limit(len(prompt.token_ids)))
            for row, prompt in prompts.items()
        ]
        written = {w.row: Completion("", TOO_LONG, []) for w in wanted}
        for batch in batches([w for w in wanted if w.token_ids and w.limit > 0], self.budget):
            self.beat()
            completions = self.write(batch)
            written |= {w.row: c for w, c in zip(batch, completions, strict=True)}
        return CompletedRows(self.reader, prompts, written)

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
                f"row {batch[0].row:,}: its prompt and completion, up to {tokens:,} tokens, do not "
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

    def _completion(self, token_ids: list[int]) -> Completion:
        """Read a completion out of a row of output: its tokens, perhaps an end, then padding."""
        stop = next((i for i, t in enumerate(token_ids) if t in self.ends), len(token_ids))
        end_id = token_ids[stop] if stop < len(token_ids) else None
        text_ids = token_ids[:stop]
        # A token may hold a part of a character, and the last one may be cut off.
        text = b"".join(map(self._bytes_of, text_ids)).decode(errors="ignore")
        places = [place for s in self.sampling.stop if (place := text.find(s)) >= 0]
        if places:
            return Completion(text[: min(places)], STOPPED, text_ids)
        return Completion(text, UNFINISHED if end_id is None else OK, text_ids, end_id)

    def _bytes_of(self, token_id: int) -> bytes:
        """Return the bytes that a token adds to the text; none for a special token."""
        return self.reader.tokenizer.token_bytes[token_id] or b""

    def _limit(self, prompt_length: int) -> int:
        most = self.reader.limits.max_length
        room = self.sampling.max_new_tokens if most is None else most - prompt_length
        return min(self.sampling.max_new_tokens, room)


def batches(wanted: Sequence[Wanted], budget: int) -> Iterator[list[Wanted]]:
    """Cut completions into batches of one limit each, of at most `budget` padded tokens.

    A row with less room than others would otherwise run past the end of what the model reads.
    """
    order = sorted(wanted, key=lambda w: (-w.limit, w.row))
    for limit, group in groupby(order, key=lambda w: w.limit):
        same = list(group)
        for batch in by_token_budget([len(w.token_ids) + limit for w in same], budget):
            yield [same[i] for i in batch]


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
