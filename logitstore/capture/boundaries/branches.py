"""Let the teacher read branches: tokens that stand behind a part of a row instead of its rest.

A row is read as always; its keys and values are kept. Then all of its branches are read in one
more pass over those: each token at its true position, seeing the row's tokens before its branch
and the branch's own before itself. So an answer costs its one to three tokens, and it is what a
plain forward pass over context and branch would say, up to rounding.

    row       t0 t1 t2 t3 t4 t5
    branch          t0 t1 t2 a b        reads a at position 3, b at 4, over the keys of t0 t1 t2

Not every model can do that (a recurrent state, positions of its own, an attention that takes no
such mask). So it is tried: answers and rows are compared with plain forward passes when the first
row is read, and again when rows outgrow the model's sliding window. Where they differ, every
branch becomes a plain row of its own, behind its context: the same answers, for much more work.

Shape legend: B = rows, L = padded length of a row, N = tokens of branches side by side in a row.
"""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import fields
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import DynamicCache

from logitstore.capture.sequences.questions import Branch
from logitstore.capture.sequences.windows import TeacherSequence
from logitstore.capture.teacher.head import TeacherHead
from logitstore.capture.teacher.memory import is_out_of_memory
from logitstore.capture.teacher.summary import HeadResult
from logitstore.text.token_budget import by_token_budget

log = logging.getLogger(__name__)

_PROBES = 4  # branches that are compared
_FULL, _SLIDING = "full_attention", "sliding_attention"
#: The ways to hand a model a mask: by the kind of its layers, or one for all of them.
_BY_LAYER, _ONE_FULL, _ONE_SLIDING = "by layer", "full", "sliding"
_MANY_BRANCHES = 1 << 31  # draws of an answer are other numbers than those of any record


class Placed(NamedTuple):
    """A branch, and whose it is.

    Attributes:
        row: The sequence, by its place in the batch.
        place: (row of the dataset, part, position), which decide random draws.
        target: The token whose log-probability is asked for.
        branch: The tokens.
    """

    row: int
    place: tuple[int, int, int]
    target: int
    branch: Branch


def placed(batch: Sequence[TeacherSequence]) -> list[Placed]:
    """List all branches of a batch, in the order of its sequences and questions."""
    found = []
    for row, sequence in enumerate(batch):
        if sequence.questions is None:
            continue
        targets = sequence.questions.token_ids[sequence.questions.records < 0]
        for n, (branch, target) in enumerate(
            zip(sequence.questions.branches, targets, strict=True)
        ):
            place = (sequence.line.row, sequence.line.part, _MANY_BRANCHES + n)
            found.append(Placed(row, place, int(target), branch))
    return found


