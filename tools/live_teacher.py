"""A student of a live teacher that shares its tokenizer: what `tail_kl` stands in for.

    python -m tools.live_teacher TEACHER --store … --model_name_or_path …  (as distill train)

The teacher's weights are in memory and asked in every step for its whole distribution; the loss is
cross-entropy plus KL(teacher || student) over the full vocabulary, averaged over labels, from one
forward pass of each. Rows, their order, labels and optimizer are those of `distill train` on the
same store.

Shape legend: N = labels, V = vocabulary.
"""

import json
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer, HfArgumentParser, PreTrainedModel

from distill.config import CachedTeacherConfig
from distill.terms import Term
from distill.trainer import CachedTeacherTrainer


class LiveTeacherTrainer(CachedTeacherTrainer):
    """`CachedTeacherTrainer` with `loss="ce"`, and a teacher beside it.

    Args:
        teacher: Of the student's tokenizer, in eval mode.
    """

    def __init__(self, teacher: PreTrainedModel, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.teacher = teacher

    def _loss(
        self, model: nn.Module, inputs: dict[str, Any], counts: Tensor
    ) -> tuple[Tensor, dict[str, Term]]:
        """Cross-entropy as from a store, and the KL of all that the teacher says."""
        seen, rows_N = self._seen(inputs), inputs["rows"]
        labels_N = inputs["labels"].flatten()[rows_N + 1]
        with torch.no_grad():
            teacher_NV = self.teacher(**seen).logits.flatten(0, 1)[rows_N].float().log_softmax(-1)
        student_NV = model(**seen).logits.flatten(0, 1)[rows_N].float().log_softmax(-1)
        ce_N = -student_NV.gather(1, labels_N[:, None]).squeeze(1)
        kl = nn.functional.kl_div(student_NV, teacher_NV, reduction="sum", log_target=True)
        nothing_N = torch.zeros_like(ce_N).detach()
        terms = {"ce": Term(ce_N, torch.arange(len(ce_N), device=ce_N.device), nothing_N)}
        return (ce_N.sum() + kl) / counts[0], terms


def main() -> None:
    teacher, *flags = sys.argv[1:]
    started = time.monotonic()
    parser: Any = HfArgumentParser(CachedTeacherConfig)  # type: ignore[arg-type]
    parser.add_argument("--model_name_or_path", required=True)
    args, rest = parser.parse_args_into_dataclasses(flags)
    student: Any = AutoModelForCausalLM.from_pretrained(rest.model_name_or_path)
    tokenizer: Any = AutoTokenizer.from_pretrained(rest.model_name_or_path)
    asked: Any = AutoModelForCausalLM.from_pretrained(teacher)
    trainer = LiveTeacherTrainer(
        teacher=asked.eval(),
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
