"""Heal, train and measure one student in this process (:class:`tools.workers.Work`).

What is measured, on modules that no student and no store has seen:

    bits_per_byte       of the text; of the teacher's answers
    calibration         expected calibration error of the student on the teacher's records there
    token_f1            of the student's own answers against the teacher's, and as `rule_…` against
    exact_match         those of the rules
"""

import tempfile
import time
import warnings
from functools import lru_cache
from pathlib import Path
from typing import Any, cast

import torch
from transformers import AutoTokenizer, LlamaForCausalLM, PreTrainedTokenizerBase

from distill.data.example import Store
from distill.evaluation import against_store, answers
from distill.evaluation.bits_per_byte import bits_per_byte
from distill.evaluation.readers import reader_of, renderer_of
from distill.training.config import CachedTeacherConfig
from distill.training.trainer import CachedTeacherTrainer
from logitstore import open_store
from logitstore.rows.dataset import load_rows
from logitstore.rows.renderer import Renderer
from tools.labels.parts import code_digest, texts_of
from tools.labels.renumbered import RenumberedStore
from tools.labels.students import (
    device_name,
    keep_weights,
    load_weights,
    make_trainer,
    new_student,
    train_on_texts,
)
from tools.live_teacher import LiveTeacherTrainer
from tools.real import parts
from tools.real.bodies import embedding_for, same_tokens, student_of
from tools.real.settings import TEACHER, UNTRAINED, Contender, Job, Scale, Setting
from tools.real.sizes import bytes_per_token
from tools.workers import Run

_TOKENS_PER_BATCH = 4096


# ---- what runs have in common ----


@lru_cache
def tokenizer_of(folder: Path, student: str) -> PreTrainedTokenizerBase:
    """Load a student's tokenizer; `whole` is the teacher's."""
    name = "foreign" if student == "new" else student
    return cast(
        PreTrainedTokenizerBase, AutoTokenizer.from_pretrained(folder / "tokenizers" / name)
    )


@lru_cache
def store_of(folder: Path, name: str, student: str, scale: Scale) -> Store:
    """Open a store; one that a trimmed student of the teacher's tokenizer reads has its ids."""
    store = open_store(parts.store_path(folder, name))
    if student != "pruned" or not scale.is_trimmed:
        return store
    whole, own = tokenizer_of(folder, "whole"), tokenizer_of(folder, student)
    return cast(Store, RenumberedStore(store, whole, own))


@lru_cache
def _bytes_per_token(folder: Path, data: str, top_k: int | None) -> float:
    return round(bytes_per_token(open_store(parts.store_path(folder, data)), top_k), 1)


@lru_cache(1)
def teacher_of(folder: Path, scale: Scale) -> LlamaForCausalLM:
    """Load the teacher, in float32."""
    return LlamaForCausalLM.from_pretrained(parts.teacher_of(folder, scale), dtype=torch.float32)


@lru_cache(2)
def embedding_of(folder: Path, student: str, scale: Scale) -> torch.Tensor:
    """Make the embedding of a student of the teacher."""
    teacher, whole = teacher_of(folder, scale), tokenizer_of(folder, "whole")
    own = tokenizer_of(folder, student)
    if student == "pruned":
        embedding: Any = teacher.get_input_embeddings()
        weights: torch.Tensor = embedding.weight.detach()
        return weights[list(same_tokens(whole, own))] if scale.is_trimmed else weights
    return embedding_for(teacher, whole, own)


@lru_cache(1)
def live_teacher(folder: Path, scale: Scale, device: str) -> LlamaForCausalLM:
    """Load the teacher with the vocabulary of the pruned student."""
    own, embedding = tokenizer_of(folder, "pruned"), embedding_of(folder, "pruned", scale)
    made: Any = student_of(teacher_of(folder, scale), own, embedding, 1)
    return made.to(device).eval()  # type: ignore[no-any-return]


@lru_cache
def heldout_of(folder: Path, student: str, data: str) -> Renderer:
    """Read what students are measured on, in the words of a student."""
    name = "answers" if data == "answers" else "heldout"
    return renderer_of(load_rows(str(folder / f"{name}.jsonl")), tokenizer_of(folder, student))


# ---- before ----


def is_trained(run: Run, student: str, number: int) -> bool:
    """Tell whether a student is healed."""
    return parts.before_file(run.folder, student, number).exists()


def train_before(run: Run, student: str, number: int) -> float:
    """Heal a student of the teacher by cross-entropy, and keep it; return its bits per byte."""
    scale: Scale = run.scale
    tokenizer = tokenizer_of(run.folder, student)
    model: Any = _of_teacher(run.folder, student, scale)
    model.to(run.device)
    texts = texts_of(run.folder, "before")
    train_on_texts(model, tokenizer, texts, scale.heal, scale.rows, number)
    bits = bits_per_byte(model, heldout_of(run.folder, student, "text")).bits_per_byte
    keep_weights(model, parts.before_file(run.folder, student, number))
    return bits


def _of_teacher(folder: Path, student: str, scale: Scale) -> LlamaForCausalLM:
    embedding = embedding_of(folder, student, scale)
    own = tokenizer_of(folder, student)
    return student_of(teacher_of(folder, scale), own, embedding, scale.stride)


