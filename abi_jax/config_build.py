"""Turns a configuration tree into typed frozen dataclasses, or says exactly what does not fit.

Supported field types: nested dataclasses, bool, int, float, str, Path, Any, Literal, tuple[X, ...],
tuple[X, Y], list[X], Sequence[X], dict[str, X], Mapping[str, X], and unions of these with or without None.
"""

import dataclasses
import difflib
import types
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal, NoReturn, TypeVar, Union, get_args, get_origin, get_type_hints

from abi_jax.config_tree import Items, Leaf, Node, Table, describe, parse, plain
from abi_jax.errors import InputError

T = TypeVar("T")


class _Mismatch(InputError):
    """A value that does not fit its type: the only error that lets a union try its next member."""


def build(cls: type[T], tree: Table) -> T:
    """Returns an instance of the dataclass `cls` with the values in `tree` over its defaults."""
    value: T = _dataclass(cls, tree, "", None, cls)
    return value


def known_keys(cls: type, prefix: str = "") -> list[str]:
    """Returns the dotted paths of all leaves of a dataclass; a dict's own keys are not listed."""
    keys: list[str] = []
    for name, hint in _fields(cls).items():
        path = f"{prefix}{name}"
        nested = _nested(hint)
        keys += known_keys(nested, path + ".") if nested else [path]
    return keys


def nearest(key: str, known: Iterable[str]) -> str | None:
    """Returns the known key most like `key`, also where only its section was forgotten; None if none is."""
    keys = list(known)
    by_name = {k.rpartition(".")[2]: k for k in reversed(keys)}  # the first declared wins
    if close := difflib.get_close_matches(key, keys, n=1, cutoff=0.75):
        return close[0]
    if close := difflib.get_close_matches(key.rpartition(".")[2], by_name, n=1, cutoff=0.7):
        return by_name[close[0]]
    close = difflib.get_close_matches(key, keys, n=1, cutoff=0.6)
    return close[0] if close else None


@cache
def _fields(cls: type) -> dict[str, Any]:
    if not dataclasses.is_dataclass(cls):
        raise TypeError(f"{cls!r} is not a dataclass")
    hints = get_type_hints(cls)
    return {f.name: hints[f.name] for f in dataclasses.fields(cls) if f.init}


def _nested(hint: Any) -> type | None:
    """Returns the dataclass a field holds, also behind `| None`."""
    if isinstance(hint, type) and dataclasses.is_dataclass(hint):
        return hint
    found = [n for member in _members(hint) if (n := _nested(member))]
    return found[0] if len(found) == 1 else None


def _members(hint: Any) -> tuple[Any, ...]:
    return get_args(hint) if get_origin(hint) in (Union, types.UnionType) else ()


def _dataclass(cls: type, node: Node, key: str, default: Any, root: type) -> Any:
    """Builds `cls`; fields that `node` leaves out come from the instance `default`, else from the class."""
    node = _structure(node)
    if not isinstance(node, Table):
        _fail(node, key, f"a mapping with keys {', '.join(_fields(cls))}")
    fields = _fields(cls)
    for name, unknown in node.values.items():
        if name not in fields:
            _unknown(_join(key, name), unknown, fields, key, root)
    values: dict[str, Any] = {}
    for field in dataclasses.fields(cls):
        if not field.init:
            continue
        path = _join(key, field.name)
        below = _default(field, default)
        child = node.values.get(field.name)
        if child is not None:
            values[field.name] = _value(fields[field.name], child, path, below, root)
        elif below is not dataclasses.MISSING:
            values[field.name] = below
        elif _nested(fields[field.name]) is not None and not _members(fields[field.name]):
            # A section without a default may still be complete from its own defaults.
            values[field.name] = _value(fields[field.name], Table({}, node.where), path, None, root)
        else:
            raise InputError(
                f"{node.where}: required key {path!r} ({_name(fields[field.name])}) is missing; "
                f"set it in the configuration file or with --set {path}=..."
            )
    try:
        return cls(**values)
    except _Mismatch:
        raise
    except InputError as e:  # the dataclass checked its own values
        raise InputError(f"{node.where}: {key or cls.__name__}: {e}") from None


def _default(field: "dataclasses.Field[Any]", instance: Any) -> Any:
    if instance is not None and instance is not dataclasses.MISSING:
        return getattr(instance, field.name)
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return field.default


def _value(hint: Any, node: Node, key: str, default: Any, root: type) -> Any:
    origin = get_origin(hint)
    if origin is Annotated:
        return _value(get_args(hint)[0], node, key, default, root)
    if hint is Any:
        return plain(_structure(node))
    if members := _members(hint):
        return _union(members, node, key, default, root)
    if isinstance(hint, type) and dataclasses.is_dataclass(hint):
        return _dataclass(hint, node, key, default if isinstance(default, hint) else None, root)
    if origin is Literal:
        return _literal(get_args(hint), node, key)
    if origin in (tuple, list, Sequence):
        return _sequence(hint, node, key, root)
    if origin in (dict, Mapping):
        return _mapping(hint, node, key, default, root)
    if hint in _SCALARS:
        return _scalar(hint, node, key)
    raise TypeError(f"configuration field {key!r} has a type that configuration cannot read: {hint!r}")


