"""The worker way to ask vLLM: our own summary, made on the device from its hidden states.

The prompt of a request is a sequence without its last token, whose prediction nobody asks about.
Before anything is kept, vLLM's own log-probabilities of a few tokens are compared with ours, of
the same step: a vLLM that is made in another way than is known here is found out at once.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict

import numpy as np
import torch

from logitstore.capture.boundaries.branches import selected
from logitstore.capture.passes.encoding import head_settings
from logitstore.capture.passes.engine import Alone, Forwarded
from logitstore.capture.passes.listed import Refused, warn_of_refused
from logitstore.capture.passes.vllm.extension import NAME
from logitstore.capture.passes.vllm.library import other_hooks
from logitstore.capture.passes.vllm.loading import InVllm, Wanted
from logitstore.capture.passes.vllm.options import PUBLIC
from logitstore.capture.passes.vllm.public_pass import own_of, rows_of
from logitstore.capture.passes.vllm.summaries import Asked, unpacked
from logitstore.capture.sequences.windows import TeacherSequence
from logitstore.capture.teacher.summary import HeadResult, HeadSettings
from logitstore.console.counts import counted
from logitstore.errors import InputError
from logitstore.format.numpy_types import I64

#: What rounding moves at most: both are computed from the same hidden states.
_SAME = 0.05
_PROBE_TOKENS = 12


class WorkerPass(InVllm):
    """Asks vLLM's workers about batches of sequences.

    Args:
        wanted: What the capture wants of it.

    Raises:
        InputError: It cannot load the teacher, or has other hooks.
        MissingLibraryError: It is not installed.
    """

    def __init__(self, wanted: Wanted) -> None:
        super().__init__(wanted.spec, wanted.on_nan)
        self._settings = head_settings(wanted.spec)
        self._run(wanted, worker_extension_cls=NAME)
        self._probe_tokens = min(_PROBE_TOKENS, wanted.max_length or _PROBE_TOKENS)
        self._engine.asked(self._probe, lambda: "the first few tokens")

    def forward(self, batch: Sequence[TeacherSequence]) -> Forwarded:
        """Summarise the prediction of every supervised token.

        Raises:
            InputError: vLLM dies of it, or does not answer it.
        """
        return self._read(batch, self._settings)

    def most_probable(self, batch: Sequence[TeacherSequence], count: int) -> HeadResult:
        """Find the `count` most probable tokens (or all there are), whatever the spec keeps."""
        return self._read(batch, HeadSettings(min(count, self.spec.vocab_size))).result

    def alone(self, sequence: TeacherSequence) -> Alone:
        """Ask about one sequence while the engine has nothing else of ours to read."""
        return Alone(self.forward([sequence]).result.token_logprob)

    def _read(self, batch: Sequence[TeacherSequence], settings: HeadSettings) -> Forwarded:
        prompts = [s.text.token_ids.tolist()[:-1] for s in batch]
        asked = [_asked(n, s) for n, s in enumerate(batch)]
        answers, data = self._engine.asked(
            lambda: self._ask(prompts, asked, settings), lambda: rows_of(batch)
        )
        refused = {n: str(a) for n, a in enumerate(answers) if isinstance(a, Refused)}
        warn_of_refused(self.place, batch, refused)
        wanted = [a for a in asked if a.n not in refused]
        result = self._in_order(wanted, data, settings)
        counts = torch.tensor([len(a.places) for a in wanted], dtype=torch.long)
        places = torch.tensor([a.n for a in wanted], dtype=torch.long)
        return Forwarded(result, torch.repeat_interleave(places, counts), refused=refused)

    def _ask(
        self,
        prompts: Sequence[list[int]],
        asked: Sequence[Asked],
        settings: HeadSettings,
        prompt_logprobs: int | None = None,
    ) -> tuple[list[object], list[bytes]]:
        """Ask about prompts; returns vLLM's own answers, and what its workers made of them."""
        for why in self._engine.rpc("logitstore_begin", json.dumps(asdict(settings))):
            if why:
                raise other_hooks(self._engine.version, why, PUBLIC)
        params = [
            self._engine.params(
                max_tokens=1,
                temperature=0.0,
                detokenize=False,
                prompt_logprobs=prompt_logprobs,
                skip_reading_prefix_cache=True,
                extra_args=each.packed(),
            )
            for each in asked
        ]
        answers = self._engine.generate(prompts, params)
        return answers, [d for d in self._engine.rpc("logitstore_take") if d is not None]

    def _in_order(
        self, asked: Sequence[Asked], data: Sequence[bytes], settings: HeadSettings
    ) -> HeadResult:
        """Join what workers made, in the order of the tokens; a token read twice counts once."""
        wanted_n = _keys([(np.full_like(a.places, a.n), a.places) for a in asked])
        if not len(wanted_n):
            return _empty(settings)
        found = [unpacked(each) for each in data]
        found_n = _keys([(at["n"], at["place"]) for at, _ in found])
        order = np.argsort(found_n, kind="stable")
        index = np.searchsorted(found_n, wanted_n, side="right", sorter=order) - 1  # the last one
        shown = int(np.isin(wanted_n, found_n).sum())
        if shown < len(wanted_n):
            raise other_hooks(
                self._engine.version,
                f"of {counted(len(wanted_n), 'token')} its workers have shown {shown:,}",
                PUBLIC,
            )
        whole = HeadResult.on_host([result for _, result in found])
        return selected(whole, torch.from_numpy(order[index]))

    def _probe(self) -> None:
        """Compare a few tokens with vLLM's own numbers, of the same step."""
        ids = np.arange(1, 7 * self._probe_tokens, 7) % self.spec.vocab_size
        asked = Asked(0, 0, 0, np.arange(1, len(ids)), ids[1:])
        answers, data = self._ask([ids.tolist()], [asked], HeadSettings(1), prompt_logprobs=1)
        if isinstance(answers[0], Refused):
            raise InputError(
                f"{self.place}: refuses {counted(len(ids), 'token')}: {answers[0]}. Use other "
                "--engine-args, "
                "or a longer --max-length.",
                kind="engine",
            )
        theirs = own_of(getattr(answers[0], "prompt_logprobs", None), ids.tolist(), self.place)
        if len(theirs) != len(ids):
            raise other_hooks(self._engine.version, "it gives no prompt_logprobs", PUBLIC)
        ours = self._in_order([asked], data, HeadSettings(1)).token_logprob.double().numpy()
        both = np.isnan(ours) & np.isnan(theirs[1:])  # a teacher that is not finite is said later
        difference = np.abs(ours - theirs[1:])[~both].max(initial=0.0)
        if not difference <= _SAME:
            raise other_hooks(
                self._engine.version,
                f"its own log-probabilities and those of its workers differ by {difference:.2g}",
                PUBLIC,
            )


def _keys(at: Sequence[tuple[I64, I64]]) -> I64:
    """Make one number of each token's place in the batch and in its sequence."""
    parts = [np.zeros(0, np.int64), *((n << 32) | place for n, place in at)]
    return np.concatenate(parts)


def _empty(settings: HeadSettings) -> HeadResult:
    """Return a result about no token."""
    none, lists = torch.zeros(0), torch.zeros(0, settings.top_k)
    return HeadResult(none, lists, lists.int(), none.long(), none, none)


def _asked(n: int, sequence: TeacherSequence) -> Asked:
    text, line = sequence.text, sequence.line
    places = np.flatnonzero(text.has_record)
    return Asked(n, line.row, line.part, places, text.token_ids[places])
