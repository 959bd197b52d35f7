"""The public way to ask vLLM: `LLM.generate` with `prompt_logprobs`, as its users know it.

It answers with Python lists, of which an entry takes 107 bytes (measured with vLLM 0.32): 455 MB
for the 65,536 tokens of a batch with 64 entries each. So it is asked about a part of a batch at a
time, whose answer becomes arrays before the next is asked for.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from logitstore.capture.passes.listed import ListedEngine, Refused, Said
from logitstore.capture.passes.vllm.library import other_hooks
from logitstore.capture.passes.vllm.loading import InVllm, Wanted
from logitstore.capture.passes.vllm.options import WORKER
from logitstore.capture.sequences.windows import TeacherSequence
from logitstore.console.counts import counted
from logitstore.errors import InputError
from logitstore.format.numpy_types import F64
from logitstore.writing.lists.keyed import keyed_lists
from logitstore.writing.lists.lists import Lists, int64s

#: Of all prompts of a call together: 110 MB. Of a single long prompt there may be more.
_MOST_ENTRIES = 1 << 20


class PublicPass(InVllm, ListedEngine):
    """Asks vLLM about batches of sequences by its public names.

    Args:
        wanted: What the capture wants of it.

    Raises:
        InputError: It cannot load the teacher, or gives fewer entries than are to be kept.
        MissingLibraryError: It is not installed.
    """

    def __init__(self, wanted: Wanted) -> None:
        super().__init__(wanted.spec, wanted.on_nan)
        self._run(wanted, max_logprobs=wanted.spec.top_k)
        self._params = self._engine.params(
            max_tokens=1,
            temperature=0.0,
            prompt_logprobs=wanted.spec.top_k,
            detokenize=False,
            **({"flat_logprobs": True} if self._engine.has_setting("flat_logprobs") else {}),
        )
        self._probe()

    def ask(self, batch: Sequence[TeacherSequence]) -> list[Said | Refused]:
        """Ask about the sequences of a batch, as many at once as may be answered at once.

        Raises:
            InputError: vLLM dies of it, or answers something else.
        """
        return [answer for part in self._parts(batch) for answer in self._ask_part(part)]

    def _parts(self, batch: Sequence[TeacherSequence]) -> Iterator[Sequence[TeacherSequence]]:
        """Cut a batch into parts of at most `_MOST_ENTRIES` entries, or of one sequence."""
        first, held = 0, 0
        for n, sequence in enumerate(batch):
            entries = sequence.length * (self.spec.top_k + 1)  # the token's own is one more
            if held and held + entries > _MOST_ENTRIES:
                yield batch[first:n]
                first, held = n, 0
            held += entries
        yield batch[first:]

    def _ask_part(self, part: Sequence[TeacherSequence]) -> list[Said | Refused]:
        ids = [s.text.token_ids.tolist() for s in part]
        return self._engine.asked(lambda: self._ask(ids), lambda: rows_of(part))

    def _ask(self, ids: Sequence[list[int]]) -> list[Said | Refused]:
        answers = self._engine.generate(ids, [self._params] * len(ids))
        return [
            a if isinstance(a, Refused) else self._said(a, i)
            for a, i in zip(answers, ids, strict=True)
        ]

    def _said(self, answer: Any, ids: Sequence[int]) -> Said:
        found = said(getattr(answer, "prompt_logprobs", None), ids, self.place)
        if len(found.lists) != len(ids) or not found.lists.counts[1:].all():
            given = int(np.count_nonzero(found.lists.counts))
            raise other_hooks(
                self._engine.version,
                f"it gives prompt_logprobs of {counted(given, 'token')}, of {len(ids) - 1:,}",
                WORKER,
            )
        return found

    def _probe(self) -> None:
        """Ask about a few tokens, so that one that gives too little is found out at once."""
        ids = [0, *range(min(3, self.spec.vocab_size))]
        (answer,) = self._engine.asked(lambda: self._ask([ids]), lambda: "the first few tokens")
        if isinstance(answer, Refused):
            raise InputError(
                f"{self.place}: refuses a request for {self.spec.top_k} entries: {answer}. Use a "
                "smaller --top-k, or other --engine-args.",
                kind="engine",
            )
        self.check_probe(answer)


def said(found: Any, ids: Sequence[int], where: str) -> Said:
    """Read `prompt_logprobs` of a prompt, flat or as a list of dicts.

    Flat, the entries of a place are the token itself, then the most probable ones.
    """
    if not hasattr(found, "start_indices"):
        plain = [None if e is None else _plain(e) for e in found or ()]
        lists, ranks = keyed_lists(plain, where, int64s(ids[: len(plain)]))
        return Said(lists, np.full(len(lists), np.nan), ranks)
    starts, ends = int64s(found.start_indices), int64s(found.end_indices)
    has = ends > starts
    own, ranks = np.full(len(starts), np.nan), np.full(len(starts), np.nan)
    logprobs = np.asarray(found.logprobs, np.float64)
    own[has] = logprobs[starts[has]]
    ranks[has] = np.asarray(found.ranks, np.float64)[starts[has]]
    is_own = np.zeros(len(logprobs), np.bool_)
    is_own[starts[has]] = True
    listed = Lists(ends - starts - has, int64s(found.token_ids)[~is_own], logprobs[~is_own])
    return Said(listed, own, ranks)


def own_of(found: Any, ids: Sequence[int], where: str) -> F64:
    """Read the log-probabilities of a prompt's tokens themselves; NaN for the first."""
    answer = said(found, ids, where)
    listed = answer.lists.logprob_of(int64s(ids[: len(answer.lists)]))
    return np.where(np.isnan(answer.own), listed, answer.own)


def rows_of(batch: Sequence[TeacherSequence]) -> str:
    """Name the rows of a batch, or some of them."""
    rows = sorted({s.line.row for s in batch})
    shown = ", ".join(f"{row:,}" for row in rows[:8])
    return f"row {shown}" if len(rows) == 1 else f"rows {shown}{', …' if rows[8:] else ''}"


def _plain(entries: Any) -> dict[int, dict[str, Any]]:
    return {i: {"logprob": e.logprob, "rank": e.rank} for i, e in entries.items()}
