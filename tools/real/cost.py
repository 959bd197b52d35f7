"""Time one step of each kind in this process, and say what a size of the experiment costs.

Nothing needs to be prepared: models have the shapes of the real ones and random weights, texts are
random ids of the usual lengths. Times are the processor's, of one thread, since the experiment runs
one worker a core; on a machine that others use they are what it would take alone, about.
"""

import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from tools.benchmark import table
from tools.real.settings import TEACHER, UNTRAINED, Job, Scale, jobs

#: Of texts and of questions with their answers.
_BYTES_A_TOKEN, _TOKENS = 3.5, {"text": 140, "answers": 150}
#: About what is left of a vocabulary that is cut down to the texts.
_TRIMMED = 9_000
_WHOLE = {"pruned": 49_152, "foreign": 32_000, "new": 32_000}
_CORES = 2
#: Of a timed batch: rows, tokens of a row, and of a prompt whose answer is timed.
_ROWS, _LENGTH, _PROMPT = 4, 70, 16


def cost(scale: Scale) -> str:
    """Time steps, and list what each part of the experiment takes, in hours of one core."""
    torch.set_num_threads(1)
    hours = {name: seconds / 3600 for name, seconds in seconds_of(scale).items()}
    rows = [["", "hours of a core"]]
    rows += [[name, f"{value:.2f}"] for name, value in hours.items()]
    total = sum(hours.values())
    rows.append(["all", f"{total:.2f}"])
    return f"{table(rows)}\n\n{total / _CORES:.1f} hours on {_CORES} cores"


def seconds_of(scale: Scale) -> dict[str, float]:
    """Estimate the seconds of each part, on one core."""
    teacher = _model(scale, "teacher")
    read_s, write_s = _reading(teacher), _writing(teacher)
    found = {"capture": _captured_tokens(scale) * read_s}
    found["the teacher's answers"] = sum(scale.prompts.values()) * scale.answer_tokens * write_s
    for student in ("pruned", "foreign", "new"):
        model = _model(scale, student)
        step_s, own_s = _training(model), _reading(model)
        own_write_s = _writing(model)
        if student != "new":
            tokens = scale.heal.steps * scale.rows * _TOKENS["text"]
            found[f"healing {student}"] = scale.heals * tokens * step_s
        wanted = [j for group in jobs(scale, f"{student}/*") for j in group]
        found[f"training {student}"] = sum(_job(j, scale, step_s, read_s) for j in wanted)
        found[f"measuring {student}"] = sum(_measured(j, scale, own_s, own_write_s) for j in wanted)
    return found


def _job(job: Job, scale: Scale, step_s: float, read_s: float) -> float:
    if job.contender in (UNTRAINED, TEACHER):
        return 0.0
    tokens = scale.rates[job.setting.rate].steps * scale.rows * _TOKENS[job.setting.data]
    return tokens * (step_s + (read_s if job.made.live is not None else 0.0))


def _measured(job: Job, scale: Scale, read_s: float, write_s: float) -> float:
    """Twice the held-out rows, for bits and for calibration; and the student's answers."""
    if job.setting.data == "text":
        return 2 * scale.text_bytes["heldout"] / _BYTES_A_TOKEN * read_s
    prompts = scale.prompts["heldout"]
    return prompts * (3 * _TOKENS["answers"] * read_s + scale.answer_tokens * write_s)


def _captured_tokens(scale: Scale) -> float:
    texts = (scale.text_bytes["rows"] + scale.text_bytes["heldout"]) / _BYTES_A_TOKEN
    return texts + 2 * sum(scale.prompts.values()) * _TOKENS["answers"]


def _model(scale: Scale, name: str) -> Any:
    """Make a model of the shape of the teacher or of a student."""
    layers = 30 if name == "teacher" else len(range(0, 30, scale.stride))
    width, heads, inner = 576, 9, 1536
    if name == "new":
        width, layers = scale.new.width, scale.new.layers
        heads, inner = max(3, width // 32 // 3 * 3), width * 8 // 3
    if not scale.is_real:
        width, heads, inner, layers = 48, 3, 64, min(layers, 2)
    vocabulary = _TRIMMED if scale.is_trimmed else _WHOLE.get(name, _WHOLE["pruned"])
    config = LlamaConfig(
        vocab_size=_WHOLE["pruned"] if name == "teacher" and scale.is_real else vocabulary,
        hidden_size=width,
        intermediate_size=inner,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=3,
        tie_word_embeddings=True,
        eos_token_id=None,
    )
    return LlamaForCausalLM(config)


def _ids(length: int) -> Tensor:
    return torch.randint(_TRIMMED, (_ROWS, length), generator=torch.Generator().manual_seed(0))


def _timed(work: Callable[[], object], tokens: int) -> float:
    """Return seconds a token: the second of two runs."""
    work()
    began = time.process_time()
    work()
    return (time.process_time() - began) / tokens


def _reading(model: Any) -> float:
    ids = _ids(_LENGTH)

    def read() -> None:
        with torch.inference_mode():
            model(input_ids=ids)

    return _timed(read, ids.numel())


def _writing(model: Any) -> float:
    """Return seconds for each token that is written, in batches, behind a prompt."""
    ids, count = _ids(_PROMPT), 4
    model.generation_config.pad_token_id = 0

    def write(new: int) -> Callable[[], object]:
        return lambda: model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=new,
            min_new_tokens=new,
            do_sample=False,
        )

    model.eval()
    whole, first = _timed(write(1 + count), 1), _timed(write(1), 1)
    return max(whole - first, 0.0) / (count * len(ids))


def _training(model: Any) -> float:
    ids = _ids(_LENGTH)
    optimizer = torch.optim.AdamW(model.parameters())

    def step() -> None:
        model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    model.train()
    return _timed(step, ids.numel())
