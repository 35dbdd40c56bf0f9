"""Random-looking numbers that are the same in every process, on every machine and with every version of NumPy."""

import numpy as np


def mixed(x: np.ndarray) -> np.ndarray:
    """Returns a bijection of uint64: splitmix64's increment and finaliser (Steele, Lea & Flood 2014)."""
    x = x + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def permutation(size: int, *seeds: int) -> np.ndarray:
    """Returns the numbers from 0 to `size` - 1, int64, in an order that follows from the seeds, each from 0 on."""
    key = np.zeros(1, np.uint64)
    for seed in seeds:
        key = mixed(key ^ np.uint64(seed))
    return np.argsort(mixed(mixed(np.arange(size, dtype=np.uint64)) ^ key), kind="stable")
