"""Run batches of sequences through the teacher: token ids in, encoded records out.

The sequences of a shard are sorted by length and cut into batches of at most `budget` padded
tokens, so there is little padding, and a batch is a function of shard and budget alone. Which
sequences share a batch changes a record in its last bits only: the sums of a matrix product are
taken in another order. tests/logitstore/capture/test_batching.py holds how much that is, for models
of several families:

* float32: less than 0.001 nats in any log-probability, a fifth of the step they are stored in.
* bfloat16, float16: no more than half precision itself costs, that is, no further from another
  batch's distribution than from what the same weights say in float32 (L1, on average).
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from logitstore.capture.boundaries.branches import BranchReader, placed
from logitstore.capture.passes.completer import Completer
from logitstore.capture.passes.encoding import Encoding, head_settings
from logitstore.capture.passes.engine import Alone, Forwarded
from logitstore.capture.passes.generate import ModelCompleter
from logitstore.capture.passes.states import kept_of
from logitstore.capture.sampling import Sampling
from logitstore.capture.sequences.prompts import PromptReader
from logitstore.capture.sequences.windows import TeacherSequence
from logitstore.capture.teacher.experts import Routed, View
from logitstore.capture.teacher.head import TeacherHead, Watch, check_vocabulary
from logitstore.capture.teacher.hidden import HiddenCatcher
from logitstore.capture.teacher.lm_head import LmHeadSource
from logitstore.capture.teacher.memory import raises_out_of_memory
from logitstore.capture.teacher.summary import HeadResult, HeadSettings
from logitstore.capture.teacher.teacher import Teacher
from logitstore.capture.teacher.weights import input_device, load_model
from logitstore.format.lm_head import LmHead
from logitstore.format.spec import StoreSpec
from logitstore.models.output_embedding import logits_of
from logitstore.text.token_budget import by_token_budget


def batches(sequences: Sequence[TeacherSequence], budget: int) -> Iterator[list[int]]:
    """Cut the sequences with records into batches of at most `budget` padded tokens."""
    chosen = [i for i, s in enumerate(sequences) if s.records]
    for batch in by_token_budget([sequences[i].length for i in chosen], budget):
        yield [chosen[n] for n in batch]


class TeacherPass(Encoding):
    """Loads a teacher, and turns batches of sequences into records.

    Args:
        teacher: The teacher without its weights.
        spec: What the store keeps.
        device: The device to load it on, unless it has a device map.
        on_nan: `stop` at logits that are not finite, or `skip` the sequence.

    Raises:
        InputError: Weights and tokenizer or configuration do not belong together.
    """

    def __init__(
        self, teacher: Teacher, spec: StoreSpec, device: torch.device, on_nan: str = "stop"
    ) -> None:
        super().__init__(spec, on_nan)
        self._pad_id = teacher.tokenizer.pad_id
        if device.type != "cpu" and device.index is not None:
            torch.accelerator.set_device_index(device.index)  # for kernels that ask for "the" one
        model = load_model(teacher, device)
        self.model = model
        #: Device of the input; with a device map, that of the first layer.
        self.device = device if teacher.device_map is None else input_device(model)
        check_vocabulary(model, teacher.tokenizer.size, spec.vocab_size)
        experts = spec.teacher.get("experts")
        self._routed = None if experts is None else Routed(model, View.from_recorded(experts))
        self.place, self.devices = str(self.device), _devices(model)
        self.is_quantized = "quantization" in spec.teacher or bool(
            getattr(model, "is_quantized", False)
        )
        self.raises_out_of_memory = raises_out_of_memory(self.device)
        self._head = TeacherHead(model, head_settings(spec))
        hidden = spec.hidden
        self._catcher = None if hidden is None else HiddenCatcher(model, hidden, teacher.name)
        self._lm_head = LmHeadSource(model, spec, teacher.name) if spec.has_head else None
        self._branches = BranchReader(model, self._head, self.device, self._pad_id)

    def forward(self, batch: Sequence[TeacherSequence]) -> Forwarded:
        """Summarise the prediction of every supervised token, and what is said behind branches."""
        branches = placed(batch)
        cache = self._branches.cache_for(batch) if branches else None
        rows = self._rows(batch)
        watch = None if self._catcher is None else self._watch(batch, rows.shape[1])
        result, sequence_n = self._forward(self._head, batch, cache, watch)
        if self._catcher is not None:
            read_n = torch.cat([torch.from_numpy(s.text.token_ids) for s in batch])
            return Forwarded(result, sequence_n, states=self._catcher.taken(read_n))
        if not branches:
            return Forwarded(result, sequence_n)
        return Forwarded(result, sequence_n, self._branches.read(branches, cache, rows))

    def most_probable(self, batch: Sequence[TeacherSequence], count: int) -> HeadResult:
        """Find the `count` most probable tokens (or all there are), whatever the spec keeps."""
        count = min(count, self.spec.vocab_size)
        return self._forward(TeacherHead(self.model, HeadSettings(count)), batch)[0]

    @torch.no_grad()
    def alone(self, sequence: TeacherSequence) -> Alone:
        """Take the model's own logits of one sequence."""
        ids = torch.from_numpy(sequence.text.token_ids)[None].to(self.device)
        if self._routed is not None:
            self._routed.read([sequence], ids.shape[1])
        logits = logits_of(self.model(input_ids=ids, attention_mask=torch.ones_like(ids)))[0, :-1]
        logprobs = logits.float().log_softmax(1)
        own = logprobs.gather(1, ids[0, 1:, None].to(logprobs.device))[:, 0]
        return Alone(own.cpu(), logprobs)

    def lm_head(self) -> LmHead:
        """Take the teacher's output embedding, where the spec has it."""
        assert self._lm_head is not None
        return self._lm_head.taken()

    def completer(
        self,
        reader: PromptReader,
        sampling: Sampling,
        budget: int,
        beat: Callable[[], None],
    ) -> Completer:
        """Make what writes completions, with the same model."""
        return ModelCompleter(self.model, reader, sampling, budget, self.device, beat)

    def _rows(self, batch: Sequence[TeacherSequence]) -> Tensor:
        """Pad the tokens of a batch: (B, L)."""
        input_ids = torch.full((len(batch), max(s.length for s in batch)), self._pad_id)
        for i, s in enumerate(batch):
            input_ids[i, : s.length] = torch.from_numpy(s.text.token_ids)
        return input_ids

    def _watch(self, batch: Sequence[TeacherSequence], length: int) -> Watch:
        """Make what catches the states that are kept, of a batch that is padded to a length."""
        catcher = self._catcher
        assert catcher is not None
        kept_T = torch.cat([i * length + kept_of(s, self.spec) for i, s in enumerate(batch)])
        return lambda hidden_MD: catcher.catch(hidden_MD, kept_T)

    def _forward(
        self,
        head: TeacherHead,
        batch: Sequence[TeacherSequence],
        cache: Any = None,
        watch: Watch | None = None,
    ) -> tuple[HeadResult, Tensor]:
        """Read the rows of a batch; keep their keys and values if there is a cache."""
        input_ids = self._rows(batch)
        mask = torch.zeros_like(input_ids)
        kept = torch.zeros_like(input_ids, dtype=torch.bool)
        for i, s in enumerate(batch):
            mask[i, : s.length] = 1
            kept[i, : s.length] = torch.from_numpy(s.text.has_record)
        at = kept.flatten().nonzero().squeeze(1)
        inputs: dict[str, Any] = {
            "input_ids": input_ids.to(self.device),
            "attention_mask": mask.to(self.device),
        }
        if cache is not None:
            inputs |= {"past_key_values": cache, "use_cache": True}
        if self._routed is not None:
            self._routed.read(batch, input_ids.shape[1])
        # A record belongs to the token it predicted: the logit row before it.
        result = head(
            inputs,
            (at - 1).to(self.device),
            input_ids.flatten()[at].to(self.device),
            _places(batch).to(self.device) if head.settings.draws else None,
            watch,
        )
        return result, at // input_ids.shape[1]


def _devices(model: Any) -> int:
    """Count the devices that hold weights."""
    return len({p.device for p in model.parameters() if not p.is_meta}) or 1


def _places(batch: Sequence[TeacherSequence]) -> Tensor:
    """Locate every token with a record: (n, 3) row, part and position in its sequence."""
    parts = []
    for s in batch:
        position = np.flatnonzero(s.text.has_record)
        row, part = (np.full_like(position, value) for value in (s.line.row, s.line.part))
        parts.append(np.stack([row, part, position], 1))
    return torch.from_numpy(np.concatenate(parts))
