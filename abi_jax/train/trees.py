"""Parameter trees cut in two by path, and joined again: what is trained, and what is frozen."""

from collections.abc import Callable
from typing import Any

from abi_jax.model.bank import BANK

Tree = Any


def is_persona(path: tuple[str, ...]) -> bool:
    """True for the weights of persona terms."""
    return path[0] == BANK


def cut(tree: Tree, picks: Callable[[tuple[str, ...]], bool], path: tuple[str, ...] = ()) -> tuple[Tree, Tree]:
    """Returns the leaves whose path `picks` accepts, and the rest, as nested dicts without empty branches."""
    if not isinstance(tree, dict):
        return (tree, None) if picks(path) else (None, tree)
    pairs = {name: cut(branch, picks, (*path, name)) for name, branch in tree.items()}
    picked = {name: pair[0] for name, pair in pairs.items() if pair[0] is not None}
    rest = {name: pair[1] for name, pair in pairs.items() if pair[1] is not None}
    return picked or None, rest or None


def join(first: Tree, second: Tree) -> Tree:
    """Undoes `cut`."""
    if first is None or second is None:
        return second if first is None else first
    return {name: join(first.get(name), second.get(name)) for name in (*first, *(n for n in second if n not in first))}