def _start(run: Run, job: Job) -> Any:
    """Make the student that a job begins with."""
    student, scale = job.setting.student, run.scale
    if job.contender == TEACHER:
        return live_teacher(run.folder, scale, run.device)
    if student == "new":
        return new_student(scale.new, tokenizer_of(run.folder, student), job.seed)
    model = _of_teacher(run.folder, student, scale)
    load_weights(model, parts.before_file(run.folder, student, job.heal))
    return model


# ---- jobs ----


def run_job(run: Run, job: Job) -> dict[str, Any]:
    """Train and measure a student.

    Raises:
        TypeError, LogitStoreError: This version of `distill` cannot train it.
    """
    began = time.perf_counter()
    model, scale = _start(run, job).to(run.device), run.scale
    rate = scale.rates[job.setting.rate]
    steps = 0 if job.contender in (UNTRAINED, TEACHER) else rate.steps
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        last = _trained(run, job, model) if steps else {}
        trained_s = time.perf_counter() - began
        measured = measure(run.folder, job.setting, scale, model)
    return {
        "name": job.name,
        **measured,
        "start": parts.start_of(run.folder, job.setting, job.heal),
        "learning_rate": rate.learning_rate,
        "steps": steps,
        "bytes_per_token": _bytes_per_token(
            run.folder, job.setting.data, job.made.options.get("train_top_k")
        ),
        "device": device_name(run.device),
        "code": code_digest(),
        "trained_s": round(trained_s, 2),
        "seconds": round(time.perf_counter() - began, 2),
        "last": {name: round(value, 5) for name, value in last.items()},
    }


def _trained(run: Run, job: Job, model: Any) -> dict[str, float]:
    """Train the student; return what was logged last."""
    folder, student, made = run.folder, job.setting.student, job.made
    name = job.setting.data if made.share == 1 else f"{job.setting.data}-half"
    with tempfile.TemporaryDirectory() as out:
        given: dict[str, Any] = {
            "model": model,
            "args": config_of(job, made, run.scale, out, run.device),
            "store": store_of(folder, name, student, run.scale),
            "processing_class": tokenizer_of(folder, student),
        }
        kind: Any = CachedTeacherTrainer
        if made.live is not None:
            given |= {"teacher": live_teacher(folder, run.scale, run.device)}
            given |= {"top_k": made.live or None}
            kind = LiveTeacherTrainer
        trainer = make_trainer(kind, run.shared, **given)
        trainer.train()
    report = trainer.last_report
    return {k: v for k, v in report.items() if k.endswith(("_loss", "_fraction"))}


def config_of(
    job: Job, made: Contender, scale: Scale, out: str, device: str
) -> CachedTeacherConfig:
    """Make the settings of a job's training run."""
    rate = scale.rates[job.setting.rate]
    return CachedTeacherConfig(
        output_dir=out,
        store="given",
        loss=made.loss,
        max_steps=rate.steps,
        learning_rate=rate.learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=min(20, rate.steps // 4),
        per_device_train_batch_size=scale.rows,
        seed=job.seed,
        data_seed=job.seed,
        logging_steps=max(1, rate.steps // 3),
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        use_cpu=device == "cpu",
        bf16=device == "cuda",
        max_lost=1.0,  # what a student cannot read is counted on the page, not an error
        **made.options,
    )


def measure(folder: Path, setting: Setting, scale: Scale, model: Any) -> dict[str, float]:
    """Measure a student on what no other part has anything of."""
    student, data = setting
    model.eval()
    render = heldout_of(folder, student, data)
    store = store_of(folder, f"heldout-{data}", student, scale)
    reader = reader_of(store, model, tokenizer_of(folder, student))
    bits = bits_per_byte(model, render, tokens_per_batch=_TOKENS_PER_BATCH)
    judged = against_store.judge(
        model, store, reader, ["calibration"], tokens_per_batch=_TOKENS_PER_BATCH
    )
    found = {"bits_per_byte": bits.bits_per_byte, "calibration": judged["calibration_error"]}
    return found | (_answered(folder, student, scale, model, render) if data == "answers" else {})


def _answered(
    folder: Path, student: str, scale: Scale, model: Any, render: Renderer
) -> dict[str, float]:
    """Let a student answer, and compare with the teacher's answers and with the rules'."""
    asked = answers.questions(render)
    written = answers.write_answers(
        model,
        tokenizer_of(folder, student),
        asked,
        pad_id=render.tokenizer.pad_id,
        max_new_tokens=scale.answer_tokens,
        tokens_per_batch=_TOKENS_PER_BATCH,
        ends=render.tokenizer.eos_ids,
    )
    rows = parts.read_jsonl(folder / "answers.jsonl")
    metrics = ("token_f1", "exact_match")
    teachers = answers.score_answers(written, [each.references for each in asked], metrics)
    rules = answers.score_answers(written, [[rows[each.row]["rule"]] for each in asked], metrics)
    return teachers | {f"rule_{name}": value for name, value in rules.items()}
