"""Say in a few lines what a run is going to do, and at its end what came of it."""

import math
import shlex
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from distill.data.left_out import spread
from distill.report.results import RunObject
from distill.student.arguments import StudentArguments
from distill.training.loss_terms import covered_of
from distill.training.own_weights import is_own, parameters_of
from logitstore.console.counts import counted
from logitstore.console.progress import duration

if TYPE_CHECKING:
    from distill.training.trainer import CachedTeacherTrainer

#: The most sequences that are looked at to say how many labels are covered.
_LOOKED_AT = 64


def beginning(trainer: "CachedTeacherTrainer", student: StudentArguments) -> str:
    """Describe a run before its first step: student, store, loss, steps, folder."""
    args = trainer.args
    model: Any = trainer.model
    own = [each for name, each in model.named_parameters() if not is_own(name)]
    weights = sum(each.numel() for each in own)
    learnt = sum(each.numel() for each in own if each.requires_grad)
    of = "new" if trainer.is_new else "trained before"
    part = f", of which {learnt:,} are trained" if learnt < weights else ""
    lines = {
        "student": f"{student.model_name_or_path or student.student_config}: {weights:,} weights, "
        f"{of}{part}",
        "store": _store(trainer),
        "loss": _loss(trainer),
        "steps": _steps(trainer),
        "output": str(args.output_dir),
    }
    return _table(lines)


def _store(trainer: "CachedTeacherTrainer") -> str:
    """Describe what is learnt from; of several stores more is logged, see `say_joined`."""
    stores, count = trainer.stores.each, f"{counted(len(trainer.data), 'sequence')}"
    if len(stores) > 1:
        return f"{', '.join(str(store.path) for store in stores)}: {count}"
    (store,) = stores
    teacher, top_k = store.provenance.get("teacher"), store.spec.top_k
    return (
        f"{store.path}: {count}"
        + (f" of {teacher}" if teacher else "")
        + (f", {top_k} entries a token" if top_k else "")
    )


def _loss(trainer: "CachedTeacherTrainer") -> str:
    args = trainer.args
    parts = [f"{args.ce_weight:g} x cross-entropy"] if args.ce_weight else []
    parts += [f"{weight:g} x {name}" for name, weight in trainer.weights.items()]
    said = " + ".join(parts)
    if not trainer.weights:
        return said
    own = sum(each.numel() for each in parameters_of(trainer.head.model))
    said += f", with {own:,} weights of its own beside the student's" if own else ""
    share, looked_at = share_covered(trainer)
    of = len(trainer.data)
    some = f", of {looked_at:,} of {of:,} sequences" if looked_at < of else ""
    return f"{said}; covered: {share:.1%} of the labels{some}"


def share_covered(trainer: "CachedTeacherTrainer") -> tuple[float, int]:
    """Compute the share of the labels that a pair of any loss covers, as the log counts it.

    Returns:
        The share, and how many sequences were looked at for it: all, or some that are spread
        evenly.
    """
    covered, labels, chosen = 0, 0, spread(len(trainer.data), _LOOKED_AT)
    collate: Any = trainer.data_collator  # ours, of examples
    for i in chosen:
        example = trainer.data[i]
        if example.is_label.any():
            batch = collate([example])
            marked = list(covered_of(batch).values())
            covered += int(sum(marked[1:], marked[0]).sum())
            labels += len(batch["rows"])
    return covered / max(labels, 1), len(chosen)


def _steps(trainer: "CachedTeacherTrainer") -> str:
    args = trainer.args
    rows = args.train_batch_size * args.gradient_accumulation_steps * args.world_size
    per_epoch = max(1, math.ceil(len(trainer.data) / rows))
    steps = args.max_steps if args.max_steps > 0 else math.ceil(per_epoch * args.num_train_epochs)
    shares = {"a device": args.train_batch_size, "accumulated": args.gradient_accumulation_steps}
    shares["processes"] = args.world_size
    of = ", ".join(f"{count:,} {name}" for name, count in shares.items() if count > 1)
    epochs = f"{steps / per_epoch:.2g}"
    return (
        f"{steps:,} of {counted(rows, 'sequence')}{f' ({of})' if of else ''}, "
        f"{epochs} {'epoch' if epochs == '1' else 'epochs'}, learning rate {args.learning_rate:g}"
    )


def ending(run: RunObject, folder: str) -> str:
    """Describe a finished run: its steps, its last losses, and what to do next."""
    metrics: Mapping[str, Any] = run["metrics"]
    lines = {
        "trained": f"{counted(run['steps'], 'step')} in {duration(run['train_s'])}, "
        f"{run['tokens_per_second']:,.0f} tokens a second",
        "last losses": ", ".join(_losses(metrics, "")) or "none were logged",
    }
    held_out = ", ".join(_losses(metrics, "eval_"))
    if held_out:
        lines["held out"] = held_out
    lines["student"] = f"{folder}, with results.json, a model card and the tokenizer"
    lines["next"] = f"distill evaluate {shlex.quote(folder)} HELDOUT_DATA"
    return _table(lines)


def _losses(metrics: Mapping[str, Any], begins: str) -> Iterator[str]:
    """Write the losses of training, or of an evaluation if names begin so, its sum first."""
    own = {n.removeprefix(begins): value for n, value in metrics.items() if n.startswith(begins)}
    if begins and "loss" in own:
        yield f"loss {own['loss']:.4f}"
    for name, value in own.items():
        if name.endswith("_loss") and not name.startswith(("eval_", "train_")):
            yield f"{name.removesuffix('_loss')} {value:.4f}"


def _table(lines: Mapping[str, str]) -> str:
    return "\n".join(f"{name:<12} {value}" for name, value in lines.items())
