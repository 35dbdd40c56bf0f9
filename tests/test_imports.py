"""Imports run downwards only, and what must start fast stays light."""

import ast
import importlib.util
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import abi_jax

pytestmark = pytest.mark.smoke

PACKAGE = Path(abi_jax.__file__).parent

# A room -> the rooms it may know. Rooms of one floor do not know each other, except as said here.
GROUND = {"errors", "files", "config", "persona", "lineage", "sharding", "text"}
MIDDLE = GROUND | {"model", "wdbx", "data"}
UPPER = MIDDLE | {"train"}
MAY_KNOW: dict[str, set[str]] = {
    "errors": set(),
    "files": {"errors"},
    "config": {"errors"},
    "lineage": {"errors", "files", "config"},
    "sharding": {"errors", "config"},
    "text": {"errors", "config"},
    "persona": {"errors", "config", "text"},
    "model": GROUND,
    "wdbx": GROUND,
    "data": GROUND,
    "train": MIDDLE,
    "serve": UPPER,
    "evaluate": UPPER,
    "launch": UPPER,
    "assistant": UPPER | {"serve"},  # it speaks to the engine through its public face
    "cli": UPPER | {"serve", "evaluate", "assistant", "launch"},
    "__main__": {"cli"},
    "": set(),  # abi_jax/__init__.py
}
# `config_tree.py` and `config_build.py` belong to `config`, and so on.
LIGHT = ["abi_jax", "abi_jax.errors", "abi_jax.files", "abi_jax.config"]
LIGHT += [f"abi_jax.sharding.{name}" for name in ("compile_cache", "host_memory", "local", "simulate")]
HEAVY = ("jax", "flax", "numpy", "torch", "transformers", "orbax", "tensorstore", "matplotlib", "grain")


def room(module: str) -> str:
    """Returns the room of `abi_jax.x.y`: `x`, with `config_build` counted as `config`."""
    parts = module.split(".")
    name = parts[1] if len(parts) > 1 else ""
    head = name.split("_")[0]
    return head if name not in MAY_KNOW and head in MAY_KNOW and head else name


def module_name(path: Path) -> str:
    parts = ["abi_jax", *path.relative_to(PACKAGE).with_suffix("").parts]
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(path: Path) -> Iterator[tuple[int, str]]:
    """Yields line and module of every `abi_jax` import, also those inside functions."""
    name = module_name(path)
    package = name.split(".") if path.name == "__init__.py" else name.split(".")[:-1]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = ".".join([*package[: len(package) + 1 - node.level], *filter(None, [node.module])])
            source = base if node.level else str(node.module)
            # `from abi_jax import wdbx` names the room in the second half.
            found = [f"abi_jax.{a.name}" for a in node.names] if source == "abi_jax" else [source]
        else:
            continue
        for module in found:
            if module.split(".")[0] == "abi_jax" and not module.endswith("__version__"):
                yield node.lineno, module


SOURCES = sorted(PACKAGE.rglob("*.py"))


def test_there_is_something_to_check() -> None:
    assert len(SOURCES) > 5
    assert any(True for source in SOURCES for _ in imports(source))


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_run_downwards(path: Path) -> None:
    here = room(module_name(path))
    assert here in MAY_KNOW, f"{path} is in a room that MAY_KNOW does not list: say which rooms it may know"
    for line, module in imports(path):
        there = room(module)
        assert there in MAY_KNOW, f"{path}:{line} imports {module}, a room that does not exist"
        assert there == here or there in MAY_KNOW[here], f"{path}:{line}: {here or 'abi_jax'} must not know {there}"


def test_the_table_has_no_cycle() -> None:
    done: set[str] = set()
    while rest := set(MAY_KNOW) - done:
        free = {r for r in rest if MAY_KNOW[r] <= done}
        assert free, f"these rooms know each other in a circle: {sorted(rest)}"
        done |= free


def heavy_modules(code: str) -> list[str]:
    """Runs `code` in a fresh interpreter; returns the heavy packages it loaded."""
    report = f"import sys; print('LOADED', *[m for m in {HEAVY!r} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", f"{code}\n{report}"], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout.rpartition("LOADED")[2].split()


@pytest.mark.parametrize("module", LIGHT)
def test_light_modules_load_nothing_heavy(module: str) -> None:
    assert heavy_modules(f"import {module}") == []


@pytest.mark.skipif(importlib.util.find_spec("abi_jax.cli") is None, reason="this checkout has no command line")
def test_help_does_not_import_jax() -> None:
    code = "import contextlib, abi_jax.cli\nwith contextlib.suppress(SystemExit): abi_jax.cli.main(['--help'])"
    assert heavy_modules(code) == []


@pytest.mark.skipif(importlib.util.find_spec("abi_jax.wdbx") is None, reason="this checkout has no vector store")
def test_the_vector_store_stands_alone() -> None:
    code = "import sys\nimport abi_jax.wdbx\nassert not any(m.startswith('abi_jax.model') for m in sys.modules)"
    heavy_modules(code)


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("from abi_jax.model.weight import Weight", ["abi_jax.model.weight"]),
        ("from abi_jax import wdbx, model", ["abi_jax.wdbx", "abi_jax.model"]),
        ("import abi_jax.cli as c, os", ["abi_jax.cli"]),
        ("def f():\n    from ..train import loop", ["abi_jax.train"]),
        ("from . import rules", ["abi_jax.sharding"]),
        ("from abi_jax import __version__\nimport jax", []),
    ],
)
def test_the_reader_of_imports(
    source: str, expected: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.modules[__name__], "PACKAGE", tmp_path)
    path = tmp_path / "sharding" / "x.py"
    path.parent.mkdir()
    path.write_text(source)
    assert [module for _, module in imports(path)] == expected


def test_rooms() -> None:
    assert [room(m) for m in ("abi_jax", "abi_jax.config_build", "abi_jax.model.config", "abi_jax.cli.train")] == [
        "",
        "config",
        "model",
        "cli",
    ]
