"""Train a student from a live teacher that shares its tokenizer, which `tail_kl` approximates.

    python -m tools.live_teacher TEACHER --store … --model_name_or_path …  (as distill train)

The teacher's weights are in memory, and predict its whole distribution in every step; the loss is
cross-entropy plus KL(teacher || student) over the full vocabulary, averaged over labels, from one
forward pass of each. Rows, their order, labels and optimizer are those of `distill train` on the
same store. `--top_k K` cuts the teacher as a store does, to its K most probable tokens and one
class for all others: what then still differs from `tail_kl` is due to the store, not to the cut.

Shape legend: N = labels, V = vocabulary, K = most probable tokens.
"""

import json
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer, HfArgumentParser, PreTrainedModel

from distill.training.batch_loss import seen_of
from distill.training.config import CachedTeacherConfig
from distill.training.loss_terms import Term
from distill.training.trainer import CachedTeacherTrainer


class LiveTeacherTrainer(CachedTeacherTrainer):
    """A `CachedTeacherTrainer` with `loss="ce"`, and a live teacher beside it.

    Args:
        teacher: A model with the student's tokenizer, in eval mode.
        top_k: How many tokens are compared one by one, all others as one class; None: all.
    """

    def __init__(self, teacher: PreTrainedModel, top_k: int | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.teacher, self.top_k = teacher, top_k

    def _loss(
        self, model: nn.Module, inputs: dict[str, Any], counts: Tensor
    ) -> tuple[Tensor, dict[str, Term]]:
        """Return cross-entropy as with a store, plus the KL to the teacher's distribution."""
        seen, rows_N = seen_of(inputs), inputs["rows"]
        labels_N = inputs["labels"].flatten()[rows_N + 1]
        with torch.no_grad():
            teacher_NV = self.teacher(**seen).logits.flatten(0, 1)[rows_N].float().log_softmax(-1)
        student_NV = model(**seen).logits.flatten(0, 1)[rows_N].float().log_softmax(-1)
        ce_N = -student_NV.gather(1, labels_N[:, None]).squeeze(1)
        if self.top_k is not None:
            top_NK = teacher_NV.topk(self.top_k).indices
            teacher_NV, student_NV = cut(teacher_NV, top_NK), cut(student_NV, top_NK)
        kl = nn.functional.kl_div(student_NV, teacher_NV, reduction="sum", log_target=True)
        nothing_N = torch.zeros_like(ce_N).detach()
        terms = {"ce": Term(ce_N, torch.arange(len(ce_N), device=ce_N.device), nothing_N)}
        return (ce_N.sum() + kl) / counts[0], terms


def cut(logprobs_NV: Tensor, top_NK: Tensor) -> Tensor:
    """Return (N, K + 1) log-probabilities of the K tokens and of all others together."""
    others_NV = logprobs_NV.scatter(1, top_NK, -torch.inf)
    return torch.cat([logprobs_NV.gather(1, top_NK), others_NV.logsumexp(1, keepdim=True)], 1)


def main() -> None:
    teacher, *flags = sys.argv[1:]
    started = time.monotonic()
    parser: Any = HfArgumentParser(CachedTeacherConfig)  # type: ignore[arg-type]
    parser.add_argument("--model_name_or_path", required=True)
    parser.add_argument("--top_k", type=int)
    args, rest = parser.parse_args_into_dataclasses(flags)
    student: Any = AutoModelForCausalLM.from_pretrained(rest.model_name_or_path)
    tokenizer: Any = AutoTokenizer.from_pretrained(rest.model_name_or_path)
    asked: Any = AutoModelForCausalLM.from_pretrained(teacher)
    trainer = LiveTeacherTrainer(
        teacher=asked.eval(),
        top_k=rest.top_k,
        model=student,
        args=args,
        processing_class=tokenizer,
    )
    trainer.train()
    trainer.save_model()
    run = {"name": args.run_name, "seed": args.seed, "time_s": time.monotonic() - started}
    (Path(args.output_dir) / "results.json").write_text(json.dumps(run) + "\n")


if __name__ == "__main__":
    main()
