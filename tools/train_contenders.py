"""Prepare the contenders of `tools.bench_train`: models, stores, and a trainer for each.

Weights are random, since a step costs the same whatever they are; text, tokenizers, captures and
trainers are real. Students and teachers read byte-level BPE, because that is what GOLD's alignment
takes; two tokenizers of different size make groups of several tokens.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch.utils.data import SequentialSampler
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
    Trainer,
    TrainingArguments,
)

import logitstore
from distill.training.config import CachedTeacherConfig
from distill.training.trainer import CachedTeacherTrainer
from tools.demo.corpus import load_corpus
from tools.demo.models import byte_bpe, save
from tools.live_teacher import LiveTeacherTrainer


class Shape(NamedTuple):
    """The shape of a Llama with heads 64 wide and untied embeddings."""

    width: int
    layers: int
    vocabulary: int


class Sizes(NamedTuple):
    """The sizes of models and data; `rows` are those of one step, of `row_chars` characters."""

    student: Shape
    teacher: Shape
    other_vocabulary: int
    corpus_bytes: int
    row_chars: int
    rows: int
    steps: int


FULL = Sizes(Shape(768, 7, 32_000), Shape(1024, 12, 32_000), 16_000, 6_000_000, 500, 16, 3)
QUICK = Sizes(Shape(64, 1, 600), Shape(64, 1, 600), 500, 50_000, 100, 4, 3)

#: Logits of a new model hardly differ; its output embeddings are scaled up to be a teacher's.
TEACHER_SHARPNESS = 8.0


def prepare(folder: Path, sizes: Sizes) -> None:
    """Make student, two teachers and their stores under `folder`, unless they exist already."""
    if (folder / "READY").exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    texts = load_corpus(teacher_bytes=sizes.corpus_bytes, student_bytes=40_000, heldout_bytes=1000)
    own = byte_bpe(texts.teacher, sizes.student.vocabulary)
    other = byte_bpe(texts.teacher[: len(texts.teacher) // 2], sizes.other_vocabulary)
    rows = _rows("".join(texts.student), sizes)
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    save(folder / "student", _llama(sizes.student, own, 1.0), own)
    for name, tokenizer in (("same", own), ("other", other)):
        shape = sizes.teacher._replace(vocabulary=len(tokenizer))
        save(folder / name, _llama(shape, tokenizer, TEACHER_SHARPNESS), tokenizer)
        logitstore.capture(
            folder / name,
            folder / "rows.jsonl",
            out=folder / f"{name}-store",
            logit_std=True,
            draws=50,
            seed=0,
        )
    (folder / "READY").touch()


def _rows(text: str, sizes: Sizes) -> list[dict[str, str]]:
    """Return the rows of all steps, of one length, with the short prompts that GOLD requires."""
    length, prompt = sizes.row_chars, sizes.row_chars // 16
    pieces = [text[i * length :][:length] for i in range(sizes.rows * sizes.steps)]
    return [{"prompt": piece[:prompt], "completion": piece[prompt:]} for piece in pieces]


def _llama(shape: Shape, tokenizer: PreTrainedTokenizerBase, sharpness: float) -> LlamaForCausalLM:
    torch.manual_seed(shape.width)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=shape.vocabulary,
            hidden_size=shape.width,
            intermediate_size=shape.width * 8 // 3 // 64 * 64,
            num_hidden_layers=shape.layers,
            num_attention_heads=shape.width // 64,
            num_key_value_heads=shape.width // 64,
            bos_token_id=None,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=None,
            tie_word_embeddings=False,
        )
    )
    with torch.no_grad():
        model.lm_head.weight.mul_(sharpness)
    return model


# ---- trainers ----


class Contender(NamedTuple):
    """A way to train: the function that makes the trainer, the store and the settings."""

    make: Callable[..., Trainer]
    store: str = "other"
    settings: dict[str, Any] = {}  # noqa: RUF012  # never changed


def from_a_store(
    cls: type[Trainer], folder: Path, sizes: Sizes, out: Path, store: str, **settings: Any
) -> Trainer:
    args = CachedTeacherConfig(
        store=str(folder / f"{store}-store"),
        train_sampling_strategy="sequential",
        no_self_test=True,  # its teacher has learnt nothing
        **_common(out, sizes),
        **settings,
    )
    return cls(model=_student(folder), args=args, processing_class=_tokenizer(folder, "student"))


def dense_ce(
    cls: type[Trainer], folder: Path, sizes: Sizes, out: Path, store: str, **_: Any
) -> Trainer:
    """Make transformers' own Trainer and loss, on the rows, labels and batches of the others."""
    other = from_a_store(CachedTeacherTrainer, folder, sizes, out, store, loss="ce")
    keys, collated = ("input_ids", "attention_mask", "labels"), other.data_collator

    def collate(examples: Any) -> dict[str, Any]:
        batch = collated(examples)
        return {key: batch[key].long() for key in keys}  # torch's own loss takes no others

    return cls(
        model=other.model,
        args=TrainingArguments(
            **_common(out, sizes), train_sampling_strategy="sequential", remove_unused_columns=False
        ),
        train_dataset=other.train_dataset,
        data_collator=collate,
    )


