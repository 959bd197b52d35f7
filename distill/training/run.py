"""One training run from flags to a finished student folder.

The folder is an ordinary transformers one (weights, tokenizer) with `results.json` beside them: the
run as one JSON object, which `distill evaluate` adds its figures to.
"""

import sys
import time
from pathlib import Path
from typing import Any

from distill.data.joined import JoinedDataset, parts_of
from distill.data.left_out import Usable
from distill.data.second_text import TwoTexts
from distill.losses import advice
from distill.losses.advice import AUTO, ONE_TOKENIZER
from distill.report.curves import CURVES_FILE, can_draw, draw
from distill.report.model_card import hub_id
from distill.report.results import RunObject, check_writable, write_results
from distill.student.adapters import settings_of
from distill.student.arguments import StudentArguments
from distill.student.loading import make_student
from distill.training.checkpoints import newest_whole
from distill.training.config import CachedTeacherConfig
from distill.training.log_table import show_as_table
from distill.training.preflight import say
from distill.training.pushing import teacher_of
from distill.training.several_stores import open_stores
from distill.training.summary import beginning
from distill.training.trainer import CachedTeacherTrainer
from logitstore.console.memory import peak_rss_bytes
from logitstore.errors import InputError

#: Flags that are said of a run only where they were given.
_CHOSEN = ("rows", "train_top_k", "token_filter", "token_weights", "kd_schedule")


def train(config: CachedTeacherConfig, student: StudentArguments) -> RunObject:
    """Train the student, save it to `config.output_dir`, and return the run object.

    Raises:
        LogitStoreError: Before anything is written, for whatever could not be trained on.
    """
    started = time.perf_counter()
    folder = Path(str(config.output_dir))
    if student.lora_merge and (config.fsdp or config.deepspeed):
        raise InputError(
            "--lora_merge: no process has the whole student with --fsdp or --deepspeed. Leave it "
            "out, and merge the adapters that are saved with peft's merge_and_unload."
        )
    if config.should_save:
        _check_output(folder, resuming=bool(config.checkpoint))
    if config.checkpoint is True:
        _choose_checkpoint(config, folder)
    stores = open_stores(config.store, allow_partial=config.allow_partial)
    model, tokenizer = make_student(student, config.seed)
    adapters = settings_of(model)
    trainer = CachedTeacherTrainer(model, config, list(stores.each), processing_class=tokenizer)
    trainer.is_new = trainer.is_new or bool(student.student_config)
    show_as_table(trainer)
    if config.process_index == 0:
        print(beginning(trainer, student), file=sys.stderr)
    if config.loss == AUTO and config.process_index == 0:
        print(_chosen(trainer.args.loss), file=sys.stderr)
    if trainer.ends_listed and config.process_index == 0:
        print(trainer.ends_listed, file=sys.stderr)
    config = trainer.args
    caution = advice.caution(
        trainer.weights,
        "new" if trainer.is_new else "trained",
        one_tokenizer=trainer.data.is_one_tokenizer,
        learning_rate=config.learning_rate,
    )
    if caution and config.process_index == 0:
        print(f"--loss {config.loss}: {caution}.", file=sys.stderr)
    trained = trainer.train(config.checkpoint)
    # Before evaluation, which --bf16_full_eval does in other weights.
    if student.lora_merge:
        _save_merged(trainer, folder)
    else:
        trainer.save_model(_internal_call=True)  # it is pushed once it has its card
    trainer.save_state()
    evaluated = trainer.evaluate() if trainer.eval_dataset is not None else {}

    metrics = {**trainer.last_report, **trained.metrics, **evaluated}
    run: RunObject = {
        "name": config.run_name or folder.resolve().name,
        "seed": config.seed,
        "steps": trainer.state.global_step,
        "time_s": round(time.perf_counter() - started, 3),
        "train_s": round(metrics["train_runtime"], 3),
        "peak_rss_bytes": peak_rss_bytes(),
        "tokens_per_second": round(metrics.pop("train_tokens_per_second"), 1),
        "loss": config.loss,
        "ce_weight": config.ce_weight,
        **config.loss_options,
        "balance": config.balance,
        "uncovered": config.uncovered if config.loss_weights else None,
        "model_name_or_path": student.model_name_or_path or None,
        "base_model": hub_id(student.model_name_or_path),
        "student_config": student.student_config,
        "lora": None if student.lora_merge else adapters,
        **({"lora_merged": adapters} if student.lora_merge else {}),
        "store": config.store,
        "store_digest": trainer.stores.digest,
        **_of_several(trainer, config.teachers),
        "boundaries": config.boundaries,
        **{name: getattr(config, name) for name in _CHOSEN if getattr(config, name) is not None},
        "teacher": teacher_of(stores.each[0]),
        "sequences": len(trainer.data),
        "sequences_without_records": trainer.data.without_records,
        "usable": _usable(trainer.usable[0]),
        "self_test": trainer.self_test or None,
        "sequences_skipped": int(metrics.pop("train_skipped_sequences")),
        "sequences_template_changed_text": int(metrics.pop("train_template_changed_text")),
        "sequences_unaligned": int(metrics.pop("train_unaligned_sequences")),
        "metrics": metrics,
    }
    if config.should_save:
        write_results(folder, run)
        if can_draw():
            draw(trainer.state.log_history, folder / CURVES_FILE)
        else:
            line = (
                f"no {CURVES_FILE}: matplotlib is not installed (pip install 'logitstore[report]')"
            )
            print(line, file=sys.stderr)
        trainer.run = run
        trainer.create_model_card()
    for part, usable in zip(parts_of(trainer.data), trainer.usable, strict=True):
        if config.process_index == 0 and not usable.is_all:
            say(usable, part.store.path)  # again: what was said before step 1 is far above
    if config.push_to_hub:
        trainer.push_folder()
    if config.world_size > 1:
        trainer.end()
    return run


