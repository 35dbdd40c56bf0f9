"""Simulated devices, and what the sharding package shows."""

import jax
import pytest

from abi_jax import sharding
from abi_jax.errors import InputError
from abi_jax.sharding.simulate import simulated_count, simulated_devices

pytestmark = pytest.mark.smoke


def test_the_tests_run_on_eight_devices() -> None:
    assert jax.device_count() == 8
    assert jax.default_backend() == "cpu"


def test_flags_of_others_stay() -> None:
    env = {"XLA_FLAGS": "--xla_force_host_platform_device_count=2 --b=1 --xla_cpu_collective_timeout_seconds=7"}
    found = simulated_devices(4, env)
    flags = found["XLA_FLAGS"].split()
    assert found["JAX_PLATFORMS"] == "cpu"
    assert flags[:2] == ["--b=1", "--xla_cpu_collective_timeout_seconds=7"]
    assert flags[-1] == "--xla_force_host_platform_device_count=4"
    assert len({f.partition("=")[0] for f in flags}) == len(flags)


def test_the_number_is_read_back() -> None:
    assert simulated_count(simulated_devices(4, {"XLA_FLAGS": "--b=1"})) == 4
    assert simulated_count({"JAX_NUM_CPU_DEVICES": "8"}) == 8
    assert simulated_count({}) == simulated_count({"XLA_FLAGS": "--b=1"}) == 1


def test_at_least_one_device() -> None:
    with pytest.raises(InputError, match="0 simulated devices"):
        simulated_devices(0, {})


def test_every_public_name_loads() -> None:
    for name in sharding.__all__:
        assert getattr(sharding, name) is not None
    assert set(sharding.__all__) == {name for names in sharding._HOMES.values() for name in names}
    with pytest.raises(AttributeError, match="no attribute 'mish'"):
        _ = sharding.mish
