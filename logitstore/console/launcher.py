"""Find which of a launcher's processes this one is: torchrun, accelerate, SLURM or none."""

import os
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from logitstore.errors import InputError


class Ranks(NamedTuple):
    """One process of several that run the same command."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    def own(self, shards: Iterable[int]) -> list[int]:
        """Select the shards that belong to this rank."""
        return [i for i in shards if i % self.size == self.rank]

    def __str__(self) -> str:
        return f"rank {self.rank} of {self.size}"


def find_ranks(environment: Mapping[str, str] | None = None) -> Ranks:
    """Read the launcher's environment variables; without a launcher, this is the only process.

    Raises:
        InputError: The variables are not numbers, or contradict each other.
    """
    env = os.environ if environment is None else environment
    if "RANK" in env and "WORLD_SIZE" in env:
        return _ranks(env, "RANK", "WORLD_SIZE", "LOCAL_RANK")
    is_step = "SLURM_STEP_NUM_TASKS" in env or env.get("SLURM_PROCID", "0") != "0"
    if is_step and "SLURM_PROCID" in env:
        size = "SLURM_STEP_NUM_TASKS" if "SLURM_STEP_NUM_TASKS" in env else "SLURM_NTASKS"
        if size in env:
            return _ranks(env, "SLURM_PROCID", size, "SLURM_LOCALID")
    return Ranks()


def _ranks(env: Mapping[str, str], rank: str, size: str, local_rank: str) -> Ranks:
    given = {name: env.get(name, "0") for name in (rank, size, local_rank)}
    variables = " ".join(f"{name}={value}" for name, value in given.items())
    try:
        ranks = Ranks(*map(int, given.values()))
    except ValueError:
        ranks = Ranks(0, 0)
    if not 0 <= ranks.rank < ranks.size or ranks.local_rank < 0:
        raise InputError(
            f"{variables}: expected numbers, 0 <= {rank} < {size}. Start through torchrun, "
            "accelerate launch or srun, or unset these variables to run one process."
        )
    return ranks
