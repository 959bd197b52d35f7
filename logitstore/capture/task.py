"""Decide all that a capture is to do, before anything is written or any weight is loaded.

`prepare` reads the teacher's configuration and tokenizer and the whole dataset (its text, not its
tokens), and answers in a `Task`: what the store will hold (spec), which rows go into which shard
(plan), and who turns a row into token sequences (reader). The same arguments give the same task in
every process and at every resume.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

import logitstore
from logitstore.capture.boundaries.asking import Boundaries
from logitstore.capture.boundaries.student import Student
from logitstore.capture.checked import AUTO, SERVER, TRANSFORMERS, VLLM
from logitstore.capture.sampling import Sampling
from logitstore.capture.sequences.prompts import PromptReader
from logitstore.capture.sequences.row_reader import RowReader
from logitstore.capture.sequences.windows import Limits, limits_of, rendering_of
from logitstore.capture.settings import CaptureSettings
from logitstore.capture.teacher.experts import View, check_experts
from logitstore.capture.teacher.gguf_file import about_file
from logitstore.capture.teacher.teacher import (
    Teacher,
    chosen_device,
    context_limit,
    default_device,
    find_teacher,
)
from logitstore.capture.text_sizes import TextSizes
from logitstore.console.launcher import Ranks
from logitstore.console.progress import byte_count
from logitstore.errors import InputError
from logitstore.format.hidden import EMBEDDING, HiddenSpec
from logitstore.format.hidden_codec import FP8
from logitstore.format.lm_head import weight_bytes
from logitstore.format.numpy_types import I64
from logitstore.format.spec import Plan, StoreSpec
from logitstore.rows.dataset import Rows, load_rows
from logitstore.rows.part import Part
from logitstore.rows.renderer import Renderer
from logitstore.rows.sources import names_of
from logitstore.rows.special_text import warn_of_special
from logitstore.rows.watch import Watch
from logitstore.text.middle import MiddleTokenizer
from logitstore.text.token_budget import DEFAULT_TOKENS_PER_BATCH
from logitstore.writing.digests import tokenizer_digests
from logitstore.writing.plan import make_plan, shard_text_with_hidden

if TYPE_CHECKING:
    from logitstore.rows.sources import DatasetArg

log = logging.getLogger(__name__)
_version_of = cache(version)  # which parses a package's whole description, of torch 40 KB


#: Of a batch for an engine that forms batches of its own: enough to keep it busy.
_ENGINE_TOKENS = 65_536


@dataclass(frozen=True)
class Task:
    """Describes a capture: what is read, how, and what is kept of it.

    Attributes:
        teacher: The teacher without its weights.
        rows: The dataset.
        watch: Tells whether its rows are still those that the plan has the digest of.
        reader: Turns a row into the token sequences that the teacher reads.
        spec: What the store will hold.
        plan: Which rows go into which shard.
        sizes: How much text the rows have; only of some, where only a part is at hand (`over`).
        provenance: How the store was made, for people; see `StoreHeader`.
        settings: The settings as the caller gave them.
        student: The student whose boundaries the teacher is asked about; None: nobody's.
    """

    teacher: Teacher
    rows: Rows
    watch: Watch
    reader: RowReader
    spec: StoreSpec
    plan: Plan
    sizes: TextSizes
    provenance: dict[str, Any]
    settings: CaptureSettings
    student: Student | None = None

    def budget(self, provenance: Mapping[str, Any]) -> int:
        """Return the padded tokens of a batch: as asked for, else as the store recorded."""
        asked = self.settings.tokens_per_batch
        return asked if isinstance(asked, int) else int(provenance["tokens_per_batch"])

    @property
    def wants_budget(self) -> bool:
        """Tell whether a new store has to measure how many tokens a batch may hold."""
        is_here = self.settings.engine == TRANSFORMERS  # others form batches of their own
        return is_here and self.settings.tokens_per_batch == AUTO

    def device(self, ranks: Ranks) -> torch.device:
        """Choose the device for this rank's teacher; with a device map, the one of its first layer.

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
        """Return what shards add to the progress: a unit for each byte of text and for each row."""
        return self.text_of(shards) + self.rows_of(shards)

    def rows_of(self, shards: Sequence[int]) -> int:
        """Count the rows of the given shards."""
        at = np.asarray(shards, np.int64)
        return int((self.plan.boundaries[at + 1] - self.plan.boundaries[at]).sum())

    def text_of(self, shards: Sequence[int]) -> int:
        """Return the bytes of text in the given shards."""
        return self.sizes.in_shards(shards)

    def text_of_rows(self, shard: int) -> I64:
        """Return the bytes of text in each row of a shard."""
        return self.sizes.of(range(*self.plan.shard_rows(shard)))

    def over(self, rows: Rows, sizes: TextSizes) -> "Task":
        """Return the same task for a part of the rows, which is all that it can read."""
        return replace(
            self,
            rows=rows,
            watch=Watch(rows),
            reader=self.reader.over(rows),
            sizes=sizes,
        )


