"""What each of two processes does for `test_world_size.py`.

torchrun --nproc-per-node=2 -m tests.kit.two_ranks FOLDER [--shards | --packed]
python -m tests.kit.two_ranks FOLDER …      # two forks of one process, which loads torch once
"""

import json
import os
import pickle
import socket
import sys
from pathlib import Path
from typing import Any

from distill.training.trainer import CachedTeacherTrainer
from logitstore.testing import tiny
from logitstore.testing.fake_store import FakeStore
from tests.kit.students import logged, trainer_of

STEPS = 24
#: In the middle of an epoch: one has two steps.
SAVED_STEP = 11
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


def main() -> None:
    folder = Path(sys.argv[1])
    sharded = "--shards" in sys.argv
    how = PACKED if "--packed" in sys.argv else TWO | (SHARDS if sharded else {})
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


def begin(rank: int, port: int) -> int:
    """Fork a rank with the environment that torchrun would give it; return its process id."""
    child = os.fork()
    if child == 0:
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank)}
        os.environ |= {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
        main()
        sys.exit()
    return child


def fork_both() -> int:
    """Run both ranks; return 1 if one of them failed."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    children = [begin(rank, port) for rank in range(2)]
    statuses = [os.waitpid(child, 0)[1] for child in children]
    return int(any(statuses))


if __name__ == "__main__":
    sys.exit(main() if "RANK" in os.environ else fork_both())
