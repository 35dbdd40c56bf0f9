"""What the devices could do at best, to say how much of it a run uses."""

import time
from functools import cache

import jax
import numpy as np

# bf16 products without sparsity, FLOP/s of one device, as their makers state it, by the words that stand in the
# device's kind; the first entry that fits counts
PEAKS = {
    "B200": 2250e12,
    "H200": 989e12,
    "H100 PCIe": 756e12,
    "H100 NVL": 835e12,
    "H100": 989e12,
    "A100": 312e12,
    "L40S": 362e12,
    "L40": 181e12,
    "L4": 121e12,
    "TPU v6": 918e12,
    "TPU v6e": 918e12,
    "TPU v5p": 459e12,
    "TPU v5 lite": 197e12,
    "TPU v5e": 197e12,
    "TPU v5": 459e12,
    "TPU v4": 275e12,
}
SIZE, ROUNDS = 1024, 5


def peak_flops() -> float:
    """FLOP/s of all devices together; of CPUs, what NumPy's product of two f32 matrices of `SIZE` reaches.

    0 for a device that is not in the table.
    """
    devices = jax.devices()
    if devices[0].platform == "cpu":
        return jax.process_count() * _measured()
    return peak_of(devices[0].device_kind) * len(devices)


def peak_of(kind: str) -> float:
    """FLOP/s of one device of that kind, e.g. "NVIDIA H100 80GB HBM3"; 0 where it is not known."""
    words = f" {kind.replace('-', ' ')} "
    return next((peak for name, peak in PEAKS.items() if f" {name} " in words), 0.0)


@cache
def _measured() -> float:
    """Simulated devices share the cores of one machine."""
    a = np.ones((SIZE, SIZE), np.float32)
    times = []
    for _ in range(ROUNDS):
        start = time.perf_counter()
        a @ a
        times.append(time.perf_counter() - start)
    return 2 * SIZE**3 / min(times)
