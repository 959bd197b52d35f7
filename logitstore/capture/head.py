"""What is kept of a teacher's distribution, computed chunk by chunk from hidden states.

The [tokens, vocabulary] tensor of a batch never exists: hidden states are caught at the output
embedding (see output_embedding.py), the supervised positions picked, and a chunk at a time goes
through the head. On the first batch some rows are compared with the model's own logits; where they
differ, those are used from then on, loudly.

Shape legend: B = rows, L = padded length, D = hidden width, V = vocabulary, n = positions asked
for, K = entries, T = extra temperatures, S = draws, 3 = (row, part, position).
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Self

import torch
from torch import Tensor

from logitstore.capture.draws import TAIL_DRAWS, draw, random_words
from logitstore.capture.output_embedding import (
    PROBE_ROWS,
    after_the_embedding,
    logits_of,
    same_logits,
    standing_in,
)
from logitstore.errors import InputError

log = logging.getLogger(__name__)

_CHUNK_BYTES = 64 * 1024 * 1024  # of float32 logits at a time
#: Added to a standard deviation before anything is divided by it (MultiLevelOT, arXiv:2412.14528).
STD_FLOOR = 1e-4


@dataclass(frozen=True)
class HeadSettings:
    """What to keep.

    Attributes:
        top_k: Entries of a record at most.
        max_tail: Keep the fewest entries that leave no more than this outside; None: always top_k.
        temperatures: Extra temperatures to store the log-normaliser for.
        logit_std: Also the standard deviation of the logits, and the log-normaliser at it.
        draws: Draws, with replacement, from what lies outside the entries.
        seed: Of the draws.
    """

    top_k: int
    max_tail: float | None = None
    temperatures: tuple[float, ...] = ()
    logit_std: bool = False
    draws: int = 0
    seed: int = 0


@dataclass(frozen=True)
class HeadResult:
    """Per position, float32, entries most probable first; None for what was not asked for."""

    token_logprob: Tensor  # (n,)
    entry_logprobs: Tensor  # (n, K)
    entry_ids: Tensor  # (n, K) int32
    entry_count: Tensor  # (n,)
    tail_logmass: Tensor  # (n,)
    entropy: Tensor  # (n,)
    lognorm: Tensor  # (n, T)
    logit_std: Tensor | None = None  # (n,)
    lognorm_std: Tensor | None = None  # (n,) at temperature logit_std + STD_FLOOR
    sample_ids: Tensor | None = None  # (n, S) int32, distinct draws, ascending
    sample_counts: Tensor | None = None  # (n, S) int32
    draw_count: Tensor | None = None  # (n,) distinct draws

    @classmethod
    def on_host(cls, parts: "Sequence[HeadResult]") -> Self:
        """One after the other, on the CPU; needs at least one part."""
        joined: dict[str, Any] = {}
        for each in fields(cls):
            column = [getattr(part, each.name) for part in parts]
            joined[each.name] = None if column[0] is None else torch.cat(column).cpu()
        return cls(**joined)


def summarise(
    logits_nV: Tensor,
    targets_n: Tensor,
    settings: HeadSettings,
    words_nW: Tensor | None = None,
) -> HeadResult:
    """What is kept of a few positions, from their full logits.

    Sums are float32 over the whole vocabulary; the tail is a log-sum-exp over what is outside the
    entries, since 1 - sum cancels to noise where the teacher is sure.

    Args:
        logits_nV: As the model has them.
        targets_n: The tokens that they predict.
        settings: What to keep.
        words_nW: Random words of each position, two a draw, if there are draws.
    """
    logp_nV = logits_nV.float().log_softmax(-1)
    entries_nK, ids_nK = logp_nV.topk(min(settings.top_k, logp_nV.shape[-1]), dim=-1)
    token_n = logp_nV.gather(1, targets_n[:, None]).squeeze(1)
    entropy_n = torch.special.entr(logp_nV.exp()).sum(-1)
    lognorm_nT = logp_nV.new_zeros(len(logp_nV), len(settings.temperatures))
    for i, temperature in enumerate(settings.temperatures):
        lognorm_nT[:, i] = (logp_nV / temperature).logsumexp(-1)
    std_n = lognorm_std_n = None
    if settings.logit_std:
        std_n = logp_nV.std(-1)  # that of the logits: they differ by a constant
        lognorm_std_n = (logp_nV / (std_n + STD_FLOOR)[:, None]).logsumexp(-1)
    tail_n = logp_nV.scatter_(1, ids_nK, -torch.inf).logsumexp(-1)
    count_n = torch.full_like(targets_n, entries_nK.shape[1])
    if settings.max_tail is not None:
        count_n, tail_n = _fewest(entries_nK, tail_n, settings.max_tail)
    drawn = None
    if words_nW is not None:
        is_left = torch.arange(entries_nK.shape[1], device=count_n.device) >= count_n[:, None]
        logp_nV.scatter_(1, ids_nK, entries_nK.masked_fill(~is_left, -torch.inf))
        drawn = draw(logp_nV, tail_n, words_nW)
    return HeadResult(
        token_logprob=token_n,
        entry_logprobs=entries_nK,
        entry_ids=ids_nK.int(),
        entry_count=count_n,
        tail_logmass=tail_n,
        entropy=entropy_n,
        lognorm=lognorm_nT,
        logit_std=std_n,
        lognorm_std=lognorm_std_n,
        sample_ids=None if drawn is None else drawn.ids,
        sample_counts=None if drawn is None else drawn.counts,
        draw_count=None if drawn is None else drawn.distinct,
    )


def _fewest(entries_nK: Tensor, tail_n: Tensor, max_tail: float) -> tuple[Tensor, Tensor]:
    """The smallest count whose tail is within bounds, or all; and the tail it leaves."""
    # left[:, k] = log mass outside the first k + 1 entries, summed from the small end.
    parts = torch.cat([entries_nK[:, 1:], tail_n[:, None]], 1)
    left = parts.flip(1).logcumsumexp(1).flip(1)
    within = left.exp() <= max_tail
    within[:, -1] = True
    keep = within.int().argmax(1)
    return keep + 1, left.gather(1, keep[:, None]).squeeze(1)


class TeacherHead:
    """Runs the teacher and keeps what `HeadSettings` asks for.

    Args:
        model: A causal language model in eval mode.
        settings: What to keep.
    """

    def __init__(self, model: Any, settings: HeadSettings) -> None:
        self.model, self.settings = model, settings
        self._embedding: Any = model.get_output_embeddings()
        self._is_checked = False
        width = int(model.config.get_text_config(decoder=True).vocab_size)
        self._chunk = max(1, _CHUNK_BYTES // (4 * width))
        if self._embedding is None:
            self._fall_back("it has no output embedding")

    @torch.inference_mode()
    def __call__(
        self,
        inputs: Mapping[str, Tensor],
        positions_n: Tensor,
        targets_n: Tensor,
        places_n3: Tensor | None = None,
    ) -> HeadResult:
        """Summaries of the logit rows at `positions_n`, on the CPU.

        Args:
            inputs: Of the model: input_ids and attention_mask, (B, L).
            positions_n: Flat indices into B x L of the rows that predict the targets.
            targets_n: The tokens they predict.
            places_n3: (row, part, position) of each target, which decide its draws; may be left
                out where there are none.
        """
        words_nW = self._words(places_n3)
        if self._embedding is not None:
            result = self._from_hidden(inputs, positions_n, targets_n, words_nW)
            if result is not None:
                return result
            self._fall_back("its logits are not made from its output embedding as known here")
        logits = logits_of(self.model(**inputs)).flatten(0, 1)
        positions_n = positions_n.to(logits.device)
        return self._summarise(lambda part: logits[positions_n[part]], targets_n, words_nW)

    def _words(self, places_n3: Tensor | None) -> Tensor | None:
        """Of the whole batch at once: a hundred small operations, not so many a chunk."""
        draws, seed = self.settings.draws, self.settings.seed
        if not draws:
            return None
        assert places_n3 is not None, "draws belong to a place"
        return random_words(places_n3, 2 * draws, seed, TAIL_DRAWS)

    def _from_hidden(
        self,
        inputs: Mapping[str, Tensor],
        positions_n: Tensor,
        targets_n: Tensor,
        words_nW: Tensor | None,
    ) -> HeadResult | None:
        """The summaries, or None if the model's own logits turn out to be others."""
        head, finish = self._embedding.forward, after_the_embedding(self.model)
        caught: list[Tensor] = []
        probe = torch.empty(0)

        def stand_in(hidden: Tensor) -> Tensor:
            nonlocal probe
            hidden_MD = hidden.flatten(0, -2)
            # Of a model on several devices they come from the last one.
            caught.append(hidden_MD[positions_n.to(hidden_MD.device)])
            # Taken where records are: a padded row may be anything.
            probe = torch.as_tensor(head(caught[0][: 0 if self._is_checked else PROBE_ROWS]))
            # One sequence of so few rows: whatever the model does to logits, it does to these.
            return probe.reshape(*[1] * (hidden.dim() - 2), *probe.shape)

        with standing_in(self._embedding, stand_in):
            theirs = logits_of(self.model(**inputs))
        if len(caught) != 1 or not same_logits(theirs, finish(probe)):
            return None
        self._is_checked = True
        return self._summarise(lambda part: finish(head(caught[0][part])), targets_n, words_nW)

    def _summarise(
        self, rows_of: Callable[[slice], Tensor], targets_n: Tensor, words_nW: Tensor | None
    ) -> HeadResult:
        chunks = []
        for start in range(0, len(targets_n), self._chunk):
            part = slice(start, start + self._chunk)
            logits, targets = rows_of(part), targets_n[part]
            words = None if words_nW is None else words_nW[part].to(logits.device)
            chunks.append(summarise(logits, targets.to(logits.device), self.settings, words))
        return HeadResult.on_host(chunks)

    def _fall_back(self, why: str) -> None:
        self._embedding = None
        log.warning(
            "%s: %s. Its own logits are used whole: the same records, but memory for every token "
            "of a batch times the vocabulary. Lower --tokens-per-batch if that does not fit.",
            type(self.model).__name__,
            why,
        )


