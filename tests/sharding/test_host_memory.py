"""A process that keeps its memory gets no page twice; one that decided otherwise is left alone."""

import json
import os
import subprocess
import sys

import pytest

from abi_jax.sharding import host_memory
from abi_jax.sharding.simulate import simulated_devices

pytestmark = pytest.mark.skipif(not host_memory._is_glibc(), reason="mallopt is glibc's")

# Blocks taken and given back by a thread as XLA's are, 64 MiB of each touched: how many pages does the tenth time cost?
FAULTS = """
import ctypes, json, resource, threading
from abi_jax.sharding.host_memory import keep_memory
kept, c = keep_memory(), ctypes.CDLL(None)
c.malloc.restype, c.malloc.argtypes, c.free.argtypes = ctypes.c_void_p, [ctypes.c_size_t], [ctypes.c_void_p]
def block():
    p = c.malloc(MIB << 20)
    ctypes.memset(p, 1, 64 << 20)
    c.free(p)
def work():
    for turn in range(10):
        before = resource.getrusage(resource.RUSAGE_THREAD).ru_minflt
        block()
        faults.append(resource.getrusage(resource.RUSAGE_THREAD).ru_minflt - before)
faults = []
thread = threading.Thread(target=work)
thread.start()
thread.join()
print(json.dumps([kept, faults]))
"""


def run(mib: int, env: dict[str, str]) -> tuple[bool, list[int]]:
    clean = {
        k: v for k, v in os.environ.items() if k not in ("GLIBC_TUNABLES", "XLA_FLAGS") and not k.startswith("MALLOC_")
    }
    code = FAULTS.replace("MIB", str(mib))
    done = subprocess.run([sys.executable, "-c", code], env={**clean, **env}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    kept, faults = json.loads(done.stdout)
    return kept, faults


@pytest.mark.parametrize("mib", [64, 2500], ids=["small", "more than an int of bytes"])
def test_working_memory_is_taken_from_the_system_once(mib: int) -> None:
    kept, faults = run(mib, {"JAX_PLATFORMS": "cpu"})
    assert kept and max(faults[1:]) < 10


@pytest.mark.parametrize(
    "env",
    [
        {"JAX_PLATFORMS": "cuda"},
        {"JAX_PLATFORMS": "cpu", "MALLOC_ARENA_MAX": "2"},
        simulated_devices(8, {}),
    ],
    ids=["accelerator", "set by the user", "simulated devices"],
)
def test_a_process_that_would_not_gain_is_left_alone(env: dict[str, str]) -> None:
    kept, faults = run(64, env)
    assert not kept and min(faults[1:]) > 20
