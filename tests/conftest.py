"""Every test runs on a CPU that JAX sees as 8 devices; set before anything imports JAX."""

import os
from pathlib import Path

import pytest

from abi_jax.sharding.simulate import simulated_devices

DEVICES = 8
ROOT = Path(__file__).resolve().parent.parent

os.environ.update(simulated_devices(DEVICES, os.environ))

# Compiled programs are kept between runs: the second run of the suite compiles almost nothing.
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(ROOT / ".cache" / "jax"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.3")

# The person's own settings must not reach the tests.
for name in [n for n in os.environ if n.startswith("ABI_")]:
    del os.environ[name]


def pytest_addoption(parser: pytest.Parser) -> None:
    """`--thorough`."""
    parser.addoption("--thorough", action="store_true", help="also the cases that are much like others: twice the time")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leaves out what is marked `thorough`, unless it is asked for."""
    if config.getoption("--thorough"):
        return
    left_out = [each for each in items if each.get_closest_marker("thorough")]
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = [each for each in items if not each.get_closest_marker("thorough")]