def live(
    cls: type[Trainer], folder: Path, sizes: Sizes, out: Path, store: str, **_: Any
) -> Trainer:
    """Make a trainer with a live teacher that has the student's tokenizer."""
    with_teacher: Any = cls
    args = CachedTeacherConfig(
        store=str(folder / f"{store}-store"),
        train_sampling_strategy="sequential",
        loss="ce",
        no_self_test=True,
        **_common(out, sizes),
    )
    trainer: Trainer = with_teacher(
        teacher=teacher_of(folder, "same"),
        model=_student(folder),
        args=args,
        processing_class=_tokenizer(folder, "student"),
    )
    return trainer


def gold(
    cls: type[Trainer], folder: Path, sizes: Sizes, out: Path, store: str, **_: Any
) -> Trainer:
    """Make TRL's trainer, off-policy: ULD by bytes from a live teacher of another tokenizer."""
    from datasets import Dataset
    from trl.experimental.gold import GOLDConfig

    class InOrder(cls):  # type: ignore[valid-type, misc]
        def _get_train_sampler(self, dataset: Any = None) -> SequentialSampler:
            return SequentialSampler(self.train_dataset)

    args = GOLDConfig(
        **_common(out, sizes),
        bf16=False,
        gradient_checkpointing=False,
        max_length=None,
        lmbda=0.0,
        use_uld_loss=True,
        uld_token_merge_strategy="bayesian",
        uld_crossentropy_weight=1.0,
        uld_distillation_weight=1.0,
        uld_skip_student_eos=False,
        uld_skip_teacher_eos=False,
    )
    lines = (folder / "rows.jsonl").read_text().splitlines()
    trainer: Trainer = InOrder(
        model=_student(folder),
        teacher_model=teacher_of(folder, "other"),
        args=args,
        train_dataset=Dataset.from_list([json.loads(line) for line in lines]),
        processing_class=_tokenizer(folder, "student"),
    )
    return trainer


def gold_trainer() -> type[Trainer] | None:
    """Return TRL's trainer class, if TRL is installed."""
    try:
        from trl.experimental.gold import GOLDTrainer
    except ImportError:
        return None
    found: type[Trainer] = GOLDTrainer
    return found


def _common(out: Path, sizes: Sizes) -> dict[str, Any]:
    return {
        "output_dir": str(out),
        "max_steps": sizes.steps + 1,  # the benchmark stops it before
        "per_device_train_batch_size": sizes.rows,
        "learning_rate": 1e-4,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": True,
        "seed": 0,
    }


def _student(folder: Path) -> LlamaForCausalLM:
    model: LlamaForCausalLM = LlamaForCausalLM.from_pretrained(folder / "student")
    return model


def teacher_of(folder: Path, name: str) -> LlamaForCausalLM:
    """Load the live teacher."""
    model: Any = LlamaForCausalLM.from_pretrained(folder / name)
    return model.eval()  # type: ignore[no-any-return]


def _tokenizer(folder: Path, name: str) -> PreTrainedTokenizerFast:
    tokenizer: PreTrainedTokenizerFast = PreTrainedTokenizerFast.from_pretrained(folder / name)
    tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


CE, DENSE, LIVE, GOLD, FORWARD = (
    "CE only",
    "dense CE",
    "live teacher",
    "TRL GOLD",
    "the teacher's forward",
)
FROM_STORE = {
    "uld": Contender(from_a_store, "other", {"loss": "uld"}),
    "mapped_kl": Contender(from_a_store, "other", {"loss": "mapped_kl"}),
    "multilevel_ot": Contender(from_a_store, "other", {"loss": "multilevel_ot"}),
    "alm": Contender(from_a_store, "other", {"loss": "alm"}),
    "tail_kl": Contender(from_a_store, "same", {"loss": "tail_kl"}),
    "sampled_kl": Contender(from_a_store, "same", {"loss": "sampled_kl"}),
}
CONTENDERS = {
    CE: Contender(from_a_store, "other", {"loss": "ce"}),
    **FROM_STORE,
    DENSE: Contender(dense_ce),
    LIVE: Contender(live, "same"),
    GOLD: Contender(gold),
}


def trainer_class(name: str) -> type[Trainer]:
    """Return the class of a contender's trainer, before it is made to take turns."""
    special: dict[str, type[Trainer] | None] = {
        DENSE: Trainer,
        LIVE: LiveTeacherTrainer,
        GOLD: gold_trainer(),
    }
    found = special.get(name, CachedTeacherTrainer)
    assert found is not None
    return found


def student_parameters(folder: Path) -> int:
    """Return the number of the student's parameters."""
    with torch.device("meta"):
        model = LlamaForCausalLM(LlamaConfig.from_pretrained(folder / "student"))
    return model.num_parameters()


def tokens_of_a_step(folder: Path, sizes: Sizes) -> float:
    """Return the student's tokens in a step, ends of rows included, averaged over steps."""
    rows = map(json.loads, (folder / "rows.jsonl").read_text().splitlines())
    texts = [row["prompt"] + row["completion"] for row in rows]
    ids = _tokenizer(folder, "student")(texts)["input_ids"]
    return sum(len(each) + 1 for each in ids) / sizes.steps
