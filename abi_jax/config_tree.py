"""A YAML document that remembers where each value was written.

`Table`, `Items` and `Leaf` mirror mapping, sequence and scalar; each carries `where`, such as
`train.yaml:12`, so that an error found while building the configuration can point at the line.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from abi_jax.errors import InputError


@dataclass(frozen=True)
class Leaf:
    """A scalar. `text` is set for the environment and the command line, where the field's type decides."""

    value: Any
    where: str
    text: str | None = None


@dataclass(frozen=True)
class Items:
    """A sequence."""

    values: list["Node"]
    where: str


@dataclass(frozen=True)
class Table:
    """A mapping with text keys. It is `partial` when it names single entries (`a.b=1`) instead of the whole."""

    values: dict[str, "Node"]
    where: str
    partial: bool = False


Node = Leaf | Items | Table


def read_yaml(path: Path) -> Table:
    """Reads a YAML file whose top level is a mapping; an empty file is an empty mapping."""
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as e:
        raise InputError(f"configuration file {str(path)!r} cannot be read: {e.strerror or e}") from None
    except UnicodeDecodeError as e:
        raise InputError(f"configuration file {str(path)!r} is not UTF-8 text: {e}") from None
    node = parse(text, str(path), lines=True)
    if isinstance(node, Leaf) and node.value is None:
        return Table({}, where=str(path))
    if not isinstance(node, Table):
        raise InputError(f"{node.where}: the top level is {describe(node)}; expected a mapping of keys to values")
    return node


def from_text(text: str, where: str) -> Leaf:
    """Returns a value whose type is decided by the field it lands on."""
    return Leaf(text, where, text=text)


def parse(text: str, where: str, lines: bool = False) -> Node:
    """Parses YAML; with `lines`, each node's place is `where:line`."""
    loader = yaml.SafeLoader(text)
    try:
        root = loader.get_single_node()
        return Leaf(None, where) if root is None else _convert(root, loader, where, lines)
    except yaml.YAMLError as e:
        mark = getattr(e, "problem_mark", None)
        place = f"{where}:{mark.line + 1}" if lines and mark is not None else where
        raise InputError(f"{place}: not valid YAML: {getattr(e, 'problem', None) or e}") from None
    except ValueError as e:  # a date such as 2024-13-45
        raise InputError(f"{where}: not valid YAML: {e}") from None
    except RecursionError:  # an anchor that contains itself
        raise InputError(f"{where}: not valid YAML: nested too deeply") from None
    finally:
        loader.dispose()


def merge(base: Table, over: Table) -> Table:
    """Returns `base` with `over` laid on top: mappings merge key by key, anything else replaces."""
    values = dict(base.values)
    for key, node in over.values.items():
        below = values.get(key)
        values[key] = merge(below, node) if isinstance(below, Table) and isinstance(node, Table) else node
    return Table(values, where=base.where, partial=base.partial and over.partial)


def put(table: Table, path: Sequence[str], node: Node) -> None:
    """Sets `node` at `path`, making the mappings on the way."""
    for part in path[:-1]:
        child = table.values.get(part)
        if not isinstance(child, Table):
            if child is not None:
                raise InputError(f"{node.where}: sets a key inside {part!r}, which {child.where} sets as a whole")
            child = Table({}, where=node.where, partial=True)
            table.values[part] = child
        table = child
    table.values[path[-1]] = node


def plain(node: Node) -> Any:
    """Returns the node as ordinary dicts, lists and scalars."""
    if isinstance(node, Table):
        return {k: plain(v) for k, v in node.values.items()}
    if isinstance(node, Items):
        return [plain(v) for v in node.values]
    return node.value


def describe(node: Node) -> str:
    """Returns what was written, in words: `the text 'abc'`, `the number 3`, `a list`, ..."""
    if isinstance(node, Table):
        return "a mapping"
    if isinstance(node, Items):
        return "a list"
    match node.value:
        case None:
            return "nothing (null)"
        case bool():
            return f"{str(node.value).lower()} (a boolean)"
        case int() | float():
            return f"the number {node.value}"
    return f"the text {str(node.value)!r}"


def _convert(node: yaml.Node, loader: yaml.SafeLoader, source: str, lines: bool) -> Node:
    where = f"{source}:{node.start_mark.line + 1}" if lines else source
    if isinstance(node, yaml.SequenceNode):
        return Items([_convert(n, loader, source, lines) for n in node.value], where)
    if not isinstance(node, yaml.MappingNode):
        return Leaf(loader.construct_object(node, deep=True), where)
    written: set[str] = set()
    for key_node, _ in node.value:
        key = str(getattr(key_node, "value", key_node))
        if key in written and key != "<<":
            line = f"{source}:{key_node.start_mark.line + 1}" if lines else source
            raise InputError(f"{line}: key {key!r} is written twice in one mapping")
        written.add(key)
    loader.flatten_mapping(node)  # `<<: *anchor`
    values: dict[str, Node] = {}
    for key_node, value_node in node.value:
        if not isinstance(key_node, yaml.ScalarNode):
            raise InputError(f"{where}: a key must be text, got {key_node.tag.rpartition(':')[2]}")
        values[key_node.value] = _convert(value_node, loader, source, lines)
    return Table(values, where)
