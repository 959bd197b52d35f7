"""The teacher pass, start to end: rows -> batches -> teacher -> records -> committed shards.

Resumable by construction: what each shard holds is fixed before the first is written, a shard is
either committed whole or not there, and a run does the missing ones. Batches never cross shards and
are a function of shard and token budget alone, so a resumed run forwards the same batches and ends
with the same bytes (same machine, versions and thread count).

Encoding and committing a shard happen on a second thread while the teacher reads the next one.
"""

import logging
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from logitstore.capture.head import HeadResult, HeadSettings, TeacherHead, check_vocabulary
from logitstore.capture.hf import Teacher, context_limit, default_device, find_teacher
from logitstore.capture.plan import DEFAULT_SHARD_TEXT_BYTES, make_plan
from logitstore.capture.rows import Rows, load_rows
from logitstore.encode import EncodedRecords, RawRecords, encode_records
from logitstore.errors import InputError
from logitstore.progress import Progress, progress
from logitstore.records import SequenceText
from logitstore.spec import StoreSpec
from logitstore.store import LogitStore, open_store
from logitstore.tokens import TokenizedText
from logitstore.writer import StoreWriter, tokenizer_digests

if TYPE_CHECKING:
    from datasets import Dataset

log = logging.getLogger(__name__)

DEFAULT_TOKENS_PER_BATCH = 8192
_MAX_TOP_K = 0xFFFF  # an entry count is a 16-bit number


@dataclass(frozen=True)
class _Sequence:
    """A row, rendered and tokenised."""

    line: SequenceText
    text: TokenizedText

    @property
    def records(self) -> int:
        return int(self.text.has_record.sum())


def capture(
    teacher: str | os.PathLike[str],
    dataset: "str | os.PathLike[str] | Dataset",
    out: str | os.PathLike[str],
    *,
    top_k: int = 64,
    max_tail: float | None = None,
    ids: bool = True,
    temperatures: Sequence[float] = (),
    split: str | None = None,
    config_name: str | None = None,
    text_column: str | None = None,
    max_length: int | None = None,
    revision: str | None = None,
    dtype: str = "auto",
    device: str | None = None,
    tokens_per_batch: int | None = None,
    shard_text_bytes: int = DEFAULT_SHARD_TEXT_BYTES,
    trust_remote_code: bool = False,
) -> LogitStore:
    """Run the teacher over a dataset and write a store; resume it if it is begun, or do nothing.

    Args:
        teacher: Hub id, or a folder that `AutoModelForCausalLM` and `AutoTokenizer` load.
        dataset: Hub id, folder, `save_to_disk` folder, .jsonl, .parquet or .txt file, or a
            `datasets.Dataset`; with a `text` column, or `prompt` and `completion`.
        out: The store's folder.
        top_k: Entries of a record at most.
        max_tail: Keep only the most probable entries that leave no more than this probability
            outside (never more than top_k).
        ids: Keep the entries' token ids. Without them ULD still works, at a fifth of the size.
        temperatures: Extra temperatures that losses may ask for; 1 always works.
        split: Of the dataset.
        config_name: Of a hub dataset with several.
        text_column: Read this column instead of `text`.
        max_length: Tokens of a row at most; default: what the teacher reads.
        revision: Of a hub model.
        dtype: ``auto`` (the model's own), ``float32``, ``bfloat16`` or ``float16``.
        device: Default: the accelerator if there is one.
        tokens_per_batch: Padded tokens of a forward pass. Recorded by the first run of a store and
            then kept, so that a resumed store is the same bytes; default 8192.
        shard_text_bytes: Text of a shard, about; what a crash can cost.
        trust_remote_code: Run code that comes with the model. Only for models you have read.

    Returns:
        The finished store, open for reading.

    Raises:
        InputError: A model, dataset or setting that cannot be used.
        MismatchError: `out` holds a store made with other settings, or something else.
        StorageError: The file system refused; what was committed stays good.
    """
    _check_settings(top_k, max_tail, temperatures, tokens_per_batch, shard_text_bytes)
    name = os.fspath(teacher)
    found = find_teacher(name, revision=revision, dtype=dtype, trust_remote_code=trust_remote_code)
    if top_k > found.vocab_size:
        raise InputError(
            f"--top-k is {top_k}, but {name} has a vocabulary of {found.vocab_size}. "
            f"Use --top-k {found.vocab_size} or less."
        )
    rows = load_rows(dataset, split=split, config_name=config_name, text_column=text_column)
    spec = StoreSpec(
        teacher={
            "fingerprint": found.fingerprint,
            "architecture": found.architecture,
            "dtype": found.dtype,
            "vocab_size": found.vocab_size,
        },
        tokenizer={
            "fingerprint": found.tokenizer.fingerprint,
            "size": found.tokenizer.size,
            "eos_ids": list(found.tokenizer.eos_ids),
            "files": tokenizer_digests(found.tokenizer_files),
        },
        rendering={
            "kind": rows.kind,
            "add_eos": True,
            "max_length": context_limit(found, max_length),
        },
        capture={
            "top_k": top_k,
            "max_tail": max_tail,
            "ids": ids,
            "temperatures": [float(t) for t in temperatures],
            "logit_std": False,
            "draws": 0,
        },
    )
    plan = make_plan(rows.digest(), rows.text_bytes(), shard_text_bytes)
    provenance = {
        "teacher": name,
        "revision": revision,
        "dataset": dataset if isinstance(dataset, str) else type(dataset).__name__,
        "tokens_per_batch": tokens_per_batch or DEFAULT_TOKENS_PER_BATCH,
        "versions": {p: version(p) for p in ("logitstore", "torch", "transformers")},
    }
    writer = StoreWriter(out, spec, plan, found.tokenizer_files, provenance)
    if writer.is_sealed:
        log.info("%s is finished: all %s shards are there. Nothing to do.", out, plan.shard_count)
        return open_store(out)
    budget = int(tokens_per_batch or writer.provenance["tokens_per_batch"])
    chosen = torch.device(device) if device is not None else default_device()
    _Job(writer, found, rows, budget, chosen).run()
    writer.seal()
    return open_store(out)