def prepare(teacher: str, dataset: "DatasetArg", settings: CaptureSettings) -> Task:
    """Find teacher and dataset; decide what the store will hold and how it is cut into shards.

    Raises:
        InputError: A model, dataset or setting that cannot be used.
    """
    settings.check()
    _check_device(settings)
    found_teacher, limits = _found(teacher, settings)
    rows = _rows(dataset, settings)
    watch = Watch(rows)
    student, reader = _readers(rows, found_teacher, limits, settings)
    warn_of_special(rows, reader.render)
    spec = _spec(found_teacher, reader, settings)
    if kept := _weights_kept(spec):
        log.warning(
            "%s: %s kept, which are weights of the teacher: whoever is given the store has them, "
            "under the teacher's licence.",
            teacher,
            kept,
        )
    text_bytes = _text_bytes(rows, settings)
    size = settings.shard_text_bytes
    if size is None and spec.hidden is not None:
        size = shard_text_with_hidden(spec.hidden)
    plan = make_plan(watch.digest, text_bytes, size)
    provenance = _provenance(teacher, dataset, settings)
    sizes = TextSizes.of_all(text_bytes, plan)
    return Task(
        found_teacher, rows, watch, reader, spec, plan, sizes, provenance, settings, student
    )


def prepare_part(
    teacher: str,
    part: Part,
    settings: CaptureSettings,
    plan: Plan,
    provenance: dict[str, Any],
) -> Task:
    """Prepare what another process has planned, where only a part of the rows is at hand.

    The dataset is neither looked for nor read again. The spec is that of the teacher which is found
    here: whoever calls compares it with the one that was planned. No sizes are known.

    Raises:
        InputError: A model or setting that cannot be used here.
    """
    settings.check()
    _check_device(settings)
    found, limits = _found(teacher, settings)
    rows = part.rows()
    student, reader = _readers(rows, found, limits, settings)
    spec = _spec(found, reader, settings)
    sizes = TextSizes()
    return Task(found, rows, Watch(rows), reader, spec, plan, sizes, provenance, settings, student)


def _check_device(settings: CaptureSettings) -> None:
    """Reject a device that is not there, before the teacher's files are read."""
    if settings.device is None:
        return
    chosen_device(settings.device)
    if settings.device_map is not None:
        raise InputError(
            f"--device {settings.device} and --device-map {settings.device_map}: each says "
            "where the teacher runs. Leave one of the two out."
        )


def _found(teacher: str, settings: CaptureSettings) -> tuple[Teacher, Limits]:
    found = _teacher(teacher, settings)
    max_length = context_limit(found, settings.max_length)
    prefix_length = found.tokenizer.prefix_length
    return found, limits_of(max_length, settings.overflow, settings.stride, prefix_length)


def _readers(
    rows: Rows, teacher: Teacher, limits: Limits, settings: CaptureSettings
) -> tuple[Student | None, RowReader]:
    student = _student(rows, teacher, settings)
    return student, _reader(rows, teacher, limits, settings, student)