class BranchReader:
    """Reads branches with a teacher.

    Args:
        model: A causal language model in eval mode.
        head: Summarises its distributions.
        device: Device of the model's input.
        pad_id: Any token.
    """

    def __init__(self, model: Any, head: TeacherHead, device: torch.device, pad_id: int) -> None:
        self._model, self._head, self._device, self._pad_id = model, head, device, pad_id
        config = model.config.get_text_config(decoder=True)
        self._window: int | None = getattr(config, "sliding_window", None)
        self._ways = [_BY_LAYER, _ONE_SLIDING] if self._window else [_ONE_FULL]
        self._tried_length = 0

    def cache_for(self, batch: Sequence[TeacherSequence]) -> DynamicCache | None:
        """Make a cache to read a batch's rows with; None if branches have to be plain rows."""
        longest = max((s for s in batch if placed([s])), key=lambda s: s.length)
        while self._ways and self._is_new(longest.length):
            works = self._works(longest)
            if works is None:
                break
            self._tried_length = longest.length if works else 0
            if not works:
                self._ways = self._ways[1:]
            if not self._ways:
                self._warn()
        return DynamicCache() if self._ways else None

    def _is_new(self, length: int) -> bool:
        """Tell whether rows of this length may show what those that were tried did not."""
        if not self._tried_length:
            return True
        return self._window is not None and self._tried_length <= self._window < length

    def read(
        self, branches: Sequence[Placed], cache: DynamicCache | None, rows: Tensor
    ) -> HeadResult:
        """Summarise the teacher's distribution behind each branch, in the order given.

        Args:
            branches: One or more.
            cache: Keys and values of the rows; None: branches become plain rows.
            rows: (B, L) the rows' tokens.
        """
        results: list[HeadResult] = []
        order: list[int] = []
        parts = (
            self._plain(branches, rows)
            if cache is None
            else self._behind(branches, cache, rows.shape)
        )
        for chosen, result in parts:
            order += chosen
            results.append(result)
        back = torch.empty(len(order), dtype=torch.long)
        back[torch.tensor(order)] = torch.arange(len(order))
        return selected(HeadResult.on_host(results), back)

    def _behind(
        self, branches: Sequence[Placed], cache: DynamicCache, shape: torch.Size
    ) -> Iterator[tuple[list[int], HeadResult]]:
        """Read branches over the rows' keys and values, as many at once as a row has tokens."""
        count, length = shape
        for chosen in side_by_side(branches, count, length):
            laid = _Laid.out([branches[i] for i in chosen], count, self._pad_id)
            inputs = {
                "input_ids": laid.ids_BN.to(self._device),
                "position_ids": laid.position_BN.to(self._device),
                "attention_mask": self._mask(laid, length),
                "past_key_values": cache,
                "use_cache": True,
            }
            yield chosen, self._ask(inputs, laid.last_n, [branches[i] for i in chosen])
            cache.crop(-laid.ids_BN.shape[1])

    def _plain(
        self, branches: Sequence[Placed], rows: Tensor
    ) -> Iterator[tuple[list[int], HeadResult]]:
        """Read each branch as a row of its own, behind its context."""
        texts = [
            torch.cat([rows[b.row, : b.branch.context], torch.tensor(b.branch.ids)])
            for b in branches
        ]
        for chosen in by_token_budget([len(text) for text in texts], rows.numel()):
            width = max(len(texts[i]) for i in chosen)
            ids = torch.full((len(chosen), width), self._pad_id)
            mask = torch.zeros_like(ids)
            for k, i in enumerate(chosen):
                ids[k, : len(texts[i])] = texts[i]
                mask[k, : len(texts[i])] = 1
            inputs = {"input_ids": ids.to(self._device), "attention_mask": mask.to(self._device)}
            last = torch.tensor([k * width + len(texts[i]) - 1 for k, i in enumerate(chosen)])
            yield chosen, self._ask(inputs, last, [branches[i] for i in chosen])

    def _ask(
        self, inputs: dict[str, Any], last_n: Tensor, branches: Sequence[Placed]
    ) -> HeadResult:
        targets = torch.tensor([b.target for b in branches])
        places = torch.tensor([b.place for b in branches]) if self._head.settings.draws else None
        return self._head(
            inputs,
            last_n.to(self._device),
            targets.to(self._device),
            None if places is None else places.to(self._device),
        )

    def _mask(self, laid: "_Laid", length: int) -> Any:
        """Make the mask in the way that this model takes it."""
        dtype = self._model.dtype

        def of(window: int | None) -> Tensor:
            allowed = laid.sees(length, window)[:, None].to(self._device)
            zero = torch.zeros((), dtype=dtype, device=self._device)
            return torch.where(allowed, zero, torch.finfo(dtype).min)

        way = self._ways[0]
        if way == _BY_LAYER:
            return {_FULL: of(None), _SLIDING: of(self._window)}
        return of(self._window if way == _ONE_SLIDING else None)

    # ---- is it the same? ----

    def _works(self, sequence: TeacherSequence) -> bool | None:
        """Compare a row and some of its branches with plain forward passes.

        Returns:
            None where the teacher's logits are not finite: nothing can be told by them.
        """
        branches = _some(placed([sequence]))
        ids = torch.from_numpy(sequence.text.token_ids)[None]
        plain_row = self._row(ids, None)
        plain = HeadResult.on_host([self.read([b], None, ids) for b in branches])
        if not (_is_finite(plain_row) and _is_finite(plain)):
            return None
        together = self.read(branches, None, ids)
        cache = DynamicCache()
        try:
            row = self._row(ids, cache)
            answers = self.read(branches, cache, ids)
        except Exception as error:  # whatever a model does with arguments that it does not expect
            if is_out_of_memory(error):
                raise
            return False
        # What another batch changes is rounding; so is a few times as much.
        allowed = 4 * distance(together, plain) + max(1e-4, 4 * torch.finfo(self._model.dtype).eps)
        return distance(row, plain_row) <= allowed and distance(answers, plain) <= allowed

    def _row(self, ids: Tensor, cache: DynamicCache | None) -> HeadResult:
        inputs: dict[str, Any] = {
            "input_ids": ids.to(self._device),
            "attention_mask": torch.ones_like(ids).to(self._device),
        }
        if cache is not None:
            inputs |= {"past_key_values": cache, "use_cache": True}
        at = torch.arange(ids.shape[1], device=self._device)
        places = torch.zeros(len(at), 3, dtype=torch.long, device=self._device)
        return self._head(inputs, at, ids[0].to(self._device), places)

    def _warn(self) -> None:
        attention = getattr(self._model.config, "_attn_implementation", None)
        log.warning(
            "%s with %s attention cannot read tokens behind a part of a row, so each boundary "
            "inside a token is read as a row of its own with all that stands before it: the same "
            "answers for many times the work. `logitstore estimate` says how long that takes.%s",
            type(self._model).__name__,
            attention or "its own",
            "" if attention in ("sdpa", "eager") else " Try --attn-implementation sdpa or eager.",
        )


