"""All that a capture is to do, found out before anything is written or any weight is loaded."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch

import logitstore
from logitstore.capture.sequences.prompts import PromptReader
from logitstore.capture.sequences.row_reader import RowReader
from logitstore.capture.sequences.windows import limits_of, rendering_of
from logitstore.capture.settings import AUTO, CaptureSettings
from logitstore.capture.teacher.teacher import (
    Teacher,
    chosen_device,
    context_limit,
    default_device,
    find_teacher,
)
from logitstore.console.launcher import Ranks
from logitstore.errors import InputError
from logitstore.format.spec import Plan, StoreSpec
from logitstore.rows.dataset import Rows, load_rows
from logitstore.rows.renderer import Renderer
from logitstore.text.token_budget import DEFAULT_TOKENS_PER_BATCH
from logitstore.writing.plan import make_plan
from logitstore.writing.writer import StoreWriter, tokenizer_digests

if TYPE_CHECKING:
    from datasets import Dataset


@dataclass(frozen=True)
class Task:
    """A capture, described.

    Attributes:
        teacher: Without its weights.
        rows: The dataset.
        reader: Makes sequences of its rows.
        spec: What the store will hold.
        plan: Which rows go into which shard.
        text_bytes: Text of each row, with what is to be written for it at most.
        provenance: For people; see `StoreHeader`.
        settings: As asked for.
    """

    teacher: Teacher
    rows: Rows
    reader: RowReader
    spec: StoreSpec
    plan: Plan
    text_bytes: npt.NDArray[np.int64]
    provenance: dict[str, Any]
    settings: CaptureSettings

    def budget(self, writer: StoreWriter) -> int:
        """Padded tokens of a batch: the number asked for, else what the store recorded."""
        asked = self.settings.tokens_per_batch
        return asked if isinstance(asked, int) else int(writer.provenance["tokens_per_batch"])

    @property
    def wants_budget(self) -> bool:
        """Whether a new store is to find out how many tokens a batch holds."""
        return self.settings.tokens_per_batch == AUTO

    def device(self, ranks: Ranks) -> torch.device:
        """Where this rank's teacher runs; with a device map, where it begins.

        Raises:
            InputError: Several ranks of a machine would each take all of its devices.
        """
        if self.settings.device_map is not None and ranks.local_rank > 0:
            raise InputError(
                f"--device-map {self.settings.device_map}: {ranks} is the second on this machine, "
                "and each would spread its teacher over the same devices. Start one process a "
                "machine, or show each its own devices (CUDA_VISIBLE_DEVICES) and use --claim."
            )
        if self.settings.device is not None:
            return chosen_device(self.settings.device)
        return default_device(ranks.local_rank)

    def work_of(self, shards: Sequence[int]) -> int:
        """What some of the shards add to the progress: their text, and one a row."""
        rows = sum(b - a for a, b in map(self.plan.shard_rows, shards))
        return self.text_of(shards) + rows

    def text_of(self, shards: Sequence[int]) -> int:
        """Bytes of text in some of the shards."""
        return sum(int(self.text_bytes[slice(*self.plan.shard_rows(i))].sum()) for i in shards)


def prepare(
    teacher: str, dataset: "str | os.PathLike[str] | Dataset", settings: CaptureSettings
) -> Task:
    """Find teacher and dataset, and make spec and plan.

    Raises:
        InputError: A model, dataset or setting that cannot be used.
    """
    settings.check()
    if settings.device is not None:
        chosen_device(settings.device)
        if settings.device_map is not None:
            raise InputError(
                f"--device {settings.device} and --device-map {settings.device_map}: each says "
                "where the teacher runs. Leave one of the two out."
            )
    found = find_teacher(
        teacher,
        revision=settings.revision,
        dtype=settings.dtype,
        trust_remote_code=settings.trust_remote_code,
        quantization=settings.quantization,
        attn_implementation=settings.attn_implementation,
        device_map=settings.device_map,
    )
    if settings.top_k > found.vocab_size:
        raise InputError(
            f"--top-k is {settings.top_k}, but {teacher} has a vocabulary of {found.vocab_size}. "
            f"Use --top-k {found.vocab_size} or less."
        )
    max_length = context_limit(found, settings.max_length)
    prefix = found.tokenizer.prefix_length
    limits = limits_of(max_length, settings.overflow, settings.stride, prefix)
    rows = load_rows(
        dataset,
        split=settings.split,
        config_name=settings.config_name,
        text_column=settings.text_column,
        prompts=settings.generate,
    )
    sampling = settings.sampling
    render = Renderer.make(
        rows,
        found.transformers_tokenizer,
        found.tokenizer,
        supervise=settings.supervise,
        template_path=settings.chat_template_path,
        template_kwargs=settings.chat_template_kwargs,
    )
    spec = StoreSpec(
        teacher={
            "fingerprint": found.fingerprint,
            "architecture": found.architecture,
            "dtype": found.dtype,
            "vocab_size": found.vocab_size,
            **({} if found.quantization is None else {"quantization": found.quantization}),
        },
        tokenizer={
            "fingerprint": found.tokenizer.fingerprint,
            "size": found.tokenizer.size,
            "eos_ids": list(found.tokenizer.eos_ids),
            "files": tokenizer_digests(found.tokenizer_files),
        },
        rendering={
            **render.settings,
            "max_length": max_length,
            **rendering_of(limits),
            **({} if sampling is None else {"generate": sampling.recorded()}),
        },
        capture={
            "top_k": settings.top_k,
            "max_tail": settings.max_tail,
            "ids": settings.ids,
            "temperatures": [float(t) for t in settings.temperatures],
            "logit_std": settings.logit_std,
            "draws": settings.draws,
            **({"seed": settings.seed or 0} if settings.draws else {}),
        },
    )
    spec = replace(spec, codec=spec.codec | {"name": settings.codec})
    text_bytes = rows.text_bytes()
    if sampling is not None:
        text_bytes = text_bytes + sampling.expected_bytes
    plan = make_plan(rows.digest(), text_bytes, settings.shard_text_bytes)
    is_named = isinstance(dataset, (str, os.PathLike))
    provenance = {
        "teacher": teacher,
        "revision": settings.revision,
        "dataset": os.fspath(dataset) if is_named else type(dataset).__name__,
        # What is in memory now cannot be found again by its name.
        "settings": settings.recorded() if is_named else None,
        "tokens_per_batch": (
            settings.tokens_per_batch
            if isinstance(settings.tokens_per_batch, int)
            else DEFAULT_TOKENS_PER_BATCH
        ),
        # Of the package itself as it was imported: a checkout need not be installed.
        "versions": {"logitstore": logitstore.__version__}
        | {p: version(p) for p in ("torch", "transformers")},
    }
    reader = RowReader(render, limits) if sampling is None else PromptReader(render, limits)
    return Task(found, rows, reader, spec, plan, text_bytes, provenance, settings)
