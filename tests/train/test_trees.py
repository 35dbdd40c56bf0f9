"""Cutting a tree in two and joining it again."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from abi_jax.train.trees import cut, is_persona, join

pytestmark = pytest.mark.smoke

NAMES = st.sampled_from(["layers", "0", "attention", "masks", "cores", "mlp", "kernel"])
TREES = st.recursive(
    st.integers(), lambda branch: st.dictionaries(NAMES, branch, min_size=1, max_size=3), max_leaves=12
)
Path = tuple[str, ...]


def leaves(tree: Any, path: Path = ()) -> dict[Path, int]:
    if tree is None:
        return {}
    if not isinstance(tree, dict):
        return {path: tree}
    return {p: x for name, branch in tree.items() for p, x in leaves(branch, (*path, name)).items()}


@given(TREES, st.randoms(use_true_random=False))
def test_join_undoes_cut_and_every_leaf_is_on_one_side(tree: Any, random: Any) -> None:
    picked = {path for path in leaves(tree) if random.random() < 0.5}
    first, second = cut(tree, picked.__contains__)
    assert leaves(first).keys() == picked
    assert leaves(first) | leaves(second) == leaves(tree)
    assert join(first, second) == join(second, first) == tree


@given(TREES)
def test_everything_or_nothing(tree: Any) -> None:
    assert cut(tree, lambda _: True) == (tree, None)
    assert cut(tree, lambda _: False) == (None, tree)


def test_what_belongs_to_personas() -> None:
    tree = {"embedding": 1, "persona": {"heads": {"route": 2}}, "layers": {"0": {"mlp": {"up": {"kernel": 3}}}}}
    bank, base = cut(tree, is_persona)
    assert bank == {"persona": {"heads": {"route": 2}}}
    assert base == {"embedding": 1, "layers": {"0": {"mlp": {"up": {"kernel": 3}}}}}
