"""What each of two processes does for `test_world_size.py`.

torchrun --nproc-per-node=2 -m tests.kit.two_ranks FOLDER [--shards | --packed | --methods]
run_both(FOLDER)      # two forks of a process that has loaded torch and has no threads
"""

import faulthandler
import json
import multiprocessing
import os
import pickle
import socket
import sys
from pathlib import Path
from typing import Any

from distill.training.trainer import CachedTeacherTrainer
from logitstore.testing import tiny
from logitstore.testing.fake_store import FakeStore
from tests.kit.curves import STEPS
from tests.kit.students import logged, trainer_of

#: In the middle of an epoch: one has two steps.
SAVED_STEP = STEPS // 2 - 1
#: Four sequences a step, on one process or two.
ONE = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2}
TWO = {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 2}
#: With two sequences of a process in one micro-batch, or there would be nothing to pack.
PACKED = {
    "per_device_train_batch_size": 2,
    "gradient_accumulation_steps": 1,
    "packing": True,
    "train_sampling_strategy": "group_by_length",
}
#: Pairs that are made by warping, and weights that the student has a part in.
METHODS = {
    "loss": "cdm,infifusion,mapped_kl",
    "map": "exact",
    "token_weights": "dwa_student",
}
SHARDS = {"fsdp": True, "fsdp_config": {"version": 2, "reshard_after_forward": True}}


class Noting(CachedTeacherTrainer):
    """Notes the rows of the dataset that this process was given, a list a micro-batch."""

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        self.rows: list[list[int]] = getattr(self, "rows", [])
        self.rows.append(inputs["row"].tolist())
        return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)


def prepared(store: FakeStore, out: Path, **more: Any) -> Noting:
    """AdamW and a schedule, so that what a checkpoint forgets would be seen."""
    how: dict[str, Any] = {
        "max_steps": STEPS,
        "optim": "adamw_torch",
        "lr_scheduler_type": "cosine",
        "learning_rate": 1e-3,
        "train_sampling_strategy": "random",
        "save_strategy": "steps",
        "save_steps": SAVED_STEP,
    }
    trainer = trainer_of(
        tiny.llama(len(tiny.byte_bpe())).double(), store, out, Noting, **(how | more)
    )
    assert isinstance(trainer, Noting)
    return trainer


def main(folder: Path, *flags: str) -> None:
    sharded = "--shards" in flags
    how = PACKED if "--packed" in flags else TWO | (SHARDS if sharded else {})
    if (more := folder / "how.json").exists():
        how = how | json.loads(more.read_text())
    how |= METHODS if "--methods" in flags else {}
    store = pickle.loads((folder / "store").read_bytes())
    # A run of shards goes on from its own checkpoint, others from that of one process.
    begun = folder / ("two" if sharded else "one") / f"checkpoint-{SAVED_STEP}"
    for name, checkpoint in (("two", None), ("resumed", str(begun))):
        trainer = prepared(store, folder / name, eval_store=store, **how)
        trainer.train(resume_from_checkpoint=checkpoint)
        found = {"logged": logged(trainer), "eval": trainer.evaluate(), "rows": trainer.rows}
        trainer.save_model()
        (folder / f"{name}-{trainer.args.process_index}.json").write_text(json.dumps(found))
    trainer.end()


def run_both(folder: Path) -> None:
    """Run both ranks, with the environment that torchrun would give them.

    They are no forks of the test's own process: it has threads, and a fork once waited for ever.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    shared |= {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    both = [
        context.Process(target=_rank, args=(folder, shared | {"RANK": rank, "LOCAL_RANK": rank}))
        for rank in ("0", "1")
    ]
    for each in both:
        each.start()
    for each in both:
        each.join(240)
    for each in both:
        each.kill()
        each.join()
    assert [each.exitcode for each in both] == [0, 0]


def _rank(folder: Path, environment: dict[str, str]) -> None:
    os.environ |= environment
    faulthandler.dump_traceback_later(230)
    main(folder)


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
