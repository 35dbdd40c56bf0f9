"""Rows of an encrypted array are those of the array, however they are asked for; and no more is opened than must be."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from abi_jax.wdbx.crypto import rows as module
from abi_jax.wdbx.crypto.pages import PAGE, SealedArrays, StepKey, seal_arrays
from abi_jax.wdbx.crypto.rows import PASSES, SealedRows
from abi_jax.wdbx.errors import DamagedError

KEY = StepKey(bytes(range(32)), bytes(16), "segments/00000001")
SHAPES = st.sampled_from([(0, 4), (1, 3), (3000, 24), (700, 129), (5, 40_000)])


def sealed(shape: tuple[int, int], dtype: str) -> tuple[np.ndarray, SealedArrays]:
    array = np.random.default_rng(0).integers(-100, 100, shape).astype(dtype)
    return array, SealedArrays(KEY, seal_arrays(KEY, {"vectors": array}))


@given(shape=SHAPES, dtype=st.sampled_from(["float32", "bfloat16", "int8"]), data=st.data())
@settings(max_examples=60, deadline=None)
def test_as_numpy(shape: tuple[int, int], dtype: str, data: Any) -> None:
    array, arrays = sealed(shape, dtype)
    rows = arrays.rows("vectors")
    assert (len(rows), rows.shape, rows.dtype, rows.nbytes) == (len(array), shape, array.dtype, array.nbytes)
    number = st.integers(0, max(len(array) - 1, 0))
    keys: list[Any] = [slice(None), slice(None, None, -1)]
    for _ in range(4):
        keys.append(slice(data.draw(number), data.draw(number), data.draw(st.sampled_from([1, 3]))))
        if len(array):
            keys += [data.draw(number), np.array(data.draw(st.lists(number, max_size=30)), np.int64)]
            keys.append(np.random.default_rng(len(keys)).random(len(array)) < data.draw(st.sampled_from([0.001, 0.5])))
    for key in keys:
        assert rows[key].tobytes() == array[key].tobytes() and rows[key].shape == array[key].shape
    assert np.asarray(rows).tobytes() == array.tobytes()


def opened(rows: SealedRows) -> int:
    return int(rows._pages.open.sum())


def test_a_few_rows_open_a_few_pages() -> None:
    array, arrays = sealed((100_000, 32), "float32")
    rows = arrays.rows("vectors")
    assert (rows[np.array([3, 99_999, 3])] == array[[3, 99_999, 3]]).all()
    assert opened(rows) == 2
    for _ in range(PASSES):
        for start in range(0, len(array), 1000):
            assert (rows[start : start + 1000] == array[start : start + 1000]).all()
        assert opened(rows) == 2 or start
    assert (rows[:] == array).all()
    assert opened(rows) == -(-array.nbytes // PAGE)  # whoever keeps coming back has them kept
    before = rows[7].copy()
    rows[7][:] = 0
    rows[7:8][:] = 0
    assert (rows[7] == before).all()  # what is taken is a copy


def test_no_more_stays_open_than_may(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of several arrays those are closed that were longest not looked at; passes leave a large one closed."""
    monkeypatch.setattr(module, "MOST_OPEN", 12 * PAGE)
    monkeypatch.setattr(module, "_budget", module._Budget())
    made = [sealed((100_000, 32), "float32") for _ in range(3)]
    rows = [arrays.rows("vectors") for _, arrays in made]
    page = PAGE // 128  # rows
    for i in (0, 1, 2, 0, 2):
        array = made[i][0]
        for number in range(5):
            assert (rows[i][number * page] == array[number * page]).all()
    assert [opened(each) for each in rows] == [5, 0, 5]
    rng = np.random.default_rng(0)
    for _ in range(300):
        i, chosen = int(rng.integers(3)), rng.integers(0, 100_000, 4)
        assert (rows[i][chosen] == made[i][0][chosen]).all()
        assert sum(map(opened, rows)) <= 12
    for _ in range(2 * PASSES):
        assert (rows[0][:] == made[0][0]).all()
    assert sum(map(opened, rows)) <= 12


def test_a_page_that_was_changed_does_not_open() -> None:
    _, arrays = sealed((100_000, 32), "float32")
    arrays._frames["vectors"][5, 100] ^= 1
    rows = arrays.rows("vectors")
    assert len(rows[:100]) == 100
    for key in (5 * PAGE // 128 + 1, slice(None), np.arange(100_000)):
        with pytest.raises(DamagedError, match=r"segments/00000001/vectors: page 5 of \d+ does not open"):
            rows[key]
    with pytest.raises(IndexError):
        rows[100_000]
    with pytest.raises(IndexError):
        rows[np.array([100_000])]
