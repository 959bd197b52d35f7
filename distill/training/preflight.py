"""What is checked before a run begins, so that a bad request costs nothing and leaves nothing."""

import hashlib
import json
import logging
import zipfile
from operator import itemgetter
from pathlib import Path
from typing import Any

from safetensors import safe_open
from transformers import PreTrainedModel
from transformers.trainer_utils import IntervalStrategy, get_last_checkpoint

from distill.losses.requirements import Described, teacher_name
from distill.student.loading import check_embeddings
from distill.training.config import CachedTeacherConfig
from logitstore.errors import InputError, MismatchError, in_a_line
from logitstore.storage.paths import StorePath
from logitstore.text.tokenizer import ByteTokenizer

log = logging.getLogger(__name__)

#: In every checkpoint: what it was trained on.
ORIGIN_FILE = "distill.json"
_ORIGIN_KEYS = ("store_digest", "sequences")
#: Flags that say what the steps of a run compute, besides those of losses. Lengths of runs may be
#: changed.
_COMPUTED = (
    "loss",
    "ce_weight",
    "balance",
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
#: Flags whose values a checkpoint brings along with the states of optimizer and schedule: another
#: one would be replaced by the old without a word.
_BROUGHT_ALONG = (
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
#: Likewise, but only of a schedule that knows its end from the beginning.
_LENGTHS = ("max_steps", "num_train_epochs")


def check_nothing_to_evaluate(args: CachedTeacherConfig) -> None:
    """Flags that ask for an evaluation, when there is no store for it."""
    for flag, is_asked in (
        # An enum that is also a string, though its annotation says only the latter.
        (
            f"--eval_strategy {IntervalStrategy(args.eval_strategy).value}",
            args.eval_strategy != "no",
        ),
        ("--eval_on_start", args.eval_on_start),
        ("--do_eval", args.do_eval),
    ):
        if is_asked:
            raise InputError(f"{flag}: there is no text to evaluate on. Add --eval_store.")


def check_eval_store(held_out: Described, store: Described, args: CachedTeacherConfig) -> None:
    """Figures on held-out text mean something beside those of training, or none are taken.

    A hub's teacher and the same in a folder have different fingerprints, so that of another one
    must also have another name or tokenizer.

    The same rows may be wanted, to see a student overfit, so they are only told of.

    Raises:
        MismatchError: It is of another teacher.
    """
    if held_out.digest == store.digest:
        log.warning(
            "--eval_store %s: holds what --store does, so its figures say how well the student "
            "knows its own lessons, and nothing of other text.",
            held_out.path,
        )
    theirs, ours = (each.spec.teacher.get("fingerprint") for each in (held_out, store))
    names = [teacher_name(each) for each in (held_out, store)]
    same_tokenizer = held_out.spec.tokenizer_fingerprint == store.spec.tokenizer_fingerprint
    if theirs == ours or (same_tokenizer and len({Path(name).name for name in names}) == 1):
        return
    if args.loss_weights:
        raise MismatchError(
            f"{held_out.path}: its teacher is {names[0]} ({str(theirs)[:8]}…), but that of "
            f"{store.path} is {names[1]} ({str(ours)[:8]}…): --loss {args.loss} would be measured "
            "against one and trained against the other. Capture the held-out text with the teacher "
            "of the training store, or leave --eval_store out."
        )


def check_no_template(args: CachedTeacherConfig, store: StorePath) -> None:
    """Flags about chat templates, when there are no conversations."""
    for flag in ("chat_template_path", "chat_template_kwargs"):
        if getattr(args, flag) is not None:
            raise InputError(
                f"{store}: its rows are no conversations, so --{flag} {getattr(args, flag)} would "
                f"have no effect. Leave it out."
            )


def check_student(
    model: PreTrainedModel, args: CachedTeacherConfig, student: ByteTokenizer
) -> None:
    """What would otherwise end as an index error, or as wrong numbers, in the first step."""
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
    """Going on from it must mean going on with the same data."""
    found = checkpoint if isinstance(checkpoint, str) else _last_checkpoint(output_dir)
    if found is None or not Path(found).is_dir():
        raise InputError(
            f"{found or output_dir}: holds no checkpoint to resume from. Leave "
            "--resume_from_checkpoint out to start anew, or name a checkpoint-N folder."
        )
    path = Path(found) / ORIGIN_FILE
    if not path.is_file():
        raise MismatchError(
            f"{found}: not a checkpoint of `distill train`, {ORIGIN_FILE} is missing. To start "
            f"anew from its weights: --model_name_or_path {found}."
        )
    _check_whole(Path(found))
    before = json.loads(path.read_text(encoding="utf-8"))
    if any(before[key] != origin[key] for key in _ORIGIN_KEYS):
        raise MismatchError(
            f"{found}: trained on store {before['store_digest'][:12]} with {before['sequences']:,} "
            f"sequences, but {store} is {origin['store_digest'][:12]} with "
            f"{origin['sequences']:,}: the rest of the epoch would be other data. Give the same "
            f"--store, or start anew from its weights: --model_name_or_path {found}."
        )
    _check_settings(found, before.get("settings", {}), origin.get("settings", {}))


def settings_of(args: CachedTeacherConfig, chat_template: object = None) -> dict[str, Any]:
    """What a run that goes on from a checkpoint must have in common with the one before, as JSON.

    Sequences in a step, since a checkpoint counts steps: with as many, another number of processes
    goes on with the same rows.

    Args:
        args: The run.
        chat_template: What the student reads conversations by; None: there are none.
    """
    per_step = args.train_batch_size * args.gradient_accumulation_steps * args.world_size
    flags = [
        *_COMPUTED,
        *args.loss_options,
        *_BROUGHT_ALONG,
        *(_LENGTHS if args.one_cycle is not None else ()),
    ]
    template = chat_template and hashlib.sha256(repr(chat_template).encode()).hexdigest()
    found = {"sequences_per_step": per_step, "chat_template": template}
    found |= {name: getattr(args, name) for name in flags}
    as_json: dict[str, Any] = json.loads(json.dumps(found))  # as it will be read again
    return as_json


def _check_settings(found: str, before: dict[str, Any], now: dict[str, Any]) -> None:
    for name, value in now.items():
        if before.get(name, value) == value:
            continue
        why = "it would be neither run"
        if name in _BROUGHT_ALONG + _LENGTHS:
            why = "the checkpoint brings the old value along, and yours would have no effect"
        if name == "sequences_per_step":
            said = (
                f"steps of {before[name]} sequences, but this run has {value} (processes x "
                "--per_device_train_batch_size x --gradient_accumulation_steps)"
            )
        elif name == "chat_template":
            said = "another chat template (--chat_template_path, or the student's own)"
        else:
            said = f"--{name} {before[name]}, but this run has {value}"
        raise MismatchError(
            f"{found}: trained with {said}: {why}. Give the same, or start anew from its weights: "
            f"--model_name_or_path {found}."
        )


def _check_whole(checkpoint: Path) -> None:
    """Reads what says of a file that it was cut off, and no weights."""
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
