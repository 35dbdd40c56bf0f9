"""Many processes: who am I, is everyone there, and do they compute together."""

import io
import json
import socket
import sys
import threading
import time
from collections.abc import Callable, Set
from contextlib import suppress
from functools import partial
from http.server import BaseHTTPRequestHandler, HTTPServer
from types import SimpleNamespace
from typing import Any

import pytest

from abi_jax.errors import InputError
from abi_jax.sharding.cluster import Cluster, detect, first_slurm_host, read_tpu_metadata
from abi_jax.sharding.distributed import initialize
from abi_jax.sharding.local import LocalConfig, free_port, launch
from abi_jax.sharding.rendezvous import _RollCall, rendezvous

EXPLICIT = {"ABI_COORDINATOR": "host:1234", "ABI_NUM_PROCESSES": "4", "ABI_PROCESS_ID": "3"}
SLURM = {
    "SLURM_JOB_ID": "5000",
    "SLURM_STEP_ID": "1",
    "SLURM_NTASKS": "8",
    "SLURM_PROCID": "5",
    "SLURM_LOCALID": "1",
    "SLURM_STEP_NODELIST": "gpu[007-008,012],cpu1",
    "SLURM_STEP_TASKS_PER_NODE": "2(x4)",
}
KUBERNETES = {"JOB_COMPLETION_INDEX": "2", "HOSTNAME": "train-2", "ABI_NUM_PROCESSES": "4"}
TPU = {"TPU_WORKER_HOSTNAMES": "a,b", "TPU_WORKER_ID": "1"}


def qualified(host: str) -> str:
    return f"{host}.train.default.svc.cluster.local"


def found(env: dict[str, str]) -> Cluster | None:
    return detect(env, qualified, dict)


@pytest.mark.parametrize(
    ("env", "expected"),
    [
        ({}, None),
        ({"SLURM_JOB_ID": "1", "SLURM_NTASKS": "4", "SLURM_PROCID": "0"}, None),  # in sbatch, before srun
        (EXPLICIT, ("host:1234", 4, 3, None)),
        (SLURM, ("gpu007:62345", 8, 5, None)),
        (SLURM | {"CUDA_VISIBLE_DEVICES": "0,1,2,3"}, ("gpu007:62345", 8, 5, (2, 3))),
        (SLURM | {"CUDA_VISIBLE_DEVICES": "1"}, ("gpu007:62345", 8, 5, None)),  # one GPU a task already
        (SLURM | {"ABI_COORDINATOR": "login:99"}, ("login:99", 8, 5, None)),
        (SLURM | EXPLICIT, ("host:1234", 4, 3, None)),
        (KUBERNETES, ("train-0.train.default.svc.cluster.local:8476", 4, 2, None)),
        (KUBERNETES | {"ABI_COORDINATOR": "first:1"}, ("first:1", 4, 2, None)),
        (TPU, ("a:8482", 2, 1, None)),
        (TPU | KUBERNETES | {"ABI_NUM_PROCESSES": ""}, ("a:8482", 2, 1, None)),
        (TPU | {"TPU_PROCESS_ADDRESSES": "x:1,y:1,z:1"}, ("x:8482", 3, 1, None)),
        (
            TPU | {"MEGASCALE_NUM_SLICES": "3", "MEGASCALE_SLICE_ID": "2", "MEGASCALE_COORDINATOR_ADDRESS": "m:80"},
            ("m:8482", 6, 5, None),
        ),
    ],
)
@pytest.mark.smoke
def test_detect(env: dict[str, str], expected: tuple[object, ...] | None) -> None:
    cluster = found(env)
    if expected is None:
        assert cluster is None
    else:
        assert cluster is not None
        assert (cluster.coordinator, cluster.num_processes, cluster.process_id, cluster.local_device_ids) == expected


