"""Train and measure one student in this process.

A run of 150 steps takes seconds, so all that runs have in common is made once for a process: the
store, the tokenizers, the held-out text, and the examples of a dataset, which depend neither on the
seed nor on a weight.
"""

import hashlib
import math
import os
import pickle
import tempfile
import time
import warnings
from collections.abc import Iterator
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, cast
from unittest import mock

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerBase
from transformers import PreTrainedTokenizerFast as FastTokenizer

from distill.data.dataset import StoreDataset
from distill.data.example import Example, Store
from distill.evaluation.bits_per_byte import bits_per_byte
from distill.evaluation.readers import renderer_of
from distill.training import sources
from distill.training import trainer as training
from distill.training.config import CachedTeacherConfig
from logitstore import open_store
from logitstore.rows.dataset import load_rows
from logitstore.rows.renderer import Renderer
from tools.demo.settings import Shape
from tools.labels import parts
from tools.labels.renumbered import RenumberedStore
from tools.labels.settings import BALANCE, CE, RENUMBERED, Job, Rate, Scale
from tools.workers import Run

#: Datasets whose examples a process keeps: a few hundred MB.
_KEPT_DATASETS = 3


# ---- what runs have in common ----


@lru_cache
def tokenizer_of(folder: Path, name: str) -> PreTrainedTokenizerBase:
    """Load a tokenizer of the folder, with a token for padding."""
    tokenizer = FastTokenizer.from_pretrained(folder / "tokenizers" / name)
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    return cast(PreTrainedTokenizerBase, tokenizer)


@lru_cache
def store_of(folder: Path, name: str, student: str) -> Store:
    """Open a store of the folder, or see the store with the student's ids."""
    store = open_store(folder / "store")
    if name != RENUMBERED:
        return cast(Store, _InOrder(store, store.digest))
    whole = FastTokenizer.from_pretrained(store.tokenizer_path)
    return cast(Store, RenumberedStore(store, whole, tokenizer_of(folder, student)))


class _InOrder:
    """A store that gives its records at the boundaries of a student in the order of its own rows.

    The order depends on a store's digest, and contenders are compared on the same one.
    """

    def __init__(self, store: Any, digest: str) -> None:
        self._store, self.digest = store, digest

    def __len__(self) -> int:
        return len(self._store)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    def boundaries_of(self, *student: str) -> "_InOrder":
        return _InOrder(self._store.boundaries_of(*student), self.digest)


@lru_cache
def heldout_of(folder: Path, student: str) -> Renderer:
    """Tokenise the held-out text for a student, once."""
    rows = load_rows(str(folder / "heldout.jsonl"))
    render = renderer_of(rows, tokenizer_of(folder, student))
    rendered = [render(i) for i in range(len(rows))]

    class Kept(Renderer):
        def __call__(self, i: int) -> Any:
            return rendered[i]

    return Kept(rows, render.tokenizer, add_eos=False)


class _KeptExamples(StoreDataset):
    """A dataset that makes all examples at once, and only if no process has made them before."""

    kept: Path
    made: list[Example]

    def __getitems__(self, indices: Any) -> list[Example]:
        if not hasattr(self, "made"):
            self.made = self._loaded() if self.kept.exists() else self._made()
        return [self.made[i] for i in indices]

    def _loaded(self) -> list[Example]:
        with self.kept.open("rb") as file:
            return cast(list[Example], pickle.load(file))

    def _made(self) -> list[Example]:
        made = super().__getitems__(range(len(self)))
        part = self.kept.with_suffix(f".{os.getpid()}")
        with part.open("wb") as file:
            pickle.dump(made, file, pickle.HIGHEST_PROTOCOL)
        part.rename(self.kept)
        return made


_datasets: dict[str, StoreDataset] = {}