class _Job:
    """Does the missing shards of a store, one after the other."""

    def __init__(
        self, writer: StoreWriter, teacher: Teacher, rows: Rows, budget: int, device: torch.device
    ) -> None:
        self.writer, self.teacher, self.rows = writer, teacher, rows
        self.spec, self.budget, self.device = writer.spec, budget, device

    def run(self) -> None:
        missing = self.writer.missing()
        total = sum(b - a for a, b in map(self.writer.plan.shard_rows, missing))
        done = self.writer.plan.shard_count - len(missing)
        self.writer.note("capture", missing_shards=len(missing), tokens_per_batch=self.budget)
        log.info("%d of %d shards are there.", done, self.writer.plan.shard_count)
        if not missing:
            return
        head = self._load()
        pending: Future[bool] | None = None
        with (
            ThreadPoolExecutor(max_workers=1) as committer,
            progress(total, "capture", "rows") as shown,
        ):
            for index in missing:
                sequences = self._shard(index, head, shown)
                if pending is not None:
                    pending.result()  # at most one shard waits: memory stays bounded
                pending = committer.submit(self.writer.write_shard, index, sequences)
            if pending is not None:
                pending.result()

    def _load(self) -> TeacherHead:
        model = self.teacher.load(self.device)
        check_vocabulary(model, self.teacher.tokenizer.size, self.spec.vocab_size)
        settings = HeadSettings(self.spec.top_k, self.spec.max_tail, self.spec.temperatures)
        return TeacherHead(model, settings)

    def _shard(
        self, index: int, head: TeacherHead, shown: Progress
    ) -> list[tuple[SequenceText, EncodedRecords | None]]:
        """All rows of a shard, in order, each with its records."""
        start, stop = self.writer.plan.shard_rows(index)
        sequences = [self._tokenise(row) for row in range(start, stop)]
        records: list[EncodedRecords | None] = [None] * len(sequences)
        without = sum(s.records == 0 for s in sequences)
        shown.update(without)
        for batch in _batches(sequences, self.budget):
            encoded = self._forward([sequences[i] for i in batch], head)
            for i, part in zip(batch, encoded, strict=True):
                records[i] = part
            shown.update(len(batch), shard=f"{index + 1}/{self.writer.plan.shard_count}")
        return [(s.line, r) for s, r in zip(sequences, records, strict=True)]

    def _tokenise(self, row: int) -> _Sequence:
        segments = self.rows.segments(row)
        text = self.teacher.tokenizer.encode(
            segments,
            max_length=self.spec.rendering["max_length"],
            add_eos=self.spec.rendering["add_eos"],
        )
        return _Sequence(SequenceText(row, 0, text.status, tuple(segments)), text)

    def _forward(self, batch: Sequence[_Sequence], head: TeacherHead) -> list[EncodedRecords]:
        length = max(len(s.text.token_ids) for s in batch)
        input_ids = torch.full((len(batch), length), self.teacher.tokenizer.pad_id)
        mask = torch.zeros_like(input_ids)
        kept = torch.zeros_like(input_ids, dtype=torch.bool)
        for i, s in enumerate(batch):
            n = len(s.text.token_ids)
            input_ids[i, :n] = torch.from_numpy(s.text.token_ids)
            mask[i, :n] = 1
            kept[i, :n] = torch.from_numpy(s.text.has_record)
        at = kept.flatten().nonzero().squeeze(1)
        # A record belongs to the token it predicted: the logit row before it.
        result = head(
            {"input_ids": input_ids.to(self.device), "attention_mask": mask.to(self.device)},
            (at - 1).to(self.device),
            input_ids.flatten()[at].to(self.device),
        )
        self._check_finite(result, batch, at // length)
        raw = _raw_records(batch, result, self.spec)
        return encode_records(raw, self.spec).split([s.records for s in batch])

    def _check_finite(self, result: HeadResult, batch: Sequence[_Sequence], row_n: Tensor) -> None:
        bad = torch.isnan(result.entry_logprobs).any(1) | torch.isnan(result.tail_logmass)
        if bad.any():
            row = batch[int(row_n[bad.nonzero()[0, 0]])].line.row
            raise InputError(
                f"row {row:,}: the teacher's logits are not finite (NaN or infinite). Nothing of "
                "this shard was written; every shard before it is good. Try --dtype float32, or "
                "check the teacher's weights, then run the same command again."
            )


def _batches(sequences: Sequence[_Sequence], budget: int) -> Iterator[list[int]]:
    """Sequences with records, longest first, as many as fit the budget of padded tokens."""
    order = [i for i, s in enumerate(sequences) if s.records]
    order.sort(key=lambda i: (-len(sequences[i].text.token_ids), i))
    while order:
        count = max(1, budget // len(sequences[order[0]].text.token_ids))
        yield order[:count]
        order = order[count:]


def _raw_records(batch: Sequence[_Sequence], result: HeadResult, spec: StoreSpec) -> RawRecords:
    def of_records(name: str) -> np.ndarray[Any, Any]:
        return np.concatenate([getattr(s.text, name)[s.text.has_record] for s in batch])

    return RawRecords(
        token_ids=of_records("token_ids"),
        byte_starts=of_records("byte_starts"),
        byte_lengths=of_records("byte_lengths"),
        token_logprob=result.token_logprob.numpy(),
        entry_logprobs=result.entry_logprobs.numpy(),
        entry_ids=result.entry_ids.numpy() if spec.has_ids else None,
        entry_count=result.entry_count.numpy(),
        tail_logmass=result.tail_logmass.numpy(),
        entropy=result.entropy.numpy(),
        lognorm=result.lognorm.numpy() if spec.temperatures else None,
    )


def _check_settings(
    top_k: int,
    max_tail: float | None,
    temperatures: Sequence[float],
    tokens_per_batch: int | None,
    shard_text_bytes: int,
) -> None:
    if not 1 <= top_k <= _MAX_TOP_K:
        raise InputError(f"--top-k is {top_k}, expected 1 to {_MAX_TOP_K}.")
    if max_tail is not None and not 0 < max_tail < 1:
        raise InputError(
            f"--max-tail is {max_tail}, expected a probability between 0 and 1, such as 0.01."
        )
    for t in temperatures:
        if not (0 < t < float("inf")) or t == 1:
            raise InputError(
                f"--temperature is {t}, expected a positive number other than 1 (1 is always kept)."
            )
    if len(set(temperatures)) != len(temperatures):
        raise InputError(f"--temperature is given twice for one of {list(temperatures)}.")
    if tokens_per_batch is not None and tokens_per_batch < 1:
        raise InputError(f"--tokens-per-batch is {tokens_per_batch}, expected 1 or more.")
    if shard_text_bytes < 1:
        raise InputError(f"--shard-text-bytes is {shard_text_bytes}, expected 1 or more.")
