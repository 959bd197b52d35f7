"""Checks before a run begins, so that a bad request costs no time and leaves no files."""

import hashlib
import json
import logging
import zipfile
from operator import itemgetter
from pathlib import Path
from typing import Any, Protocol

from safetensors import safe_open
from transformers import PreTrainedModel
from transformers.trainer_utils import IntervalStrategy, get_last_checkpoint

from distill.data.dataset import StoreDataset
from distill.data.left_out import (
    MOST_LOOKED_AT,
    Usable,
    check_usable,
    left_out_lines,
    usable,
)
from distill.losses.requirements import Described, teacher_name
from distill.student.loading import check_embeddings
from distill.training.config import CachedTeacherConfig
from logitstore.console.counts import counted
from logitstore.errors import InputError, MismatchError, in_a_line
from logitstore.storage.paths import StorePath
from logitstore.text.tokenizer import ByteTokenizer

log = logging.getLogger(__name__)

#: A file in every checkpoint, with the store and the settings that it was trained with.
ORIGIN_FILE = "distill.json"
_ORIGIN_KEYS = ("store_digest", "sequences")
#: Flags that decide what the steps of a run compute, besides the options of losses. The length of
#: a run is not among them: it may be changed.
_COMPUTED = (
    "boundaries",
    "loss",
    "ce_weight",
    "balance",
    "uncovered",
    "train_top_k",
    "token_filter",
    "token_weights",
    "kd_schedule",
    "max_length",
    "chat_template_kwargs",
    "seed",
    "data_seed",
    "train_sampling_strategy",
    "max_grad_norm",
    "neftune_noise_alpha",
    "bf16",
    "fp16",
)
#: Flags whose values a checkpoint restores with the states of optimizer and schedule: a new value
#: would be silently replaced by the old one.
_RESTORED = (
    "optim",
    "learning_rate",
    "weight_decay",
    "adam_beta1",
    "adam_beta2",
    "adam_epsilon",
    "lr_scheduler_type",
    "lr_scheduler_kwargs",
    "warmup_steps",
    "one_cycle",
)
#: Flags that are restored only with a schedule that depends on the number of steps.
_LENGTHS = ("max_steps", "num_train_epochs")


def check_nothing_to_evaluate(args: CachedTeacherConfig) -> None:
    """Reject flags that ask for an evaluation when there is no store for it.

    Raises:
        InputError: A flag asks for one.
    """
    for flag, is_asked in (
        # `eval_strategy` is an enum that is also a string, though its annotation says str.
        (
            f"--eval_strategy {IntervalStrategy(args.eval_strategy).value}",
            args.eval_strategy != "no",
        ),
        ("--eval_on_start", args.eval_on_start),
        ("--do_eval", args.do_eval),
    ):
        if is_asked:
            raise InputError(f"{flag}: there is no text to evaluate on. Add --eval_store.")


def has_teacher_of(one: Described, other: Described) -> bool:
    """Tell whether two stores have one teacher.

    One from the hub and the same one in a folder have different fingerprints, so a teacher counts
    as another one only if its name or its tokenizer differs too.
    """
    if one.spec.teacher.get("fingerprint") == other.spec.teacher.get("fingerprint"):
        return True
    names = {Path(teacher_name(store)).name for store in (one, other)}
    return len(names) == 1 and one.spec.tokenizer_fingerprint == other.spec.tokenizer_fingerprint


def check_eval_store(held_out: Described, store: Described, args: CachedTeacherConfig) -> None:
    """Check that figures on held-out text can be compared with those of training.

    Evaluating on the training store is allowed, to watch a student overfit, but logs a warning.

    Raises:
        MismatchError: The held-out store has another teacher.
    """
    if held_out.digest == store.digest:
        log.warning(
            "--eval_store %s: holds what --store does, so its figures say how well the student "
            "knows its training text, and nothing about other text.",
            held_out.path,
        )
    held_out_teacher, teacher = (s.spec.teacher.get("fingerprint") for s in (held_out, store))
    names = [teacher_name(s) for s in (held_out, store)]
    if args.loss_weights and not has_teacher_of(held_out, store):
        raise MismatchError(
            f"{held_out.path}: its teacher is {names[0]} ({str(held_out_teacher)[:8]}…), but that "
            f"of {store.path} is {names[1]} ({str(teacher)[:8]}…): --loss {args.loss} would be "
            "measured against one and trained against the other. Capture the held-out text with "
            "the teacher of the training store, or leave --eval_store out."
        )


class Losing(Protocol):
    """How much a run may lose of its store, and which of its processes says so."""

    @property
    def max_lost(self) -> float: ...
    @property
    def process_index(self) -> int: ...


def look_at(data: StoreDataset, args: Losing, flag: str = "--store") -> Usable:
    """Count what the student can use of a store, say what it cannot, and reject too much of that.

    Raises:
        InputError: It can use nothing, or loses more than `--max_lost`.
    """
    found = usable(data, MOST_LOOKED_AT)
    check_usable(found, data.store.path, args.max_lost, flag)
    if args.process_index == 0:
        say(found, data.store.path, flag)
    return found


def say(found: Usable, store: StorePath, flag: str = "--store") -> None:
    """Log the table of what a student cannot use of a store; as a warning, if it could be."""
    lines = left_out_lines(found)
    if lines:
        level = logging.INFO if found.is_all else logging.WARNING
        log.log(level, "%s %s:\n%s", flag, store, "\n".join(lines))