def _teacher(name: str, settings: CaptureSettings) -> Teacher:
    """Find the teacher, without its weights, and check that it has `top_k` tokens."""
    teacher = find_teacher(
        name,
        revision=settings.revision,
        dtype=settings.dtype,
        trust_remote_code=settings.trust_remote_code,
        quantization=settings.quantization,
        attn_implementation=settings.attn_implementation,
        device_map=settings.device_map,
        gguf_file=settings.gguf_file,
        is_elsewhere=settings.engine == SERVER,
    )
    if settings.top_k > teacher.vocab_size:
        raise InputError(
            f"--top-k is {settings.top_k}, but {name} has a vocabulary of {teacher.vocab_size}. "
            f"Use --top-k {teacher.vocab_size} or less."
        )
    if settings.experts is not None:
        check_experts(name, teacher.config)
    return teacher


def _rows(dataset: "DatasetArg", settings: CaptureSettings) -> Rows:
    return load_rows(
        dataset,
        split=settings.split,
        config_name=settings.config_name,
        text_column=settings.text_column,
        prompts=settings.generate,
        private=True,
    )


def _student(rows: Rows, teacher: Teacher, settings: CaptureSettings) -> Student | None:
    if settings.boundaries_of is None:
        return None
    text = settings.supervised_text or "content"
    kind = "tokens" if settings.parse_special else rows.kind
    return Student.load(settings.boundaries_of, kind, teacher.tokenizer, text)


def _reader(
    rows: Rows,
    teacher: Teacher,
    limits: Limits,
    settings: CaptureSettings,
    student: Student | None,
) -> RowReader:
    """Make what turns rows into sequences; with `generate`, rows that have only a prompt."""
    render = Renderer.make(
        rows,
        teacher.transformers_tokenizer,
        teacher.tokenizer,
        supervise=settings.supervise,
        supervised_text=settings.supervised_text,
        template_path=settings.chat_template_path,
        template_kwargs=settings.chat_template_kwargs,
        prompts=settings.generate,
        parse_special=settings.parse_special,
    )
    asked = None
    if student is not None:
        middle = MiddleTokenizer(teacher.transformers_tokenizer, teacher.tokenizer)
        asked = Boundaries(
            student, teacher.tokenizer, middle, teacher.context_length, rows.where
        ).asked
    return (PromptReader if settings.generate else RowReader)(render, limits, asked)


def _text_bytes(rows: Rows, settings: CaptureSettings) -> I64:
    """Count the text of each row, with the longest completion that may be written for it."""
    sampling = settings.sampling
    return rows.text_bytes() + (0 if sampling is None else sampling.expected_bytes)


def _spec(teacher: Teacher, reader: RowReader, settings: CaptureSettings) -> StoreSpec:
    """Describe the store's content: two captures with equal specs give equal records.

    A key stands only where it has something to say: stores from before a setting existed keep
    their digests, and can be resumed.
    """
    sampling, limits = settings.sampling, reader.limits
    engine = None if settings.engine == TRANSFORMERS else settings.engine
    spec = StoreSpec(
        teacher={
            "fingerprint": teacher.fingerprint,
            "architecture": teacher.architecture,
            "dtype": teacher.dtype,
            "vocab_size": teacher.vocab_size,
            **_given("quantization", teacher.quantization or _changes(settings)),
            **_given("engine", engine),
            **_given("experts", _experts(settings)),
        },
        tokenizer={
            "fingerprint": teacher.tokenizer.fingerprint,
            "size": teacher.tokenizer.size,
            "eos_ids": list(reader.tokenizer.eos_ids),
            "files": tokenizer_digests(teacher.tokenizer_files),
        },
        rendering={
            **reader.render.settings,
            "max_length": limits.max_length,
            **rendering_of(limits),
            **_given("generate", None if sampling is None else _written(sampling, reader)),
        },
        capture={
            "top_k": settings.top_k,
            "max_tail": settings.max_tail,
            "ids": settings.ids,
            "temperatures": [float(t) for t in settings.temperatures],
            "logit_std": settings.logit_std,
            "draws": settings.draws,
            **_given("seed", (settings.seed or 0) if settings.draws else None),
            **_given("missing", ["entropy"] if settings.says_lists else None),
            **_given("hidden", _hidden(teacher, settings)),
        },
    )
    return replace(spec, codec=spec.codec | {"name": settings.codec})


