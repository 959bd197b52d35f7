"""Time training steps of a 1.1B student: with cross-entropy, from a store, beside a live teacher.

Llama of 1.1B parameters, V = 128,256, bfloat16 autocast over float32 weights, with SGD (the state
of an optimizer costs every contender the same), 8 rows of 512 tokens. One after the other:

* `Trainer` with Liger's kernels, cross-entropy: what people train with;
* `CachedTeacherTrainer` with cross-entropy alone, then each loss from a store of the same text;
* `LiveTeacherTrainer`: a teacher of the same size asked in every step.

The first contender is measured again at the end: how far its two figures are apart is the noise.
The store's teacher has another tokenizer (a word-level one of twice as many words a line), or the
student's own for `tail_kl`; its records are captured before, from small models, since the cost of a
step does not depend on who wrote them.
"""

import gc
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

from tools.benchmark import goal
from tools.gpu import stage
from tools.gpu.timing import Device

BASE, OURS, LIVE = "Trainer with Liger", "ce", "live teacher"
FROM_STORE = ("mapped_kl", "uld", "tail_kl", "alm")


class Shape:
    """Of the student, and of the rows of a step."""

    def __init__(self, *, tiny: bool) -> None:
        self.tiny = tiny
        self.warm, self.steps = (1, 2) if tiny else (3, 8)
        self.vocabulary = 500 if tiny else 128_256
        self.rows, self.words = (2, 16) if tiny else (8, 512)

    def config(self, vocabulary: int) -> LlamaConfig:
        width, inner, layers, heads = (32, 64, 1, 2) if self.tiny else (2048, 5632, 16, 32)
        return LlamaConfig(
            vocab_size=vocabulary,
            hidden_size=width,
            intermediate_size=inner,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            num_key_value_heads=max(1, heads // 4),
            tie_word_embeddings=True,
            bos_token_id=None,
            eos_token_id=0,
            pad_token_id=0,
        )

    def student(self, device: Device) -> LlamaForCausalLM:
        torch.manual_seed(0)
        with torch.device(device.name):
            return LlamaForCausalLM(self.config(self.vocabulary))

    def teacher_config(self, vocabulary: int) -> LlamaConfig:
        """Of what writes the stores: small, since who wrote a record costs a step nothing."""
        return LlamaConfig(
            vocab_size=vocabulary,
            hidden_size=64,
            intermediate_size=128,
            num_hidden_layers=1,
            num_attention_heads=2,
            num_key_value_heads=2,
            tie_word_embeddings=True,
            bos_token_id=None,
            eos_token_id=0,
            pad_token_id=0,
        )


def words_tokenizer(size: int, step: int) -> PreTrainedTokenizerFast:
    """Words `w0`, `w1`, …; with step 2 every second is two tokens, so that groups have several."""
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers

    vocab = {"</s>": 0}
    for i in range(1, (size - 12) // step):  # the pieces below have room, too
        vocab[f" w{i * step}" if step > 1 else f" w{i}"] = len(vocab)
    for piece in (" w", *map(str, range(10))):
        vocab.setdefault(piece, len(vocab))
    model = models.WordPiece(vocab, unk_token="</s>", continuing_subword_prefix="")
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r" ?[^ ]+"), "isolated")
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=tokenizer, eos_token="</s>", pad_token="</s>", unk_token="</s>"
    )


def prepare(shape: Shape, folder: Path, device: Device) -> None:
    """Write rows, the student's tokenizer and two stores."""
    import logitstore

    gen = torch.Generator().manual_seed(0)
    count = shape.rows * (shape.steps + shape.warm)
    numbers = torch.randint(1, shape.vocabulary - 20, (count, shape.words), generator=gen)
    rows = [{"text": "".join(f" w{int(i)}" for i in row)} for row in numbers]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for name, step in (("same", 1), ("other", 2)):
        tokenizer = words_tokenizer(shape.vocabulary, step)
        torch.manual_seed(1)
        model = LlamaForCausalLM(shape.teacher_config(len(tokenizer)))
        with torch.no_grad():
            model.model.norm.weight.mul_(8)
        model.save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
        logitstore.capture(
            folder / name, folder / "rows.jsonl", out=folder / f"{name}-store", device=device.name
        )