def _save_merged(trainer: CachedTeacherTrainer, folder: Path) -> None:
    """Save the whole model that the adapters make of the student, and its tokenizer."""
    student: Any = trainer.model
    tokenizer: Any = trainer.processing_class
    merged = student.merge_and_unload()  # in place: evaluation is of the same weights
    if trainer.args.should_save:
        merged.save_pretrained(folder)
        tokenizer.save_pretrained(folder)


def _chosen(loss: str) -> str:
    """Say which loss a run has that names none."""
    both = "one tokenizer" if loss == ONE_TOKENIZER else "different tokenizers"
    return f"--loss {loss}, the default where teacher and student have {both}"


def _of_several(trainer: CachedTeacherTrainer, teachers: str) -> dict[str, Any]:
    """Say of each of several stores what was learnt of it; nothing of one store alone."""
    data = trainer.data
    if isinstance(data, TwoTexts):
        second = data.second.store
        named = {"store": str(second.path), "store_digest": second.digest}
        return {"cot_store": named | data.facts()}
    if not isinstance(data, JoinedDataset):
        return {}
    parts = zip(data.parts, trainer.stores.weights, data.facts(), trainer.usable, strict=True)
    each = [
        {
            "store": str(part.store.path),
            "store_digest": part.store.digest,
            "weight": weight,
            "teacher": teacher_of(part.store),
            **facts,
            "usable": _usable(usable),
        }
        for part, weight, facts, usable in parts
    ]
    return {"teachers": teachers, "stores": each}


def _usable(usable: Usable) -> dict[str, Any]:
    """Describe what was used, without its example.

    A student's folder is passed on, and this would be text of the store.
    """
    return {name: value for name, value in usable.facts().items() if name != "example"}


def _choose_checkpoint(config: CachedTeacherConfig, folder: Path) -> None:
    """Go on from the newest whole checkpoint, and say so if a newer one is there in part.

    If there is none, the check of checkpoints says what to do.
    """
    whole, parts = newest_whole(folder)
    if whole is None:
        return
    config.resume_from_checkpoint = str(whole)
    if parts and config.process_index == 0:
        names = ", ".join(path.name for path in parts)
        print(
            f"{folder}: {names} was not saved whole (the run ended meanwhile), so this goes on "
            f"from {whole.name}.",
            file=sys.stderr,
        )


def _check_output(folder: Path, *, resuming: bool) -> None:
    if folder.exists() and not folder.is_dir():
        raise InputError(f"--output_dir {folder}: is a file. Name a folder, new or empty.")
    check_writable(folder, "--output_dir")
    entries = sorted(entry.name for entry in folder.iterdir()) if folder.exists() else []
    if not entries or resuming:
        return
    if any(name.startswith("checkpoint-") for name in entries):
        raise InputError(
            f"--output_dir {folder}: holds checkpoints of an earlier run. Go on from the last one "
            "with --resume_from_checkpoint true, or name another folder."
        )
    raise InputError(
        f"--output_dir {folder}: expected a new or empty folder, found {len(entries)} entries "
        f"({', '.join(entries[:3])}{', …' if len(entries) > 3 else ''}). Name another folder, or "
        "delete it."
    )