def _dataset(
    shared: Path, store: Store, student: Any, losses: Any = (), **settings: Any
) -> StoreDataset:
    """Stand in for the class of the trainer's dataset: give the one that was made before."""
    which = (str(store.path), store.spec.tokenizer_fingerprint, student.fingerprint)
    key = repr((which, losses, sorted(settings.items())))
    made = _datasets.pop(key, None)
    if made is None:
        made = _KeptExamples(store, student, losses, **settings)
        made.kept = shared / f"{hashlib.sha256(key.encode()).hexdigest()[:24]}.examples"
    _datasets[key] = made
    while len(_datasets) > _KEPT_DATASETS:
        del _datasets[next(iter(_datasets))]
    return made


# ---- students ----


def new_student(shape: Shape, tokenizer: PreTrainedTokenizerBase, seed: int) -> LlamaForCausalLM:
    """Make a Llama with random weights and tied embeddings; its heads are 32 wide."""
    torch.manual_seed(seed)
    heads = max(1, shape.width // 32)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=shape.width,
            intermediate_size=shape.width * 8 // 3,
            num_hidden_layers=shape.layers,
            num_attention_heads=heads,
            num_key_value_heads=heads,
            max_position_embeddings=1024,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=None,
            tie_word_embeddings=True,
        )
    )


def _start(folder: Path, job: Job, scale: Scale) -> LlamaForCausalLM:
    """Make the student that a job begins with."""
    student = job.setting.student
    model = new_student(scale.student, tokenizer_of(folder, student), job.seed)
    if job.setting.start == "trained":
        load_weights(model, parts.before_file(folder, student, job.seed))
    return model


def is_trained(run: Run, student: str, seed: int) -> bool:
    """Tell whether a student was trained before."""
    return parts.before_file(run.folder, student, seed).exists()


def train_before(run: Run, student: str, seed: int) -> float:
    """Train a student by cross-entropy on another text, and keep it; return its bits per byte."""
    tokenizer = tokenizer_of(run.folder, student)
    model: Any = new_student(run.scale.student, tokenizer, seed)
    model.to(run.device)
    texts = parts.texts_of(run.folder, "before")
    train_on_texts(model, tokenizer, texts, run.scale.before, run.scale.before_rows, seed)
    bits = bits_per_byte(model, heldout_of(run.folder, student)).bits_per_byte
    keep_weights(model, parts.before_file(run.folder, student, seed))
    return bits


def train_on_texts(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    texts: list[str],
    rate: Rate,
    rows: int,
    seed: int,
) -> None:
    """Train a model, on its device, by cross-entropy: AdamW, a short warm-up, then a cosine."""
    model.train()
    device = next(model.parameters()).device
    optimizer = torch.optim.AdamW(model.parameters(), rate.learning_rate, betas=(0.9, 0.95))
    batches = _batches(texts, tokenizer, rows, seed)
    for step in range(rate.steps):
        share = min((step + 1) / 50, 0.05 + 0.95 * math.cos(0.5 * math.pi * step / rate.steps))
        for group in optimizer.param_groups:
            group["lr"] = rate.learning_rate * share
        ids, labels = next(batches)
        model(input_ids=ids.to(device), labels=labels.to(device)).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)


def keep_weights(model: Any, made: Path) -> None:
    """Write a model's weights in bfloat16, whole or not at all."""
    made.parent.mkdir(exist_ok=True)
    part = made.with_suffix(".part")
    kept = {name: p.detach().cpu().bfloat16() for name, p in model.named_parameters()}
    save_file(kept, part)
    part.rename(made)


def load_weights(model: Any, held: Path) -> None:
    """Read weights that :func:`keep_weights` wrote."""
    weights = {name: each.float() for name, each in load_file(held).items()}
    model.load_state_dict(weights, strict=False)