def _experts(settings: CaptureSettings) -> dict[str, Any] | None:
    """Describe which experts of a mixture the teacher uses; None: as its routers choose."""
    if settings.experts is None:
        return None
    seed = settings.seed or 0
    return View(settings.experts, settings.expert_sample or 0.0, seed).recorded()


def _hidden(teacher: Teacher, settings: CaptureSettings) -> dict[str, Any] | None:
    """Describe which hidden states are kept; None: none."""
    layers = settings.hidden_layers
    if not layers:
        return None
    return HiddenSpec(
        settings.hidden_dtype or FP8,
        teacher.hidden_width,
        settings.hidden_context,
        teacher.embedding_width if EMBEDDING in layers else None,
        settings.with_lm_head,
    ).recorded()


def _weights_kept(spec: StoreSpec) -> str:
    """Say which weights of the teacher a store keeps; empty: none."""
    hidden = spec.hidden
    if hidden is None:
        return ""
    rows = "its rows of the input embedding are" if hidden.embedding_width is not None else ""
    size = weight_bytes(spec.vocab_size, hidden.width, spec.teacher["dtype"])
    head = f"its output embedding ({byte_count(size)}) is" if hidden.has_head else ""
    return " and ".join(filter(None, (rows, head)))


def _changes(settings: CaptureSettings) -> dict[str, Any] | None:
    """Return options of an engine that change what the teacher says."""
    return settings.vllm_options.changes() if settings.engine == VLLM else None


def _written(sampling: Sampling, reader: RowReader) -> dict[str, Any]:
    """Describe how completions are written; with what ends them, if that is not EOS alone."""
    ends = sorted(reader.tokenizer.eos_ids)
    is_plain = ends == [reader.tokenizer.eos_token_id]
    return {**sampling.recorded(), **({} if is_plain else {"ends": ends})}


def _given(name: str, value: object) -> dict[str, Any]:
    """Make an entry of a dict, or none where the value is None."""
    return {} if value is None else {name: value}


def _provenance(teacher: str, dataset: "DatasetArg", settings: CaptureSettings) -> dict[str, Any]:
    """Record how the store was made, for people and for `logitstore repair --capture`."""
    named = names_of(dataset)
    asked = settings.tokens_per_batch
    is_vllm = settings.engine == VLLM
    return {
        "teacher": teacher,
        "revision": settings.revision,
        "dataset": type(dataset).__name__ if named is None else " + ".join(named),
        **_given("gguf", settings.gguf_file and about_file(teacher, settings.gguf_file)),
        **_given("files", named if named is not None and len(named) > 1 else None),
        # A dataset in memory cannot be found again by its name, so nothing can be run again.
        "settings": settings.recorded() if named is not None else None,
        **_given("engine_args", (list(settings.engine_args) or None) if is_vllm else None),
        "tokens_per_batch": asked if isinstance(asked, int) else _default_tokens(settings),
        "versions": versions(),
    }


def versions() -> dict[str, str]:
    """Return the versions of what decides records, as a store has them."""
    # Of the package itself as it was imported: a checkout need not be installed.
    own = {"logitstore": logitstore.__version__}
    return own | {p: _version_of(p) for p in ("torch", "transformers")}


def _default_tokens(settings: CaptureSettings) -> int:
    """Return how many tokens a batch has."""
    return DEFAULT_TOKENS_PER_BATCH if settings.engine == TRANSFORMERS else _ENGINE_TOKENS
