"""Packing: nothing lost, nothing shared, nothing seen across an example's edge."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from abi_jax.data import Example, RowPacker, assemble
from abi_jax.text import Role

T, P = 16, 3


def example(index: int, size: int) -> Example:
    """An example that can be told from every other: token = 1000 * index + position."""
    tokens = 1000 * index + np.arange(size + 1, dtype=np.int32)
    active = np.arange(size) >= size // 2
    return Example(
        tokens=tokens[:-1],
        targets=tokens[1:],
        roles=np.where(active, Role.RESPONSE, Role.INPUT).astype(np.int32),
        weights=active.astype(np.float32) * (index + 1),
        active=active,
        mixture=np.eye(P, dtype=np.float32)[index % P],
        group=index % 5,
        attribute=index % 4,
    )


def pack(sizes: list[int], open_rows: int) -> list[list[int]]:
    packer = RowPacker(T, open_rows)
    rows = [row for i, size in enumerate(sizes, 1) if (row := packer.add(i, size)) is not None]
    while (row := packer.finish()) is not None:
        rows.append(row)
    return rows


SIZES = st.lists(st.integers(1, T), max_size=60)


@settings(deadline=None)
@given(SIZES, st.integers(1, 6))
def test_every_example_once_and_every_row_fits(sizes: list[int], open_rows: int) -> None:
    rows = pack(sizes, open_rows)
    assert sorted(i for row in rows for i in row) == list(range(1, len(sizes) + 1))
    assert all(0 < sum(sizes[i - 1] for i in row) <= T for row in rows)


@settings(deadline=None)
@given(SIZES, st.integers(1, 6), st.integers(0, 60))
def test_restored_packer_goes_on_alike(sizes: list[int], open_rows: int, stop: int) -> None:
    whole, restored = RowPacker(T, open_rows), RowPacker(T, open_rows)
    for i, size in enumerate(sizes):
        if i == stop:
            saved = [[(j, sizes[j]) for j in row] for row in whole.open]
            restored = RowPacker(T, open_rows, saved)
        a = whole.add(i, size)
        if i >= stop:
            assert restored.add(i, size) == a
    if stop < len(sizes):
        assert restored.open == whole.open


def test_rows_are_well_filled() -> None:
    rng = np.random.default_rng(0)
    sizes = rng.integers(1, T // 2, 2000).tolist()
    rows = pack(sizes, 8)
    assert sum(sizes) / (len(rows) * T) > 0.95


@settings(deadline=None)
@given(SIZES, st.booleans())
def test_arrays(sizes: list[int], response_only: bool) -> None:
    rows = pack(sizes, 4)
    batch = assemble([[example(i, sizes[i - 1]) for i in row] for row in [*rows, []]], T, P, 7, response_only, True)
    shape = (len(rows) + 1, T)
    for name in ("tokens", "targets", "positions", "segments", "roles", "group", "attribute"):
        assert batch[name].shape == shape and batch[name].dtype == np.int32
    assert batch["weights"].shape == shape and batch["weights"].dtype == np.float32
    assert batch["mixture"].shape == (*shape, P) and batch["mixture"].dtype == np.float32
    assert batch["active"].shape == shape and batch["active"].dtype == bool

    real = batch["segments"] > 0
    assert real.sum() == sum(sizes)
    # Padding comes last, holds nothing and teaches nothing.
    assert (np.diff(real.astype(int), axis=1) <= 0).all()
    assert (batch["tokens"][~real] == 7).all() and (batch["targets"][~real] == 7).all()
    for name in ("positions", "roles", "group", "attribute", "weights", "mixture", "active"):
        assert not batch[name][~real].any()

    for r, row in enumerate(rows):
        assert batch["segments"][r].max(initial=0) == len(row)
        for segment, i in enumerate(row, 1):
            here = batch["segments"][r] == segment
            assert np.ptp(np.flatnonzero(here)) == sizes[i - 1] - 1  # contiguous: no overlap
            mine = example(i, sizes[i - 1])
            np.testing.assert_array_equal(batch["positions"][r][here], np.arange(len(mine)))
            np.testing.assert_array_equal(batch["tokens"][r][here], mine.tokens)
            # A target is always the next token of the same example.
            np.testing.assert_array_equal(batch["targets"][r][here] // 1000, i)
            np.testing.assert_array_equal(batch["targets"][r][here], batch["tokens"][r][here] + 1)
            np.testing.assert_array_equal(batch["weights"][r][here], mine.weights)
            np.testing.assert_array_equal(batch["roles"][r][here], mine.roles)
            acts = mine.active if response_only else np.ones(len(mine), bool)
            np.testing.assert_array_equal(batch["active"][r][here], acts)
            np.testing.assert_array_equal(batch["mixture"][r][here], acts[:, None] * mine.mixture)
            assert (batch["group"][r][here] == mine.group).all()
            assert (batch["attribute"][r][here] == mine.attribute).all()
