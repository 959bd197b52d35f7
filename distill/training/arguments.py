"""The flags of a run besides TrainingArguments' and those of losses: the store, and what is learnt.

Imports neither torch nor transformers: the help of `distill train` is made of this
(:mod:`distill.training.help`). The configuration of a run is this and TrainingArguments together
(:mod:`distill.training.config`).
"""

from dataclasses import dataclass
from typing import Any, Literal

from distill.losses.advice import AUTO, ONE_TOKENIZER, TWO_TOKENIZERS
from distill.losses.in_source import loss_names
from distill.student.arguments import ADAPTERS, STUDENT
from distill.training.named_stores import Teachers
from logitstore.console.left_out import DEFAULT_MAX_LOST
from logitstore.console.settings import setting

#: What a loss does about labels that no pair of it covers.
Uncovered = Literal["hard", "none", "scale"]

# Headings of `distill train --help`.
STORE, LOSS, TEXT, TRAINING = "Store", "Loss", "Text", "Training"
OF_LOSSES, SETTINGS = "Flags of single losses", "Many flags at once"
#: In the order of the help.
PANELS = (STUDENT, STORE, LOSS, TRAINING, OF_LOSSES, TEXT, ADAPTERS, SETTINGS)

#: Flags that every run needs, and what is said where one is missing.
NEEDED = {
    "output_dir": "--output_dir is required: an empty folder for the student.",
    "store": "--store is required: the store written by `logitstore capture`.",
}


@dataclass
class RunArguments:
    """Where the teacher's store is, and what to do with it."""

    store: list[str] | str = setting(
        "",
        STORE,
        "Store to train from, as `logitstore capture` wrote it. Several, of one text by several "
        "teachers, make one student: --store a --store b:0.5 (a weight, 1 by default). Rows are "
        "joined by their text; those of one store are used with that one.",
        metavar="STORE[:WEIGHT]",
    )
    cot_store: str | None = setting(
        None,
        STORE,
        "Store of the same prompts with other answers, by chain of thought, captured with the same "
        "teacher: `--loss cot2align` compares across the two answers of a row, and the student "
        "learns both, in one batch.",
        metavar="STORE",
        unset="none",
    )
    teachers: Teachers = setting(
        "mean",
        STORE,
        "What is learnt of a row of several stores. mean: every loss is the mean over its stores, "
        "by their weights. best: from the teacher alone that is least surprised by the row, nats a "
        "byte.",
        metavar="mean|best",
    )
    eval_store: list[str] | str | None = setting(  # in an order that HfArgumentParser reads
        None,
        STORE,
        "Store of held-out text, for --eval_strategy; of several teachers several.",
        metavar="STORE",
    )
    allow_partial: bool = setting(False, STORE, "Train on what an unfinished store holds so far.")
    max_lost: float = setting(
        DEFAULT_MAX_LOST,
        STORE,
        "Largest share of the store's sequences that this student may be unable to use, 0 to 1. "
        "More is an error before the first step, which says why.",
        metavar="SHARE",
    )
    rows: str | None = setting(
        None,
        STORE,
        "Train on some rows of the store alone (of several: of the first): a file with a row "
        "number a line, such as `distill select` and `logitstore split` write, or a range A:B.",
        metavar="FILE|A:B",
        unset="all",
    )
    no_self_test: bool = setting(
        False,
        STORE,
        "Do not check before the first step that records, text and labels belong together.",
    )
    loss: str = setting(
        AUTO,
        LOSS,
        f"`{AUTO}`: {ONE_TOKENIZER} where teacher and student have one tokenizer, else "
        f"{TWO_TOKENIZERS}. Or `ce`, or NAME[:WEIGHT][,NAME[:WEIGHT]...] of: "
        + ", ".join(loss_names())
        + ". Or a function of your own that @distill.loss declares, `my_module:my_loss`: that "
        "imports my_module, which runs it.",
        metavar="NAMES",
    )
    ce_weight: float = setting(1.0, LOSS, "Weight of cross-entropy on the store's text.")
    balance: bool = setting(
        False, LOSS, "Scale the distillation terms, in every step, to what cross-entropy is."
    )
    uncovered: Uncovered = setting(
        "hard",
        LOSS,
        "What a loss does about labels that no teacher pair covers. hard: their cross-entropy "
        "stands in, at the weight of the loss, so that all labels weigh the same; so does that of "
        "a label within a group of tokens, where the loss compares groups. none: nothing, and the "
        "loss is a mean over its own pairs, as in papers. scale: nothing, but the others weigh "
        "what they weigh with hard.",
        metavar="hard|none|scale",
    )
    kd_schedule: str | None = setting(
        None,
        LOSS,
        "Multiply the distillation terms with a factor that goes from the first step to the last, "
        "linear:0.2..1 or cosine:1..0.",
        metavar="SCHEDULE",
        unset="1",
    )
    train_top_k: int | None = setting(
        None,
        LOSS,
        "Use the K most probable entries of a token; all others join the tail.",
        metavar="K",
        unset="all that are stored",
    )
    token_filter: str | None = setting(
        None,
        LOSS,
        "Compare only where this holds of the teacher, in nats: entropy>2, or "
        "surprise>1,entropy<5. Elsewhere it is as if no pair covered a label (--uncovered).",
        metavar="FILTER",
        unset="everywhere",
    )
    token_weights: str | None = setting(
        None,
        LOSS,
        "Weigh the tokens of each sequence, as DWA-KD does. dwa_teacher: by how sure the teacher "
        "is. dwa_student: by how unsure the student is, times the teacher's largest probability.",
        metavar="dwa_teacher|dwa_student",
        unset="alike",
    )
    boundaries: bool = setting(
        False,
        LOSS,
        "Learn at every boundary of this student's tokens, from the teacher's tokens that go on "
        "there and from what follows one that ended there, which `logitstore capture "
        "--boundaries-of` adds to a store.",
    )
    max_length: int | None = setting(
        None,
        TEXT,
        "Cut rows at N student tokens.",
        metavar="N",
        unset="what the student can read",
    )
    packing: bool = setting(
        False,
        TEXT,
        "Lay the sequences of a batch into as few rows as its longest one allows, each attending "
        "to itself alone: the same loss and gradient with less padding.",
    )
    chat_template_path: str | None = setting(
        None,
        TEXT,
        "The student's chat template: a Jinja file, or the folder of a tokenizer.",
        metavar="PATH",
        unset="the student's own",
    )
    chat_template_kwargs: dict[str, Any] | str | None = setting(
        None, TEXT, "Variables of the chat template for every row, as JSON.", metavar="JSON"
    )
    one_cycle: dict[str, Any] | str | None = setting(
        None,
        TRAINING,
        "Learning rate up and down once, instead of --lr_scheduler_type: JSON of pct_start, "
        "div_factor, final_div_factor and the like; {} for the usual values.",
        metavar="JSON",
    )
    learning_rate: float = setting(2e-5, TRAINING, "Peak learning rate.")
    logging_steps: float = setting(
        10, TRAINING, "Log every N steps, or a fraction of all steps.", metavar="N"
    )
    train_sampling_strategy: str = setting(
        "random",
        TRAINING,
        "Order of rows. group_by_length: as random, but those of up to 64 steps sorted by their "
        "records (supervised tokens; prompts do not count) and dealt out again: less padding.",
        metavar="random|group_by_length|sequential",
    )
    remove_unused_columns: bool = setting(False, TRAINING, "Not used: a store has no columns.")
