"""A Ray cluster of several nodes on this machine, on loopback; ended whatever happens.

Each node is a raylet of its own. Its workers are new interpreters, so a teacher costs the import of
torch; the object stores are small.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

NODE = {"object_store_memory": 80 * 2**20, "node_ip_address": "127.0.0.1"}
#: Set for every test, see `tests/conftest.py`.
ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_AUTH_MODE": "disabled",  # else Ray writes a token into the home folder
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # Ray's way to say: loopback, whatever is asked for
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # what later versions do; silences a warning
    "RAY_worker_niceness": "0",  # 15 otherwise, and other tests run beside these
    "RAY_memory_monitor_refresh_ms": "0",  # other tests may fill the memory
    # A node that was taken away is known to be gone after a second, not after half a minute.
    "RAY_health_check_initial_delay_ms": "1000",
    "RAY_health_check_period_ms": "500",
    "RAY_health_check_failure_threshold": "3",
}


@contextmanager
def cluster(cpus: int = 1, **more: Any) -> Iterator[Any]:
    """Start a cluster with one node; `add_node(**NODE, num_cpus=1)` adds others."""
    import ray
    from ray.cluster_utils import Cluster

    head = NODE | {"num_cpus": cpus, "include_dashboard": False, **more}
    started = Cluster(initialize_head=True, head_node_args=head)
    try:
        yield started
    finally:
        ray.shutdown()
        started.shutdown()
