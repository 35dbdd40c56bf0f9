"""Numbers that must never change: saved data positions depend on them."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from abi_jax.data.hashing import mixed, permutation


def splitmix64(state: int) -> int:
    """The first number of the generator, in plain integers."""
    z = (state + 0x9E3779B97F4A7C15) % 2**64
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB % 2**64
    return z ^ (z >> 31)


@given(st.lists(st.integers(0, 2**64 - 1), max_size=20))
def test_mixed(values: list[int]) -> None:
    assert mixed(np.array(values, np.uint64)).tolist() == [splitmix64(v) for v in values]


def test_the_published_first_number() -> None:
    assert int(mixed(np.zeros(1, np.uint64))[0]) == 0xE220A8397B1DCDAF


@given(st.integers(0, 200), st.lists(st.integers(0, 2**32 - 1), max_size=3))
def test_permutations(size: int, seeds: list[int]) -> None:
    assert sorted(permutation(size, *seeds)) == list(range(size))
    np.testing.assert_array_equal(permutation(size, *seeds), permutation(size, *seeds))


def test_permutations_differ_by_seed_and_are_always_the_same() -> None:
    assert permutation(6, 0, 1).tolist() != permutation(6, 1, 0).tolist()
    firsts = [int(permutation(10, 0, epoch)[0]) for epoch in range(5000)]
    counts = np.bincount(firsts, minlength=10)
    assert np.abs(counts - 500).max() < 5 * np.sqrt(450)
    assert permutation(10, 1, 2, 3).tolist() == [7, 6, 9, 4, 1, 3, 2, 0, 5, 8]
