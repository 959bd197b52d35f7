"""What each process of `test_wrapped_models_train_as_one_process_does` does, started by torchrun.

torchrun --nproc-per-node=N -m tests.gpu.wrapped FOLDER DEVICE [--shards]
"""

import json
import os
import pickle
import sys
from pathlib import Path

from logitstore.testing import tiny
from tests.kit.students import logged, trainer_of
from tests.kit.two_ranks import SHARDS


def main() -> None:
    folder, device = Path(sys.argv[1]), sys.argv[2]
    if device == "cuda":
        os.environ["LOCAL_RANK"] = "0"  # all share the first
    processes = int(os.environ["WORLD_SIZE"])
    trainer = trainer_of(
        tiny.llama(len(tiny.byte_bpe())),
        pickle.loads((folder / "store").read_bytes()),
        folder / "out",
        loss="uld",
        per_device_train_batch_size=4 // processes,
        use_cpu=device == "cpu",
        **(SHARDS if "--shards" in sys.argv else {}),
    )
    trainer.train()
    if trainer.args.process_index == 0:
        (folder / "logged.json").write_text(json.dumps(logged(trainer)))


if __name__ == "__main__":
    main()
