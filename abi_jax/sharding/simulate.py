"""A CPU that JAX sees as several devices. Nothing here imports JAX: its settings must come first."""

from collections.abc import Mapping

from abi_jax.errors import InputError

_COUNT = "--xla_force_host_platform_device_count"
# More devices than cores: a device may wait minutes for its turn, which by default XLA takes for a deadlock.
_PATIENCE = {
    "--xla_cpu_collective_call_warn_stuck_timeout_seconds": 120,
    "--xla_cpu_collective_call_terminate_timeout_seconds": 1200,
    "--xla_cpu_collective_timeout_seconds": 1200,
}


def simulated_devices(devices: int, env: Mapping[str, str]) -> dict[str, str]:
    """Returns the environment variables that make JAX see `devices` CPU devices, to be set before it is imported.

    Flags already in `env` stay, except an earlier number of devices.
    """
    if devices < 1:
        raise InputError(f"{devices} simulated devices; expected at least 1")
    flags = [flag for flag in env.get("XLA_FLAGS", "").split() if not flag.startswith(_COUNT + "=")]
    given = {flag.partition("=")[0] for flag in flags}
    flags += [f"{name}={seconds}" for name, seconds in _PATIENCE.items() if name not in given]
    return {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": " ".join([*flags, f"{_COUNT}={devices}"])}


def simulated_count(env: Mapping[str, str]) -> int:
    """Returns how many CPU devices `env` makes JAX see."""
    counts = [flag.partition("=")[2] for flag in env.get("XLA_FLAGS", "").split() if flag.startswith(_COUNT + "=")]
    counts.append(env.get("JAX_NUM_CPU_DEVICES", ""))
    return next((int(count) for count in reversed(counts) if count.isdigit()), 1)