def _batches(
    texts: list[str], tokenizer: PreTrainedTokenizerBase, rows: int, seed: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield (input_ids, labels) without end; the rows of a batch are of similar length."""
    encoded = [[*ids, tokenizer.eos_token_id] for ids in tokenizer(texts)["input_ids"]]
    generator = torch.Generator().manual_seed(seed)
    while True:
        order = torch.randperm(len(encoded), generator=generator).tolist()
        window = 64 * rows
        batches = [
            sorted(part, key=lambda i: len(encoded[i]))[start : start + rows]
            for first in range(0, len(order), window)
            for part in [order[first : first + window]]
            for start in range(0, len(part) - rows + 1, rows)
        ]
        for at in torch.randperm(len(batches), generator=generator).tolist():
            batch = [torch.tensor(encoded[i]) for i in batches[at]]
            labels = torch.nn.utils.rnn.pad_sequence(batch, batch_first=True, padding_value=-100)
            # Padding is behind all labels, so a causal student needs no mask.
            yield labels.clamp(min=0), labels


# ---- jobs ----


def run_job(run: Run, job: Job) -> dict[str, Any]:
    """Train and measure a student.

    Raises:
        TypeError, LogitStoreError: This version of `distill` cannot train it.
    """
    folder, scale, device = run.folder, run.scale, run.device
    began = time.perf_counter()
    model: Any = _start(folder, job, scale)
    heldout = heldout_of(folder, job.setting.student)
    with tempfile.TemporaryDirectory() as out, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        config = config_of(job, scale, out, folder, device)
        trainer = make_trainer(
            training.CachedTeacherTrainer,
            run.shared,
            model=model,
            args=config,
            store=store_of(folder, job.made.store, job.setting.student),
            processing_class=tokenizer_of(folder, job.setting.student),
        )
        made_s = time.perf_counter() - began
        trainer.train()
    trained_s = time.perf_counter() - began - made_s
    report = {k: v for k, v in trainer.last_report.items() if k.endswith(("_loss", "_fraction"))}
    return {
        "name": job.name,
        "bits_per_byte": bits_per_byte(model, heldout).bits_per_byte,
        "start": parts.start_of(folder, job.setting, job.seed),
        "learning_rate": config.learning_rate,
        "steps": config.max_steps,
        "device": device_name(device),
        "code": parts.code_digest(),
        "made_s": round(made_s, 2),
        "trained_s": round(trained_s, 2),
        "seconds": round(time.perf_counter() - began, 2),
        "last": {name: round(value, 5) for name, value in report.items()},
    }


def make_trainer(kind: Any, shared: Path, **given: Any) -> Any:
    """Make a trainer that says nothing, and whose examples all processes share.

    Args:
        kind: Its class.
        shared: A folder for the examples.
        **given: What the class takes.
    """
    with (
        mock.patch.object(sources, "StoreDataset", partial(_dataset, shared)),
        mock.patch.object(training, "warn_if_wrong", _nothing),
    ):
        trainer = kind(**given)
    for callback in ("ProgressCallback", "PrinterCallback"):
        _leave_out(trainer, callback)
    return trainer


def config_of(job: Job, scale: Scale, out: str, folder: Path, device: str) -> CachedTeacherConfig:
    """Make the settings of a job's training run."""
    rate = scale.rates[job.setting.rate]
    is_balanced = job.weight == BALANCE
    weight = job.made.factor * (1.0 if is_balanced else float(job.weight))
    return CachedTeacherConfig(
        output_dir=out,
        store=str(folder / "store"),
        loss=CE if job.made.loss == CE else f"{job.made.loss}:{weight:g}",
        balance=is_balanced,
        max_steps=rate.steps,
        learning_rate=rate.learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=min(20, rate.steps // 4),
        per_device_train_batch_size=scale.rows,
        seed=job.seed,
        data_seed=job.seed + 1_000 * job.made.other_order,
        logging_steps=max(1, rate.steps // 3),
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        use_cpu=device == "cpu",
        **job.made.options,
    )


def _nothing(_data: StoreDataset) -> None:
    """Stand in for the trainer's warning of wrong labels: they are what is measured here."""


def _leave_out(trainer: Any, callback: str) -> None:
    for each in list(trainer.callback_handler.callbacks):
        if type(each).__name__ == callback:
            trainer.remove_callback(each)


@lru_cache
def device_name(device: str) -> str:
    """Name the processor, since figures of two kinds differ by rounding."""
    return torch.cuda.get_device_name() if device == "cuda" else "cpu"
