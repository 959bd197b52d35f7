"""Have completions written for rows that have a prompt only: what is the same for every engine."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from itertools import groupby
from typing import NamedTuple

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
from logitstore.text.token_budget import by_token_budget

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
        reader: Reads prompts.
        sampling: How to choose the next token, and when to stop.
        budget: Padded tokens of a batch, prompts and completions together.
        ends: Tokens that end a completion.
        beat: Called often while work goes on, to keep the process's heartbeat.
    """

    def __init__(
        self,
        reader: PromptReader,
        sampling: Sampling,
        budget: int,
        ends: frozenset[int],
        beat: Callable[[], None],
    ) -> None:
        self.reader, self.sampling, self.budget = reader, sampling, budget
        self.ends, self.beat = ends, beat

    def write(self, batch: Sequence[Wanted]) -> list[Completion]:
        """Write a completion for each prompt of a batch; what makes it a completer."""
        raise NotImplementedError

    def batches(self, wanted: Sequence[Wanted]) -> Iterator[list[Wanted]]:
        """Cut completions into batches."""
        return batches(wanted, self.budget)

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
        for batch in self.batches([w for w in wanted if w.token_ids and w.limit > 0]):
            self.beat()
            completions = self.write(batch)
            written |= {w.row: c for w, c in zip(batch, completions, strict=True)}
        return CompletedRows(self.reader, prompts, written)

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
