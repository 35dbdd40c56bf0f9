"""Working memory that a process keeps. Nothing here imports JAX: threads that exist already are not reached.

XLA's CPU backend takes the working memory of every step from the C library and gives it back afterwards. Large
blocks then go back to the kernel each time, and a training step of a 34M model spends a tenth of its time on
getting 160,000 pages anew (`benchmarks/cpu.py`, "ours, pages returned"). One arena also means that threads wait for
each other: decode steps, which are short, and the many threads of simulated devices lose more than they gain.
"""

import ctypes
import importlib.metadata
import importlib.util
import os

from abi_jax.sharding.simulate import simulated_count

# of malloc.h: glibc's numbers, see mallopt(3)
_TRIM_THRESHOLD, _MMAP_MAX, _ARENA_MAX = -1, -4, -8
_NEVER = -1  # mallopt takes an int, and 2 GiB, its greatest, is less than a training step frees at the top of the heap
_VARIABLES = ("MALLOC_ARENA_MAX", "MALLOC_MMAP_MAX_", "MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_")


def keep_memory() -> bool:
    """Makes this process keep what it frees, for its next step; returns whether it does.

    One arena on the program break, never trimmed. Nothing is changed where JAX will use an accelerator or simulate
    several devices, where the environment holds malloc settings (`GLIBC_TUNABLES`, `MALLOC_...`), or with another C
    library than glibc.
    """
    decided = any(name in os.environ for name in ("GLIBC_TUNABLES", *_VARIABLES))
    if decided or _accelerated() or simulated_count(os.environ) > 1 or not _is_glibc():
        return False
    mallopt = ctypes.CDLL(None).mallopt
    return all(mallopt(option, value) for option, value in ((_ARENA_MAX, 1), (_MMAP_MAX, 0), (_TRIM_THRESHOLD, _NEVER)))


def _accelerated() -> bool:
    """Whether JAX will look for a GPU or a TPU, as far as one can tell before it is imported."""
    if platforms := os.environ.get("JAX_PLATFORMS"):
        return platforms != "cpu"
    plugins = importlib.metadata.entry_points(group="jax_plugins")
    return bool(plugins) or importlib.util.find_spec("libtpu") is not None


def _is_glibc() -> bool:
    try:
        return (os.confstr("CS_GNU_LIBC_VERSION") or "").startswith("glibc")
    except (ValueError, OSError, AttributeError):
        return False
