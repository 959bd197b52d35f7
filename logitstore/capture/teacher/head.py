"""Summarise a teacher's distributions chunk by chunk, from hidden states.

The [tokens, vocabulary] tensor of a batch never exists: hidden states are caught at the output
embedding (see output_embedding.py), the supervised positions picked, and a chunk at a time goes
through the head. On the first batch some rows are compared with the model's own logits; where they
differ, those are used from then on, loudly.

Shape legend: B = rows, L = padded length, D = hidden width, V = vocabulary, n = positions asked
for, K = entries, T = extra temperatures, S = draws, 3 = (row, part, position).
"""

import logging
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from logitstore.capture.teacher.draws import TAIL_DRAWS, random_words
from logitstore.capture.teacher.summary import HeadResult, HeadSettings, summarise_
from logitstore.console.counts import counted
from logitstore.errors import InputError
from logitstore.models.output_embedding import (
    PROBE_ROWS,
    after_the_embedding,
    logits_of,
    same_logits,
    standing_in,
)

log = logging.getLogger(__name__)

#: Is shown hidden states of a batch.
Watch = Callable[[Tensor], None]
#: Rows of logits at a time, over the whole vocabulary. Fewer make the matrix product slower, more
#: make nothing faster (V = 32,000, CPU us a row: 2,158 with 65, 1,378 with 262, 1,312 with
#: 1,048). To cut the vocabulary instead is no faster either (1,342), and finds the tail as a
#: difference, without its last digits: `python -m tools.bench_head`.
CHUNK_ROWS = 256
#: Logits that a CPU summarises at a time: its cache holds them through all passes over them, which
#: halves their time (V = 32,000: 44 us a row instead of 75; 128,256: 132 and 268).
_CACHED_LOGITS = 2**20


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
        if self._embedding is None:
            self._fall_back("it has no output embedding")

    @torch.inference_mode()
    def __call__(
        self,
        inputs: Mapping[str, Tensor],
        positions_n: Tensor,
        targets_n: Tensor,
        places_n3: Tensor | None = None,
        watch: Watch | None = None,
    ) -> HeadResult:
        """Run the teacher and summarise the logit rows at `positions_n`, onto the CPU.

        Args:
            inputs: Arguments of the model: input_ids and attention_mask, (B, L).
            positions_n: Flat indices into B x L of the rows that predict the targets.
            targets_n: The tokens they predict.
            places_n3: (row, part, position) of each target, which decide its draws; needed only
                where there are draws.
            watch: Is shown all hidden states of the batch, (B x L, D), as the head reads them.

        Raises:
            InputError: Hidden states are asked for, and the logits are not made of them.
        """
        words_nW = self._words(places_n3)
        if self._embedding is not None:
            result = self._from_hidden(inputs, positions_n, targets_n, words_nW, watch)
            if result is not None:
                return result
            self._fall_back("its logits are not made from its output embedding as known here")
        if watch is not None:
            raise InputError(
                f"{type(self.model).__name__}: its logits are not made of its output embedding as "
                "known here, so what its output head reads is not known. Capture without --hidden."
            )
        logits = logits_of(self.model(**inputs)).flatten(0, 1)
        positions_n = positions_n.to(logits.device)
        return self._summarise(lambda part: logits[positions_n[part]], targets_n, words_nW)

    def _words(self, places_n3: Tensor | None) -> Tensor | None:
        """Make the random words of a whole batch at once: a hundred small operations, once."""
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
        watch: Watch | None,
    ) -> HeadResult | None:
        """Summarise from hidden states; None if the model's own logits turn out to differ."""
        head, finish = self._embedding.forward, after_the_embedding(self.model)
        caught: list[Tensor] = []
        probe = torch.empty(0)

        def stand_in(hidden: Tensor) -> Tensor:
            nonlocal probe
            hidden_MD = hidden.flatten(0, -2)
            # The hidden states of a model on several devices are on the last one.
            caught.append(hidden_MD[positions_n.to(hidden_MD.device)])
            if watch is not None:
                watch(hidden_MD)
            # Rows where records are: a padded row may hold anything.
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
        return HeadResult.on_host(summarise_chunks(rows_of, targets_n, self.settings, words_nW))

    def _fall_back(self, why: str) -> None:
        self._embedding = None
        log.warning(
            "%s: %s. Its own logits are used whole: the same records, but memory for every token "
            "of a batch times the vocabulary. Lower --tokens-per-batch if that does not fit.",
            type(self.model).__name__,
            why,
        )


def summarise_chunks(
    rows_of: Callable[[slice], Tensor],
    targets_n: Tensor,
    settings: HeadSettings,
    words_nW: Tensor | None = None,
) -> list[HeadResult]:
    """Summarise positions whose logits are made a chunk at a time; on their device, in parts.

    Args:
        rows_of: Makes the logits of some of the positions, (m, V).
        targets_n: The tokens that they predict.
        settings: What to keep.
        words_nW: Random words of each position, two for each draw, if there are draws.
    """
    results: list[HeadResult] = []
    work: Tensor | None = None
    for start in range(0, len(targets_n), CHUNK_ROWS):
        logits = rows_of(slice(start, start + CHUNK_ROWS))
        size = _rows_together(logits)
        if work is None:
            work = torch.empty_like(logits[:size], dtype=torch.float32)
        for first in range(0, len(logits), size):
            rows = logits[first : first + size]
            part = slice(start + first, start + first + len(rows))
            words = None if words_nW is None else words_nW[part].to(logits.device)
            targets = targets_n[part].to(logits.device)
            results.append(summarise_(rows, targets, settings, words, work[: len(rows)]))
    return results


def check_vocabulary(model: Any, tokenizer_size: int, vocab_size: int) -> None:
    """Check that the teacher can read and predict every id that its tokenizer makes.

    Raises:
        InputError: One of its embeddings has fewer rows than the tokenizer has ids, or the output
            embedding another number than its configuration says.
    """
    embedding = model.get_output_embeddings()
    rows = _rows(embedding, vocab_size)
    if rows != vocab_size:
        raise InputError(
            f"{model.name_or_path}: the teacher's output embedding has {counted(rows, 'row')}, its "
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


def _rows_together(logits: Tensor) -> int:
    if logits.device.type != "cpu":
        return max(1, len(logits))
    return min(max(1, len(logits)), max(8, _CACHED_LOGITS // logits.shape[1]))


def _rows(embedding: Any, otherwise: int) -> int:
    """Count the ids that an output embedding predicts."""
    weight = getattr(embedding, "weight", None)
    if isinstance(weight, Tensor) and weight.dim() == 2 and weight.is_floating_point():
        return int(weight.shape[0])
    # Quantised weights are packed in shapes of their own.
    return int(getattr(embedding, "out_features", otherwise))
