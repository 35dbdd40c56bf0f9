"""Starting many processes as one JAX program."""

import os
from collections.abc import Mapping

import jax

from abi_jax.errors import InputError
from abi_jax.sharding.cluster import Cluster, detect
from abi_jax.sharding.rendezvous import rendezvous

DEFAULT_TIMEOUT_S = 300.0
_started: Cluster | None = None


def initialize(timeout_s: float | None = None, env: Mapping[str, str] | None = None) -> Cluster | None:
    """Joins this process to the others it was started with; call it before anything touches a device.

    Returns the cluster, or None for a process on its own; a second call returns the first one's answer.
    `timeout_s` (default: ABI_START_TIMEOUT, else 300) bounds the wait for the other processes.
    Raises `InputError` that names the processes that did not come, and for malformed variables.
    """
    global _started
    if _started is not None:
        return _started
    env = os.environ if env is None else env
    cluster = detect(env)
    if cluster is None or cluster.num_processes == 1:
        return cluster
    timeout_s = _timeout(env) if timeout_s is None else timeout_s
    rendezvous(cluster, timeout_s)
    jax.distributed.initialize(
        coordinator_address=cluster.coordinator,
        num_processes=cluster.num_processes,
        process_id=cluster.process_id,
        local_device_ids=cluster.local_device_ids,
        # `detect` has looked already; JAX's own detection would also query Kubernetes.
        cluster_detection_method="deactivate",
        initialization_timeout=max(1, round(timeout_s)),
        coordinator_bind_address=cluster.coordinator if cluster.is_loopback else None,
    )
    _started = cluster
    return cluster


def _timeout(env: Mapping[str, str]) -> float:
    text = env.get("ABI_START_TIMEOUT") or str(DEFAULT_TIMEOUT_S)
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not 0 < seconds < float("inf"):
        raise InputError(f"ABI_START_TIMEOUT={text!r}; expected a number of seconds above 0")
    return seconds
