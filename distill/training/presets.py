"""Settings that belong together, each with its source: `distill train --preset NAME`.

A preset is a list of flags that come before all others, so a `--config` file and the command line
override them. `distill train --preset NAME --help` lists them.

`uld_paper` is the training of arXiv:2402.12030 as its authors published it in code
(github.com/Nicolas-BZRD/llm-recipes); the loss, its weight and its temperature are in the paper
too. Unknown, and so left to Trainer's defaults or to you: the number of devices, so the batch that
a step saw; the precision of the student; which of its runs had which number of epochs, for which
the code's README has one example. What the authors' loss does beside the paper's formula is not
repeated (README, "Which loss?").

`recommended` is where to begin with a student that is already trained on text. Its schedule is that
of a full fine-tune that many started from; a student from scratch or with adapters wants a higher
learning rate, by ten or more.
"""

from collections.abc import Sequence
from typing import NamedTuple

from distill.losses.advice import AUTO, ONE_TOKENIZER, TWO_TOKENIZERS
from distill.losses.evidence import measured
from logitstore.errors import InputError

_PAPER, _ULD, _ALONE = "arXiv:2402.12030", "uld:1.5", {"uncovered": "none"}
_CONFIG = "llm-recipes, configs/training.py"
_EXAMPLE = "llm-recipes, the example of its README"
_LOOP = "llm-recipes, finetuning.py and train/train_utils.py"
_ZEPHYR = "Zephyr's fine-tune (arXiv:2310.16944; alignment-handbook, sft/config_full.yaml)"


class Setting(NamedTuple):
    """A flag of a preset, as it would be typed, and its source."""

    flag: str
    value: str
    source: str


PRESETS: dict[str, tuple[Setting, ...]] = {
    "uld_paper": (
        Setting(
            "loss",
            _ULD,
            f"{_PAPER}: lambda 1.5; llm-recipes, configs/distillation.py. In our runs worse than "
            "cross-entropy alone, in held-out bits per byte: "
            f"{measured(_ULD.split(':')[0], {'pairing': 'position'} | _ALONE, 'trained')}",
        ),
        Setting("ce_weight", "1", f"{_PAPER}: CE + lambda ULD; configs/distillation.py"),
        Setting("pairing", "position", f"{_PAPER}: the k-th token with the k-th"),
        Setting("uncovered", "none", f"{_PAPER}: a mean over pairs, nothing for other tokens"),
        Setting("learning_rate", "1e-6", f"{_CONFIG}, and {_EXAMPLE}"),
        Setting(
            "one_cycle",
            '{"pct_start": 0.1, "div_factor": 2, "final_div_factor": 5}',
            f"{_CONFIG}; its momentum is cycled too, by torch's default",
        ),
        Setting("weight_decay", "0.1", _CONFIG),
        Setting("max_grad_norm", "0", f"{_LOOP}: gradients are not clipped"),
        Setting("num_train_epochs", "5", f"{_EXAMPLE}; the code's default is 1"),
        Setting("per_device_train_batch_size", "4", f"{_EXAMPLE}; devices unknown"),
        Setting("seed", "42", _CONFIG),
    ),
    "recommended": (
        Setting(
            "loss",
            AUTO,
            "by the tokenizers; maps are ahead of sorted values in arXiv:2512.14954, 2605.21699 "
            "and 2610.08448, and in our runs (held-out bits per byte against cross-entropy alone, "
            f"of trained students: {measured(TWO_TOKENIZERS, {'map': 'events'}, 'trained')}; with "
            f"one tokenizer: {measured(ONE_TOKENIZER, {}, 'trained')}); `distill coverage` says "
            "where another is better",
        ),
        Setting("ce_weight", "1", "mapped labels with cross-entropy were best in arXiv:2512.14954"),
        Setting("learning_rate", "2e-5", _ZEPHYR),
        Setting("lr_scheduler_type", "cosine", _ZEPHYR),
        Setting("warmup_steps", "0.1", f"{_ZEPHYR}: a tenth of all steps"),
        Setting("num_train_epochs", "1", _ZEPHYR),
        Setting("per_device_train_batch_size", "16", f"{_ZEPHYR}, on 8 devices"),
    ),
}


def flags_of(name: str) -> list[str]:
    """Return a preset as flags.

    Raises:
        InputError: There is no preset of that name.
    """
    if name not in PRESETS:
        raise InputError(
            f"--preset {name}: not known. Known: {', '.join(PRESETS)}. Name one, or leave it out."
        )
    return [f"--{each.flag}={each.value}" for each in PRESETS[name]]


def described(names: Sequence[str] = tuple(PRESETS)) -> str:
    """Format every flag of the presets with its source, for people."""
    lines = []
    for name in names:
        lines.append(f"--preset {name}")
        lines += [f"  --{s.flag} {s.value}\n      {s.source}" for s in PRESETS[name]]
    return "\n".join(lines)