def check_student(
    model: PreTrainedModel, args: CachedTeacherConfig, student: ByteTokenizer
) -> None:
    """Reject what would fail with an index error, or give wrong numbers, in the first step."""
    if args.n_gpu > 1:
        raise InputError(
            f"{args.n_gpu} GPUs but one process: torch.nn.DataParallel would copy the model for "
            f"every batch. Start `torchrun --nproc-per-node {args.n_gpu} -m distill train …`, or "
            "set CUDA_VISIBLE_DEVICES to one device."
        )
    check_embeddings(model, student)


def check_checkpoint(
    checkpoint: str | bool, output_dir: str, origin: dict[str, Any], store: StorePath
) -> None:
    """Check that a run resumed from a checkpoint sees the same data with the same settings.

    Args:
        checkpoint: The folder; True for the last one in `output_dir`.
        output_dir: The output folder of the run.
        origin: The run's store, rows and settings, in the form that `ORIGIN_FILE` has.
        store: The run's store, for messages.

    Raises:
        InputError: There is no checkpoint, or a file of it is damaged.
        MismatchError: It was trained on other data or with other settings.
    """
    folder = checkpoint if isinstance(checkpoint, str) else _last_checkpoint(output_dir)
    if folder is None or not Path(folder).is_dir():
        raise InputError(
            f"{folder or output_dir}: holds no checkpoint to resume from. Leave "
            "--resume_from_checkpoint out to start anew, or name a checkpoint-N folder."
        )
    path = Path(folder) / ORIGIN_FILE
    if not path.is_file():
        raise MismatchError(
            f"{folder}: not a checkpoint of `distill train`, {ORIGIN_FILE} is missing. To start "
            f"anew from its weights: --model_name_or_path {folder}."
        )
    check_whole(Path(folder))
    before = json.loads(path.read_text(encoding="utf-8"))
    if any(before[key] != origin[key] for key in _ORIGIN_KEYS):
        raise MismatchError(
            f"{folder}: trained on store {before['store_digest'][:12]} with "
            f"{counted(before['sequences'], 'sequence')}, but {store} is "
            f"{origin['store_digest'][:12]} with "
            f"{origin['sequences']:,}: the rest of the epoch would be other data. Give the same "
            f"--store, or start anew from its weights: --model_name_or_path {folder}."
        )
    _check_settings(folder, before.get("settings", {}), origin.get("settings", {}))


def settings_of(args: CachedTeacherConfig, chat_template: object = None) -> dict[str, Any]:
    """Collect what a resumed run must have in common with the run before, as JSON.

    The number of sequences in a step is included, since a checkpoint counts steps: if it is the
    same, a run on another number of processes goes on with the same rows.

    Args:
        args: The run's configuration.
        chat_template: The student's chat template; None if the rows are not conversations.
    """
    per_step = args.train_batch_size * args.gradient_accumulation_steps * args.world_size
    flags = [
        *_COMPUTED,
        *args.loss_options,
        *_RESTORED,
        *(_LENGTHS if args.one_cycle is not None or args.kd_schedule is not None else ()),
    ]
    template = chat_template and hashlib.sha256(repr(chat_template).encode()).hexdigest()
    settings = {"sequences_per_step": per_step, "chat_template": template}
    settings |= {name: getattr(args, name) for name in flags}
    as_json: dict[str, Any] = json.loads(json.dumps(settings))  # as a resumed run will read it
    return as_json


def _check_settings(folder: str, before: dict[str, Any], now: dict[str, Any]) -> None:
    for name, value in now.items():
        if before.get(name, value) == value:
            continue
        why = "it would be neither run"
        if name in _RESTORED + _LENGTHS:
            why = "the checkpoint brings the old value along, and yours would have no effect"
        if name == "sequences_per_step":
            difference = (
                f"steps of {counted(before[name], 'sequence')}, but this run has {value} "
                "(processes x "
                "--per_device_train_batch_size x --gradient_accumulation_steps)"
            )
        elif name == "chat_template":
            difference = "another chat template (--chat_template_path, or the student's own)"
        else:
            difference = f"--{name} {before[name]}, but this run has {value}"
        raise MismatchError(
            f"{folder}: trained with {difference}: {why}. Give the same, or start anew from its "
            f"weights: --model_name_or_path {folder}."
        )


def check_whole(checkpoint: Path) -> None:
    """Read the part of each file that shows whether it was cut off, and no weights."""
    path = checkpoint
    try:
        for path in sorted(checkpoint.iterdir()):
            if path.name == ORIGIN_FILE:
                _ = itemgetter(*_ORIGIN_KEYS)(json.loads(path.read_text(encoding="utf-8")))
            elif path.suffix == ".json":
                json.loads(path.read_text(encoding="utf-8"))
            elif path.suffix == ".safetensors":
                with safe_open(path, "pt"):
                    pass
            elif path.suffix in (".pt", ".pth", ".bin"):
                with zipfile.ZipFile(path):  # what torch.save writes
                    pass
    except Exception as error:  # of safetensors, zipfile or json
        raise InputError(
            f"{path}: this file of the checkpoint is damaged ({in_a_line(error)}). Name an earlier "
            "checkpoint-N folder with --resume_from_checkpoint, or start anew in another "
            "--output_dir."
        ) from error


def _last_checkpoint(folder: str) -> str | None:
    if not Path(folder).is_dir():
        return None
    last: str | None = get_last_checkpoint(folder)  # type: ignore[no-untyped-call]
    return last
