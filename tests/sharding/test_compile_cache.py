"""Programs kept between starts, where nothing else was decided."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from abi_jax.sharding.compile_cache import compile_cache

pytestmark = pytest.mark.smoke

PROGRAM = """
import os
from abi_jax.sharding.compile_cache import compile_cache
os.environ.update(compile_cache(os.environ))
import jax
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
print(jax.jit(lambda x: x * 2 + 1)(3))
"""


def test_a_place_in_the_cache_folder(tmp_path: Path) -> None:
    found = compile_cache({"HOME": str(tmp_path)})
    assert Path(found["JAX_COMPILATION_CACHE_DIR"]).parent == tmp_path / ".cache" / "abi-jax"
    elsewhere = compile_cache({"HOME": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path / "xdg")})
    assert Path(elsewhere["JAX_COMPILATION_CACHE_DIR"]).is_relative_to(tmp_path / "xdg")


def test_programs_that_compile_in_less_than_a_second_are_kept_too(tmp_path: Path) -> None:
    least = "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"
    assert float(compile_cache({"HOME": str(tmp_path)})[least]) < 0.5
    assert least not in compile_cache({"HOME": str(tmp_path), least: "3"})


def test_what_the_environment_decides_stays(tmp_path: Path) -> None:
    for name in ("JAX_COMPILATION_CACHE_DIR", "JAX_ENABLE_COMPILATION_CACHE"):
        assert compile_cache({"HOME": str(tmp_path), name: ""}) == {}
    assert compile_cache({}) == {}


def test_where_nothing_can_be_written_nothing_is_kept(tmp_path: Path) -> None:
    (tmp_path / ".cache").write_text("a file")
    assert compile_cache({"HOME": str(tmp_path)}) == {}


def test_the_next_start_finds_the_program(tmp_path: Path) -> None:
    env = {name: value for name, value in os.environ.items() if not name.startswith("JAX_")}
    env |= {"HOME": str(tmp_path), "JAX_PLATFORMS": "cpu"}
    env.pop("XDG_CACHE_HOME", None)
    kept = []
    for _ in range(2):
        done = subprocess.run([sys.executable, "-c", PROGRAM], env=env, capture_output=True, text=True, timeout=120)
        assert done.stdout.strip() == "7", done.stderr
        kept.append({f.name for f in tmp_path.rglob("*-cache")})
    assert kept[0] == kept[1] and kept[0]
