"""Which process of how many this is, read from whatever started it.

Looked at in this order; the three `ABI_` variables override what the others say:

    ABI_COORDINATOR=host:port  ABI_NUM_PROCESSES=n  ABI_PROCESS_ID=i     explicit, any launcher
    TPU_WORKER_HOSTNAMES, TPU_WORKER_ID, MEGASCALE_*                     TPU on GKE; on a TPU VM the same
                                                                         facts from its metadata server
    SLURM_JOB_ID, SLURM_NTASKS, SLURM_PROCID, SLURM_STEP_NODELIST        a SLURM step (`srun`)
    JOB_COMPLETION_INDEX, HOSTNAME, with ABI_NUM_PROCESSES               a Kubernetes Indexed Job or a JobSet

Nothing here imports JAX or touches the network, except the metadata server of a TPU VM.
"""

import importlib.util
import os
import re
import socket
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from glob import glob

from abi_jax.errors import InputError

TPU_PORT = 8482
KUBERNETES_PORT = 8476
METADATA_TIMEOUT_S = 5.0
_EXPLICIT = {"coordinator": "ABI_COORDINATOR", "num_processes": "ABI_NUM_PROCESSES", "process_id": "ABI_PROCESS_ID"}


@dataclass(frozen=True)
class Cluster:
    """This process's place among all of them. `coordinator` is where process 0 listens, as `host:port`.

    `local_device_ids` restricts a process to some of its host's accelerators; None leaves it all.
    """

    coordinator: str
    num_processes: int
    process_id: int
    source: str = "explicit"
    local_device_ids: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        host, _, port = self.coordinator.rpartition(":")
        if not host or not port.isdigit() or not 0 < int(port) < 65536:
            raise InputError(
                f"coordinator {self.coordinator!r} ({self.source}); expected host:port with a port to 65535"
            )
        if self.num_processes < 1:
            raise InputError(f"number of processes {self.num_processes} ({self.source}); expected at least 1")
        if not 0 <= self.process_id < self.num_processes:
            raise InputError(
                f"process id {self.process_id} ({self.source}); expected 0 to {self.num_processes - 1}, "
                f"as there are {self.num_processes} processes"
            )

    @property
    def host(self) -> str:
        """Host name or address of process 0, without the brackets of an IPv6 address."""
        return self.coordinator.rpartition(":")[0].strip("[]")

    @property
    def port(self) -> int:
        """Port of process 0."""
        return int(self.coordinator.rpartition(":")[2])

    @property
    def is_loopback(self) -> bool:
        """True when all processes share this host."""
        return self.host in ("localhost", "::1") or self.host.startswith("127.")


def detect(
    env: Mapping[str, str] | None = None,
    fully_qualified: Callable[[str], str] = socket.getfqdn,
    tpu_vm: Callable[[], Mapping[str, str]] | None = None,
) -> Cluster | None:
    """Returns this process's cluster, or None when it was started on its own.

    `fully_qualified` and `tpu_vm` (the variables a TPU VM would have on GKE) stand in for the machine in
    tests. Raises `InputError` naming the variable that is missing or malformed.
    """
    env = os.environ if env is None else env
    explicit = {key: env[name] for key, name in _EXPLICIT.items() if env.get(name)}
    found: dict[str, object] = {}
    if len(explicit) < len(_EXPLICIT):
        machine = env if "TPU_WORKER_HOSTNAMES" in env else {**(tpu_vm or _tpu_vm_variables)(), **env}
        found = _tpu(machine) or _slurm(env) or _kubernetes(env, fully_qualified) or {}
    if not found and not explicit:
        return None
    sources = [str(found.get("source", ""))] + [_EXPLICIT[k] for k in explicit]
    facts = {**found, **explicit, "source": ", ".join(s for s in sources if s)}
    missing = [name for key, name in _EXPLICIT.items() if key not in facts]
    if missing:
        raise InputError(
            f"several processes are described by {facts['source']}, but {' and '.join(missing)} "
            f"{'is' if len(missing) == 1 else 'are'} not set; set all of {', '.join(_EXPLICIT.values())}, or none"
        )
    return Cluster(
        coordinator=str(facts["coordinator"]),
        num_processes=_integer(facts["num_processes"], "ABI_NUM_PROCESSES"),
        process_id=_integer(facts["process_id"], "ABI_PROCESS_ID"),
        source=str(facts["source"]),
        local_device_ids=facts.get("local_device_ids"),  # type: ignore[arg-type]
    )


def _tpu(env: Mapping[str, str]) -> dict[str, object] | None:
    names = env.get("TPU_PROCESS_ADDRESSES") or env.get("TPU_WORKER_HOSTNAMES")
    if not names or "TPU_WORKER_ID" not in env:
        return None
    workers = [name.strip().split(":")[0] for name in names.split(",")]
    slices = _integer(env.get("MEGASCALE_NUM_SLICES", "1"), "MEGASCALE_NUM_SLICES")
    slice_id = _integer(env.get("MEGASCALE_SLICE_ID", "0"), "MEGASCALE_SLICE_ID")
    # With several slices the Megascale coordinator is the host of process 0.
    first = env.get("MEGASCALE_COORDINATOR_ADDRESS", workers[0]).split(":")[0]
    return {
        "coordinator": f"{first}:{TPU_PORT}",
        "num_processes": len(workers) * slices,
        "process_id": slice_id * len(workers) + _integer(env["TPU_WORKER_ID"], "TPU_WORKER_ID"),
        "source": "TPU",
    }


