"""Every test runs on a CPU that JAX sees as 8 devices; set before anything imports JAX."""

import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from abi_jax.sharding.simulate import simulated_devices

DEVICES = 8
ROOT = Path(__file__).resolve().parent.parent

os.environ.update(simulated_devices(DEVICES, os.environ))

# Compiled programs are kept between runs: the second run of the suite compiles almost nothing.
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(ROOT / ".cache" / "jax"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.3")

QUICK = os.environ.get("JAX_DISABLE_MOST_OPTIMIZATIONS", "0") not in ("0", "false", "False", "")
QUICKLY = "jax_disable_most_optimizations"

# How long an example takes tells of the machine, which may be busy, and not of what is tested.
settings.register_profile("abi-jax", settings(), deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("abi-jax")

# The person's own settings must not reach the tests.
for name in [n for n in os.environ if n.startswith("ABI_")]:
    del os.environ[name]


def pytest_addoption(parser: pytest.Parser) -> None:
    """`--thorough` and `--screenshots`."""
    parser.addoption("--screenshots", action="store_true", help="put the screenshots of the page into docs/ anew")
    parser.addoption("--thorough", action="store_true", help="also the cases that are much like others: twice the time")


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Has XLA optimize where a test is marked `optimized`, though the run has it compile quickly."""
    import jax  # which reads the variables above

    quickly = item.get_closest_marker("optimized") is None
    if QUICK and quickly != jax.config.read(QUICKLY):
        jax.config.update(QUICKLY, quickly)
        os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = str(int(quickly))  # of processes that a test starts
        jax.clear_caches()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leaves out what is marked `thorough`, unless it is asked for, and lets files with slow tests begin first.

    So no worker begins the longest of them when the others have nothing left to do.
    """
    slow = {each.path for each in items if each.get_closest_marker("slow")}
    items.sort(key=lambda each: each.path not in slow)
    if config.getoption("--thorough"):
        return
    left_out = [each for each in items if each.get_closest_marker("thorough")]
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = [each for each in items if not each.get_closest_marker("thorough")]