class _Laid(NamedTuple):
    """Branches laid side by side in the rows of a batch.

    Attributes:
        ids_BN, position_BN: Tokens, and the position that each has in its text.
        branch_BN: The number of the branch; -1 for padding.
        context_BN: Tokens of the row that it sees.
        last_n: Flat index of each branch's last token.
    """

    ids_BN: Tensor
    position_BN: Tensor
    branch_BN: Tensor
    context_BN: Tensor
    last_n: Tensor

    @classmethod
    def out(cls, branches: Sequence[Placed], rows: int, pad_id: int) -> "_Laid":
        """Lay branches out in the order given."""
        used = [0] * rows
        starts = []
        for b in branches:
            starts.append(used[b.row])
            used[b.row] += len(b.branch.ids)
        width = max(used)
        ids = torch.full((rows, width), pad_id)
        position, context = torch.zeros_like(ids), torch.zeros_like(ids)
        number = torch.full_like(ids, -1)
        for n, (b, start) in enumerate(zip(branches, starts, strict=True)):
            where = b.row, slice(start, start + len(b.branch.ids))
            ids[where] = torch.tensor(b.branch.ids)
            position[where] = b.branch.context + torch.arange(len(b.branch.ids))
            context[where] = b.branch.context
            number[where] = n
        last = [
            b.row * width + start + len(b.branch.ids) - 1
            for b, start in zip(branches, starts, strict=True)
        ]
        return cls(ids, position, number, context, torch.tensor(last))

    def sees(self, length: int, window: int | None) -> Tensor:
        """Tell what each token sees: (B, N, L + N) the row's tokens, then those of branches."""
        at_L = torch.arange(length)
        row_BNL = at_L < self.context_BN[:, :, None]
        row_BNL[:, :, 0] |= self.branch_BN < 0  # padding sees something, whatever it is
        same_BNN = self.branch_BN[:, :, None] == self.branch_BN[:, None, :]
        order_N = torch.arange(self.ids_BN.shape[1])
        own_BNN = same_BNN & (order_N <= order_N[:, None])
        if window is not None:
            least_BN1 = (self.position_BN - window)[:, :, None]
            row_BNL &= (at_L > least_BN1) | (self.branch_BN < 0)[:, :, None]
            own_BNN &= self.position_BN[:, None, :] > least_BN1
        return torch.cat([row_BNL, own_BNN], 2)


def side_by_side(branches: Sequence[Placed], rows: int, length: int) -> Iterator[list[int]]:
    """Cut branches into passes of no more tokens a row than the row has itself.

    Yields:
        Numbers of branches; each is in exactly one pass.
    """
    width = max(length, max(len(b.branch.ids) for b in branches))
    used, chosen = [0] * rows, list[list[int]]()
    for i, b in enumerate(branches):
        number = used[b.row] // width
        if used[b.row] % width + len(b.branch.ids) > width:
            number += 1
            used[b.row] = number * width
        used[b.row] += len(b.branch.ids)
        while len(chosen) <= number:
            chosen.append([])
        chosen[number].append(i)
    yield from filter(None, chosen)


def selected(result: HeadResult, index_n: Tensor) -> HeadResult:
    """Select positions of a result, in any order."""
    values: dict[str, Any] = {f.name: getattr(result, f.name) for f in fields(result)}
    chosen: dict[str, Any] = {k: None if v is None else v[index_n] for k, v in values.items()}
    return HeadResult(**chosen)


def distance(one: HeadResult, other: HeadResult) -> float:
    """Measure how far apart summaries are: the largest difference in probability of any of them."""
    parts = [
        (one.token_logprob.exp() - other.token_logprob.exp()).abs(),
        (one.tail_logmass.exp() - other.tail_logmass.exp()).abs(),
        (one.entry_logprobs.exp() - other.entry_logprobs.exp()).abs().sum(1),
    ]
    largest = torch.stack([part.max() for part in parts if part.numel()])
    return float(largest.nan_to_num(nan=float("inf")).max())


def _is_finite(result: HeadResult) -> bool:
    return not bool(torch.isnan(result.entropy).any())


def _some(branches: list[Placed]) -> list[Placed]:
    """Choose a few branches to try: the longest, the last, and some between."""
    longest = sorted(branches, key=lambda b: -len(b.branch.ids))[:1]
    step = max(1, len(branches) // (_PROBES - 1))
    return (longest + branches[::-1][::step])[:_PROBES]
