"""Typed, frozen configuration from three layers: YAML file < environment < command line.

    @dataclass(frozen=True)
    class TrainConfig:
        steps: int
        optimizer: OptimizerConfig = OptimizerConfig()

    config = load(TrainConfig, Path("train.yaml"), overrides=["optimizer.learning_rate=3e-4"])

A key is the dotted path of a field: `optimizer.learning_rate`. The layers spell it so:

- YAML file: nested mappings.
- Environment: the prefix, `_`, then the path in capitals with `__` for each dot:
  `ABI_STEPS=100`, `ABI_OPTIMIZER__LEARNING_RATE=3e-4`. Keys of a `dict[str, X]` are lower-cased. A
  variable with the prefix that names no field is an error, except those in `RESERVED_ENV`.
- Command line: `--set optimizer.learning_rate=3e-4`; each override is the text after `--set`.

Layers merge field by field; a value for a whole mapping or list replaces it. Text from the environment
and the command line is read as YAML where the field is not text itself; a list may also be `a,b,c`, and
`null` clears a field that allows None. Whatever does not fit is an `InputError` that names the key, the
value, where it was written and, for an unknown key, the nearest valid one.
"""

import dataclasses
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml

from abi_jax.config_build import build, known_keys, nearest
from abi_jax.config_tree import Table, from_text, merge, put, read_yaml
from abi_jax.errors import InputError

T = TypeVar("T")

# Variables of the project that are not configuration keys: process start-up and where files are.
RESERVED_ENV = frozenset({"ABI_COORDINATOR", "ABI_NUM_PROCESSES", "ABI_PROCESS_ID", "ABI_START_TIMEOUT"})


def load(
    cls: type[T],
    path: Path | None = None,
    overrides: Sequence[str] = (),
    env: Mapping[str, str] | None = None,
    prefix: str = "ABI",
) -> T:
    """Builds the frozen dataclass `cls` from its defaults, `path`, the environment and `overrides`.

    `env` defaults to `os.environ`; `overrides` are `a.b=value`. Raises `InputError` for a file that cannot
    be read and for every key or value that does not fit.
    """
    tree = Table({}, where=str(path) if path else "configuration")
    if path is not None:
        tree = merge(tree, read_yaml(path))
    tree = merge(tree, _from_environment(cls, os.environ if env is None else env, prefix))
    for override in overrides:
        tree = merge(tree, _from_override(override))
    return build(cls, tree)


def to_dict(config: Any) -> dict[str, Any]:
    """Returns `config` as plain dicts, lists and scalars, ready for JSON or YAML."""
    if not dataclasses.is_dataclass(config) or isinstance(config, type):
        raise TypeError(f"to_dict takes a dataclass instance, got {config!r}")
    return {f.name: _plain(getattr(config, f.name)) for f in dataclasses.fields(config) if f.init}


def dump_yaml(config: Any) -> str:
    """Returns `config` as YAML that `load` reads back to an equal value."""
    text: str = yaml.safe_dump(to_dict(config), sort_keys=False, allow_unicode=True)
    if any(c in text for c in "\x85\u2028\u2029\ufeff"):  # line breaks to YAML, not to people: escape them
        text = yaml.safe_dump(to_dict(config), sort_keys=False)
    return text


def config_dirs(kind: str) -> list[Path]:
    """Returns the directories searched for a `kind` ("model", "persona", ...), nearest first.

    They are `./configs/<kind>` and the configurations that came with the package.
    """
    package = Path(__file__).resolve().parent
    # An installed wheel carries `_configs`; a source checkout has `configs` beside the package.
    shipped = package / "_configs" if (package / "_configs").is_dir() else package.parent / "configs"
    found = [Path("configs") / kind, shipped / kind]
    if found[0].resolve() == found[1].resolve():
        del found[0]
    return [d for d in found if d.is_dir()]


def list_configs(kind: str) -> dict[str, Path]:
    """Returns every named configuration of a `kind`, sorted; a nearer directory wins over the package."""
    found: dict[str, Path] = {}
    for directory in config_dirs(kind):
        for file in directory.glob("*.yaml"):
            found.setdefault(file.stem, file)
    return dict(sorted(found.items()))


def find_config(name: str | Path, kind: str) -> Path:
    """Returns the file that `name` means: a path as given, or a configuration of this `kind` by name.

    `find_config("abbey", "persona")` finds `./configs/persona/abbey.yaml`, else the packaged one. Raises
    `InputError` that lists what exists.
    """
    given = Path(name).expanduser()
    if given.is_file():
        return given
    named = list_configs(kind)
    text = str(name)
    key = text.removesuffix(".yaml")
    if key in named:
        return named[key]
    known = f"known {kind} configurations: {', '.join(named)}" if named else f"no {kind} configurations were found"
    near = nearest(key, named)
    hint = f"; nearest: {near!r}" if near else ""
    raise InputError(f"{kind} configuration {text!r} is neither a file nor a known name{hint}; {known}")


def _from_environment(cls: type, env: Mapping[str, str], prefix: str) -> Table:
    table = Table({}, where="environment", partial=True)
    for variable in sorted(env):
        if not variable.startswith(prefix + "_") or variable in RESERVED_ENV:
            continue
        path = [part.lower() for part in variable[len(prefix) + 1 :].split("__")]
        value = env[variable]
        if not all(path):
            raise InputError(
                f"environment variable {variable}={value!r} is not a configuration key; "
                f"expected {prefix}_KEY or {prefix}_SECTION__KEY"
            )
        _check_variable(cls, variable, value, ".".join(path), prefix)
        put(table, path, from_text(value, f"environment variable {variable}"))
    return table


def _check_variable(cls: type, variable: str, value: str, key: str, prefix: str) -> None:
    """Reports a misspelt variable as the variable it should have been."""
    known = known_keys(cls)
    if any(key == k or key.startswith(k + ".") or k.startswith(key + ".") for k in known):
        return  # `build` reports what is still wrong below this key
    near = nearest(key, known)
    hint = f"nearest valid variable: {_variable(near, prefix)}" if near else "it names no field"
    raise InputError(f"environment variable {variable}={value!r}: unknown key {key!r}; {hint}")


def _variable(key: str, prefix: str) -> str:
    return f"{prefix}_{key.replace('.', '__').upper()}"


def _from_override(override: str) -> Table:
    key, equals, value = override.partition("=")
    path = key.strip().split(".")
    if not equals or not all(path):
        raise InputError(
            f"--set {override!r} is not an assignment; expected --set key=value, e.g. --set train.steps=100"
        )
    where = f"--set {override}"
    table = Table({}, where=where, partial=True)
    put(table, path, from_text(value, where))
    return table


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return to_dict(value)
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, (tuple, list)):
        return [_plain(v) for v in value]
    return str(value) if isinstance(value, Path) else value