def trainer_of(name: str, shape: Shape, folder: Path, device: Device) -> Trainer:
    from distill.training.config import CachedTeacherConfig
    from distill.training.trainer import CachedTeacherTrainer
    from tools.live_teacher import LiveTeacherTrainer

    common: dict[str, Any] = {
        "output_dir": str(folder / "out"),
        "max_steps": shape.steps + shape.warm,
        "per_device_train_batch_size": shape.rows,
        "train_sampling_strategy": "sequential",
        "optim": "sgd",
        "bf16": not device.is_cpu,
        "use_cpu": device.is_cpu,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "dataloader_num_workers": 0 if device.is_cpu else 2,
    }
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder / "same")
    store = folder / ("same-store" if name in ("tail_kl", LIVE) else "other-store")
    loss = "ce" if name in (BASE, LIVE) else name
    args = CachedTeacherConfig(store=str(store), loss=loss, no_self_test=True, **common)
    model = shape.student(device)
    if name == BASE:
        return plain(model, args, tokenizer, common, device)
    if name == LIVE:
        teacher: Any = shape.student(device)
        teacher = teacher.to(device.dtype).eval()
        return LiveTeacherTrainer(
            teacher=teacher, model=model, args=args, processing_class=tokenizer
        )
    return CachedTeacherTrainer(model=model, args=args, processing_class=tokenizer)


def plain(model: Any, args: Any, tokenizer: Any, common: dict[str, Any], device: Device) -> Trainer:
    """Build transformers' own trainer on the rows, labels and batches of the others."""
    from distill.training.trainer import CachedTeacherTrainer

    other = CachedTeacherTrainer(model=model, args=args, processing_class=tokenizer)
    collated = other.data_collator

    def collate(examples: Any) -> dict[str, Any]:
        batch = collated(examples)
        return {key: batch[key].long() for key in ("input_ids", "attention_mask", "labels")}

    return Trainer(
        model=model,
        args=TrainingArguments(
            **common, remove_unused_columns=False, use_liger_kernel=not device.is_cpu
        ),
        train_dataset=other.train_dataset,
        data_collator=collate,
    )


def timed(trainer: Trainer, device: Device, warm: int) -> dict[str, float]:
    """Seconds of a step, from asking for its data to its end: the median but for the first."""
    ends: list[float] = []

    class Clock(TrainerCallback):
        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            device.wait()
            ends.append(time.perf_counter())
            if len(ends) == warm:
                device.start_peak()

    trainer.add_callback(Clock())
    trainer.train()
    took = [b - a for a, b in zip(ends[warm - 1 :], ends[warm:], strict=False)]
    waits = [
        entry["store_wait_fraction"]
        for entry in trainer.state.log_history[warm:]
        if "store_wait_fraction" in entry
    ]
    found = {"seconds": statistics.median(took), "least_seconds": min(took)}
    if not device.is_cpu:
        found["peak_bytes"] = float(torch.cuda.max_memory_allocated())
    return found | ({"store_wait_fraction": statistics.median(waits)} if waits else {})


def measure(device: Device, partial: stage.Partial) -> dict[str, Any]:
    shape = Shape(tiny=device.is_cpu)
    found: dict[str, dict[str, float]] = partial.known().get("contenders", {})
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        prepare(shape, folder, device)
        for contender in (BASE, OURS, *FROM_STORE, LIVE, f"{BASE}, again"):
            if contender in found:
                continue
            made = trainer_of(contender.removesuffix(", again"), shape, folder, device)
            found[contender] = timed(made, device, shape.warm)
            del made
            gc.collect()
            if not device.is_cpu:
                torch.cuda.empty_cache()
            results = {
                "tokens a step": shape.rows * shape.words,
                "contenders": found,
                "goals": judged(found),
            }
            partial.write(results)
    return results


def judged(found: dict[str, dict[str, float]]) -> dict[str, Any]:
    goals: dict[str, Any] = {}
    for name in (OURS, *FROM_STORE):
        if name not in found:
            continue
        goals[name] = {
            f"time of {BASE}": goal(found[name]["seconds"] / found[BASE]["seconds"], at_most=1.05),
            "of the time, spent waiting for the store": goal(
                found[name].get("store_wait_fraction", 0.0), at_most=0.01
            ),
        }
        if LIVE in found:
            goals[name][f"times faster than a {LIVE}"] = goal(
                found[LIVE]["seconds"] / found[name]["seconds"], at_least=1.0
            )
    return goals


if __name__ == "__main__":
    stage.main(measure)