def _tpu_vm_variables() -> dict[str, str]:
    """Returns what GKE would have put into the environment, asked of a TPU VM's metadata server."""
    has_chips = glob("/dev/accel*") or glob("/dev/vfio/[0-9]*")
    if not has_chips or importlib.util.find_spec("libtpu") is None:
        return {}
    server = os.environ.get("GCE_METADATA_IP", "metadata.google.internal")
    return read_tpu_metadata(f"http://{server}/computeMetadata/v1/instance/attributes")


def read_tpu_metadata(base_url: str) -> dict[str, str]:
    """Reads a TPU VM's worker id, workers and slices; an unreachable server means there is one host."""

    def read(key: str) -> str:
        request = urllib.request.Request(f"{base_url}/{key}", headers={"Metadata-Flavor": "Google"})
        with urllib.request.urlopen(request, timeout=METADATA_TIMEOUT_S) as answer:
            text: str = answer.read().decode()
            return text

    try:
        # Each worker is `host`, or in the older form `name:id:address`.
        workers = [w.split(":")[-1] for w in read("worker-network-endpoints").split(",")]
        found = {"TPU_WORKER_ID": read("agent-worker-number"), "TPU_WORKER_HOSTNAMES": ",".join(workers)}
        for line in read("tpu-env").splitlines():
            key, _, value = line.partition(":")
            if key.strip().startswith("MEGASCALE_"):
                found[key.strip()] = value.strip().strip("'")
        return found
    except OSError:
        return {}


def _slurm(env: Mapping[str, str]) -> dict[str, object] | None:
    needed = ("SLURM_JOB_ID", "SLURM_NTASKS", "SLURM_PROCID", "SLURM_STEP_NODELIST")
    if not all(name in env for name in needed):
        return None  # also inside `sbatch`, before `srun`
    step = env.get("SLURM_STEP_ID", "0")
    offset = _integer(env["SLURM_JOB_ID"], "SLURM_JOB_ID") + (int(step) if step.isdigit() else 0)
    return {
        "coordinator": f"{first_slurm_host(env['SLURM_STEP_NODELIST'])}:{61440 + offset % 4096}",
        "num_processes": _integer(env["SLURM_NTASKS"], "SLURM_NTASKS"),
        "process_id": _integer(env["SLURM_PROCID"], "SLURM_PROCID"),
        "local_device_ids": _slurm_devices(env),
        "source": "SLURM",
    }


def first_slurm_host(nodes: str) -> str:
    """Returns the first host of a SLURM node list: `gpu001` of `gpu[001-003,7],cpu2`."""
    first = re.match(r"(?:[^,\[]|\[[^\]]*\])+", nodes)
    return re.sub(r"\[(\w+)[^\]]*\]", r"\1", first[0]) if first else nodes


def _slurm_devices(env: Mapping[str, str]) -> tuple[int, ...] | None:
    """Splits a node's GPUs evenly over its tasks, where SLURM shows every task all of them."""
    tasks = re.match(r"\d+", env.get("SLURM_STEP_TASKS_PER_NODE", "1"))
    on_node = int(tasks[0]) if tasks else 1
    visible = [d for d in env.get("CUDA_VISIBLE_DEVICES", "").split(",") if d]
    if on_node < 2 or len(visible) < on_node or "SLURM_LOCALID" not in env:
        return None
    share = len(visible) // on_node
    start = _integer(env["SLURM_LOCALID"], "SLURM_LOCALID") * share
    return tuple(range(start, start + share))


def _kubernetes(env: Mapping[str, str], fully_qualified: Callable[[str], str]) -> dict[str, object] | None:
    if "JOB_COMPLETION_INDEX" not in env:
        return None
    if not env.get("ABI_NUM_PROCESSES"):
        # Kubernetes does not tell a pod how many there are; guessing 1 would start many trainings on one path.
        raise InputError(
            "JOB_COMPLETION_INDEX is set (a Kubernetes Indexed Job or JobSet) but ABI_NUM_PROCESSES is not; "
            "set it to the Job's completions in the pod's env, or to 1 if each pod works alone"
        )
    index = env["JOB_COMPLETION_INDEX"]
    found: dict[str, object] = {"process_id": index, "source": "Kubernetes"}
    host, dash, number = env.get("HOSTNAME", "").rpartition("-")
    if dash and number == index:  # pod i is called NAME-i; with a headless service NAME-0 resolves
        domain = fully_qualified(env["HOSTNAME"]).partition(".")[2]
        found["coordinator"] = f"{host}-0{'.' if domain else ''}{domain}:{KUBERNETES_PORT}"
    return found


def _integer(value: object, name: str) -> int:
    try:
        return int(str(value))
    except ValueError:
        raise InputError(f"{name}={value!r}; expected an integer") from None