def _union(members: tuple[Any, ...], node: Node, key: str, default: Any, root: type) -> Any:
    if type(None) in members and isinstance(node, Leaf):
        cleared = node.text is not None and node.text.strip() in ("null", "~")
        if cleared or node.value is None:
            return None
    rest = [m for m in members if m is not type(None)]
    # Text fits str and Path always, so they come last.
    rest.sort(key=lambda m: 2 if m is str else 1 if m is Path else 0)
    if len(rest) == 1:
        return _value(rest[0], node, key, default, root)
    for member in rest:
        try:
            return _value(member, node, key, default, root)
        except _Mismatch:
            continue
    _fail(node, key, " or ".join(_name(m) for m in members))


def _literal(choices: tuple[Any, ...], node: Node, key: str) -> Any:
    if isinstance(node, Leaf):
        for choice in choices:
            if node.text is not None and node.text == str(choice):
                return choice
            if type(node.value) is type(choice) and node.value == choice:
                return choice
    near = nearest(str(node.value), [str(c) for c in choices]) if isinstance(node, Leaf) else None
    hint = f" (nearest: {near!r})" if near else ""
    _fail(node, key, f"one of {', '.join(repr(c) for c in choices)}{hint}")


def _sequence(hint: Any, node: Node, key: str, root: type) -> Any:
    args = get_args(hint)
    node = _structure(node, commas=True)
    if not isinstance(node, Items):
        _fail(node, key, _name(hint))
    if get_origin(hint) is tuple and not (len(args) == 2 and args[1] is Ellipsis):
        if len(node.values) != len(args):
            _fail(node, key, f"{len(args)} values ({_name(hint)}), got {len(node.values)}")
        pairs = zip(args, node.values, strict=True)
        return tuple(_value(a, n, f"{key}[{i}]", None, root) for i, (a, n) in enumerate(pairs))
    values = [_value(args[0], n, f"{key}[{i}]", None, root) for i, n in enumerate(node.values)]
    return values if get_origin(hint) is list else tuple(values)


def _mapping(hint: Any, node: Node, key: str, default: Any, root: type) -> dict[str, Any]:
    key_type, value_type = get_args(hint)
    if key_type is not str:
        raise TypeError(f"configuration field {key!r} must have text keys, its type is {hint!r}")
    node = _structure(node)
    if not isinstance(node, Table):
        _fail(node, key, _name(hint))
    # `--set weights.a=1` changes one entry of the default; a mapping written out replaces it.
    values = dict(default) if node.partial and isinstance(default, Mapping) else {}
    for name, child in node.values.items():
        values[name] = _value(value_type, child, _join(key, name), values.get(name), root)
    return values


def _scalar(hint: type, node: Node, key: str) -> Any:
    expected, convert = _SCALARS[hint]
    if isinstance(node, Leaf):
        value = node.value
        if node.text is not None and hint is bool:
            parsed = parse(node.text, node.where)
            value = parsed.value if isinstance(parsed, Leaf) else None
        fits = isinstance(value, str) if hint in (str, Path) else type(value) is hint
        fits |= hint is int and node.text is not None
        fits |= hint is float and type(value) in (int, str)  # YAML 1.1 reads 1e-3 as text
        if fits:
            try:
                return convert(value)
            except (ValueError, OverflowError):
                pass
    _fail(node, key, expected)


_SCALARS: dict[type, tuple[str, Callable[[Any], Any]]] = {
    bool: ("true or false", bool),
    int: ("an integer", int),
    float: ("a number", float),
    str: ("text (quote it if YAML reads it as something else)", str),
    Path: ("a path", lambda value: Path(value).expanduser()),
}


def _structure(node: Node, commas: bool = False) -> Node:
    """Parses text from the environment or the command line where a mapping or list is wanted."""
    if not isinstance(node, Leaf) or node.text is None:
        return node
    text = node.text.strip()
    if text.startswith(("[", "{")) or not commas:
        return parse(text, node.where)
    parts = [part.strip() for part in text.split(",")] if text else []
    return Items([Leaf(part, node.where, text=part) for part in parts], node.where)


def _unknown(key: str, node: Node, fields: Mapping[str, Any], section: str, root: type) -> NoReturn:
    near = nearest(key, [_join(section, f) for f in fields]) or nearest(key, known_keys(root))
    hint = f"nearest valid key: {near!r}" if near else f"valid keys: {', '.join(_join(section, f) for f in fields)}"
    raise InputError(f"{node.where}: unknown key {key!r} with {describe(node)}; {hint}")


def _fail(node: Node, key: str, expected: str) -> NoReturn:
    raise _Mismatch(f"{node.where}: {key or 'configuration'} is {describe(node)}; expected {expected}")


def _join(section: str, name: str) -> str:
    return f"{section}.{name}" if section else name


def _name(hint: Any) -> str:
    if members := _members(hint):
        return " or ".join(_name(m) for m in members)
    args = get_args(hint)
    match get_origin(hint):
        case None:
            if hint is type(None):
                return "null"
            return _SCALARS[hint][0] if hint in _SCALARS else getattr(hint, "__name__", str(hint))
        case origin if origin is Literal:
            return f"one of {', '.join(repr(a) for a in args)}"
        case origin if origin in (dict, Mapping):
            return f"a mapping of text to {_name(args[1])}"
        case origin if origin is Annotated:
            return _name(args[0])
    return (
        f"a list of {_name(args[0])}" if args[1:] == (Ellipsis,) or len(args) == 1 else f"a list of {len(args)} values"
    )