@pytest.mark.parametrize(
    ("env", "message"),
    [
        ({"ABI_PROCESS_ID": "1"}, "ABI_COORDINATOR and ABI_NUM_PROCESSES are not set"),
        ({"ABI_PROCESS_ID": "1", "ABI_NUM_PROCESSES": "2"}, "ABI_COORDINATOR is not set"),
        (EXPLICIT | {"ABI_PROCESS_ID": "4"}, "process id 4 .*expected 0 to 3"),
        (EXPLICIT | {"ABI_PROCESS_ID": "one"}, "ABI_PROCESS_ID='one'; expected an integer"),
        (EXPLICIT | {"ABI_NUM_PROCESSES": "0"}, "number of processes 0"),
        (EXPLICIT | {"ABI_COORDINATOR": "host"}, "'host'.*host:port"),
        (EXPLICIT | {"ABI_COORDINATOR": "host:70000"}, "'host:70000'"),
        ({"JOB_COMPLETION_INDEX": "0"}, "ABI_NUM_PROCESSES is not"),
        (KUBERNETES | {"HOSTNAME": "pod-x7"}, "Kubernetes.*ABI_COORDINATOR is not set"),
        (SLURM | {"SLURM_NTASKS": "many"}, "'many'"),
    ],
)
@pytest.mark.smoke
def test_detect_names_what_is_wrong(env: dict[str, str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        found(env)


@pytest.mark.parametrize(
    ("nodes", "host"),
    [("n1", "n1"), ("n1,n2", "n1"), ("n[3,5-7]", "n3"), ("r[2-3]n[01-04].x,b", "r2n01.x"), ("gpu-a[10]", "gpu-a10")],
)
@pytest.mark.smoke
def test_first_slurm_host(nodes: str, host: str) -> None:
    assert first_slurm_host(nodes) == host


def test_tpu_vm_metadata(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("abi_jax.sharding.cluster.METADATA_TIMEOUT_S", 100.0)
    pages = {
        "/worker-network-endpoints": "name:0:10.0.0.1,name:1:10.0.0.2",
        "/agent-worker-number": "1",
        "/tpu-env": "ZONE: 'z'\nMEGASCALE_NUM_SLICES: '2'\nMEGASCALE_SLICE_ID: '1'\n",
    }

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            assert self.headers["Metadata-Flavor"] == "Google"
            self.send_response(200)
            self.end_headers()
            self.wfile.write(pages[self.path].encode())

        def log_message(self, *_: object) -> None: ...

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        variables = read_tpu_metadata(f"http://127.0.0.1:{server.server_port}")
        server.shutdown()
    cluster = detect({}, qualified, lambda: variables)
    assert cluster is not None
    assert (cluster.coordinator, cluster.num_processes, cluster.process_id) == ("10.0.0.1:8482", 4, 3)
    assert read_tpu_metadata(f"http://127.0.0.1:{free_port()}") == {}


def roll_call(*calls: Callable[[], None]) -> list[str | None]:
    """Runs each call in a thread of its own; returns the message of its `InputError`, None where it went well."""
    results: list[str | None] = ["did not return"] * len(calls)

    def run(index: int) -> None:
        try:
            calls[index]()
            results[index] = None
        except InputError as e:
            results[index] = str(e)

    threads = [threading.Thread(target=run, args=(i,), daemon=True) for i in range(len(calls))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=200)
    return results


def member(
    port: int, process_id: int, count: int, timeout_s: float = 100.0, delay_s: float = 0.0
) -> Callable[[], None]:
    def run() -> None:
        time.sleep(delay_s)
        rendezvous(Cluster(f"127.0.0.1:{port}", count, process_id), timeout_s)

    return run


def test_everyone_is_there_in_any_order() -> None:
    port = free_port()
    assert roll_call(member(port, 2, 3), member(port, 1, 3, delay_s=0.3), member(port, 0, 3, delay_s=0.1)) == [None] * 3


def time_is_up_once(monkeypatch: pytest.MonkeyPatch, heard: Callable[[Set[int]], bool]) -> None:
    """The clock stands still until process 0 has heard what it is to hear; `heard` is told who is present then."""
    now, read = [0.0], _RollCall._read

    def noted(call: _RollCall, *rest: Any) -> str | None:
        error = read(call, *rest)
        if heard(set(call.present)):
            now[0] = 1000.0
        return error

    monkeypatch.setattr(_RollCall, "_read", noted)
    clock = SimpleNamespace(monotonic=lambda: now[0], sleep=time.sleep)
    monkeypatch.setattr("abi_jax.sharding.rendezvous.time", clock)


def test_everyone_hears_who_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    port = free_port()
    time_is_up_once(monkeypatch, lambda present: present == {0, 2, 4})
    messages = roll_call(*(member(port, i, 5, timeout_s=100.0 if i else 1.0) for i in (0, 2, 4)))
    host = socket.gethostname()
    assert set(messages) == {
        f"missing process 1 and 3 of 5: not heard of within 1 s at 127.0.0.1:{port}; "
        f"present: 0 ({host}), 2 ({host}), 4 ({host})"
    }


def test_a_missing_first_process_is_named_too() -> None:
    (message,) = roll_call(member(free_port(), 1, 2, timeout_s=0.5))
    assert message is not None
    assert message.startswith("missing process 0 of 2: process 1 could not reach it at 127.0.0.1:")
    assert "Connection refused" in message


def test_two_processes_with_one_id() -> None:
    port = free_port()
    messages = roll_call(member(port, 0, 3), member(port, 1, 3), member(port, 1, 3, delay_s=0.3))
    assert all(m and "two processes have id 1" in m for m in messages), messages


def test_processes_that_disagree_on_how_many_there_are() -> None:
    port = free_port()
    messages = roll_call(member(port, 0, 3), member(port, 1, 2))
    assert all(m and "expects 2 processes, process 0 expects 3" in m for m in messages), messages


def connected(port: int) -> socket.socket:
    """A connection to a port at which somebody listens sooner or later."""
    while True:
        with suppress(ConnectionRefusedError):
            return socket.create_connection(("127.0.0.1", port))
        time.sleep(0.01)


def test_a_process_that_leaves_again_counts_as_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    port = free_port()
    seen: set[int] = set()

    def left(present: Set[int]) -> bool:
        seen.update(present)
        return 1 in seen - present

    def leave() -> None:
        with connected(port) as s:
            hello = b'{"abi": 1, "process": 1, "processes": 3, "host": "h"}\n'
            s.sendall(hello[:20])  # a line may arrive in parts
            time.sleep(0.1)
            s.sendall(hello[20:])

    time_is_up_once(monkeypatch, left)
    messages = roll_call(member(port, 0, 3, timeout_s=1.0), leave)
    assert messages[0] is not None and messages[1] is None
    assert "missing process 1 and 2 of 3" in messages[0]


def test_strangers_are_ignored() -> None:
    port, refused = free_port(), threading.Barrier(4, timeout=100)

    def stranger(data: bytes) -> None:
        with connected(port) as s, suppress(ConnectionResetError, BrokenPipeError):
            s.sendall(data)
            assert s.recv(10) == b""
        refused.wait()

    def last() -> None:
        refused.wait()
        member(port, 1, 2)()

    strangers = [partial(stranger, d) for d in (b"GET / HTTP/1.1\r\n\r\n", b"x" * 10000 + b"\n", b"[1]\n")]
    assert roll_call(member(port, 0, 2), *strangers, last) == [None] * 5


def test_a_port_in_use_is_named() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        (message,) = roll_call(member(port, 0, 2, timeout_s=0.5))
    assert message is not None
    assert f"cannot listen on 127.0.0.1:{port}" in message


@pytest.mark.smoke
def test_one_process_starts_nothing() -> None:
    assert initialize(env={}) is None
    one = EXPLICIT | {"ABI_NUM_PROCESSES": "1", "ABI_PROCESS_ID": "0"}
    assert initialize(env=one) == Cluster("host:1234", 1, 0, ", ".join(EXPLICIT))
    for bad in ("soon", "0", "-1", "inf", "nan"):
        with pytest.raises(InputError, match="ABI_START_TIMEOUT"):
            initialize(env=EXPLICIT | {"ABI_START_TIMEOUT": bad})


PROGRAM = """
import json
import sys

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec

from abi_jax.errors import InputError
from abi_jax.sharding import MeshConfig, initialize, make_mesh, use

try:
    cluster = initialize()
except InputError as e:
    print(e, file=sys.stderr)
    sys.exit(2)
mesh = make_mesh(MeshConfig(data=-1, tensor=2, slices={"data": 2}))
with use(mesh):
    x = jax.make_array_from_callback(
        (8,), jax.NamedSharding(mesh, PartitionSpec(("data", "tensor"))), lambda i: np.arange(8.0)[i]
    )
    total = jax.jit(jnp.sum)(x)
    by_hand = jax.jit(jax.shard_map(
        lambda x: jax.lax.psum(x.sum(), ("data", "tensor")),
        in_specs=PartitionSpec(("data", "tensor")), out_specs=PartitionSpec(),
    ))(x)
together = [sorted({d.process_index for d in part.flat}) for part in mesh.devices]
print(json.dumps([cluster.process_id, jax.device_count(), float(total), float(by_hand), together]))
"""


@pytest.mark.slow
def test_two_processes_compute_together() -> None:
    """2 processes x 4 simulated devices: collectives agree, and each process is one slice of the mesh."""
    out, err = io.StringIO(), io.StringIO()
    status = launch(LocalConfig((sys.executable, "-W", "error", "-c", PROGRAM), 2, devices=4, prefix=False), out, err)
    assert status == 0, err.getvalue()
    lines = sorted(json.loads(line) for line in out.getvalue().splitlines())
    assert lines == [[i, 8, 28.0, 28.0, [[0], [0], [1], [1]]] for i in range(2)]


# Three processes are to come; the time of the first is up once the second, which waits for it, is there.
TOO_FEW = """
import os, time, types
from abi_jax.sharding import rendezvous
os.environ["ABI_NUM_PROCESSES"] = "3"
now, enter = [0.0], rendezvous._RollCall._enter
def entered(*given):
    now[0] = 1000.0
    return enter(*given)
rendezvous._RollCall._enter = entered
rendezvous.time = types.SimpleNamespace(monotonic=lambda: now[0], sleep=time.sleep)
"""


@pytest.mark.slow
def test_a_missing_process_fails_the_others_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ABI_START_TIMEOUT", "3")
    out, err = io.StringIO(), io.StringIO()
    start = time.monotonic()
    status = launch(LocalConfig((sys.executable, "-c", TOO_FEW + PROGRAM), 2, devices=2), out, err)
    assert status == 2, err.getvalue()
    assert time.monotonic() - start < 200
    assert "missing process 2 of 3: not heard of within 3 s" in err.getvalue()
    assert "Traceback" not in err.getvalue()