def check_vocabulary(model: Any, tokenizer_size: int, vocab_size: int) -> None:
    """The teacher must be able to predict every id its tokenizer makes.

    Raises:
        InputError: One of its embeddings has fewer rows than the tokenizer has ids, or the output
            embedding another number than its configuration says.
    """
    embedding = model.get_output_embeddings()
    rows = _rows(embedding, vocab_size)
    if rows != vocab_size:
        raise InputError(
            f"{model.name_or_path}: the teacher's output embedding has {rows} rows, its "
            f"config.json says vocab_size {vocab_size}. Save the model again with the right "
            "configuration."
        )
    if tokenizer_size > vocab_size:
        raise InputError(
            f"{model.name_or_path}: the teacher predicts {vocab_size} ids, but its tokenizer makes "
            f"{tokenizer_size}. Use the tokenizer that belongs to this model, or resize "
            "its embeddings."
        )
    reads = getattr(_input_embeddings(model), "num_embeddings", tokenizer_size)
    if tokenizer_size > reads:  # on an accelerator a row that is not there ends the process
        raise InputError(
            f"{model.name_or_path}: the teacher reads {reads} ids, but its tokenizer makes "
            f"{tokenizer_size}. Use the tokenizer that belongs to this model, or resize its "
            "embeddings."
        )


def _input_embeddings(model: Any) -> Any:
    try:
        return model.get_input_embeddings()
    except NotImplementedError:  # an architecture that has none in the usual place
        return None


def _rows(embedding: Any, otherwise: int) -> int:
    """How many ids an output embedding predicts."""
    weight = getattr(embedding, "weight", None)
    if isinstance(weight, Tensor) and weight.dim() == 2 and weight.is_floating_point():
        return int(weight.shape[0])
    # Quantised weights are packed in shapes of their own.
    return int(getattr(embedding, "out_features", otherwise))
