"""Programs that were compiled are kept for the next start. Nothing here imports JAX: its settings must come first."""

import hashlib
import os
import platform
from collections.abc import Mapping
from pathlib import Path

MOST_BYTES = 4 << 30  # what was not used for longest goes first
LEAST_SECONDS = 0.1  # that a program took to compile; by itself JAX keeps those alone that took a second
_PREFIX = "JAX_COMPILATION_CACHE_"
_LEAST = "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"


def compile_cache(env: Mapping[str, str]) -> dict[str, str]:
    """Returns the environment variables that make JAX keep compiled programs, to be set before it is imported.

    In `$XDG_CACHE_HOME/abi-jax` or `~/.cache/abi-jax`, a folder for each kind of CPU: a program compiled for one
    may not run on another. Empty where `env` decides already, or there is no place to write.
    """
    if any(name.startswith(_PREFIX) or name == "JAX_ENABLE_COMPILATION_CACHE" for name in env):
        return {}
    home = env.get("XDG_CACHE_HOME") or (os.path.join(env["HOME"], ".cache") if env.get("HOME") else "")
    if not home:
        return {}
    folder = Path(home) / "abi-jax" / f"compiled-{_machine()}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return {}
    if not os.access(folder, os.W_OK):
        return {}
    kept = {_PREFIX + "DIR": str(folder), _PREFIX + "MAX_SIZE": str(MOST_BYTES)}
    return kept if _LEAST in env else kept | {_LEAST: str(LEAST_SECONDS)}


def _machine() -> str:
    """A name of this machine's instruction set."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = [platform.processor()]
    told = sorted({line for line in lines if line.startswith(("flags", "Features", "model name"))}) or lines[:1]
    return f"{platform.machine()}-{hashlib.sha256(chr(10).join(told).encode()).hexdigest()[:8]}"
