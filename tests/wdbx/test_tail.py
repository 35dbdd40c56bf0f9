"""Metadata of rows that were written one by one is read in few pieces, and is that of the rows."""

from abi_jax.wdbx.rows import make_rows
from abi_jax.wdbx.spec import make_spec
from abi_jax.wdbx.tail import Tail


def test_metadata_of_many_small_writes() -> None:
    spec = make_spec("c", 1, "l2", "float32", "int", {"year": int})
    tail = Tail(spec)
    seen = 0
    for version in range(1, 301):
        tail.append(version, make_rows(spec, [version], [[0]], {"year": [version]}))
        if version % 7 == 0:
            table = tail.metadata(tail.count)
            assert table["year"].to_pylist() == list(range(1, version + 1))
            assert table["year"].num_chunks <= 10
            assert tail.metadata(seen)["year"].to_pylist() == list(range(1, seen + 1))
            seen = version
    assert tail.rest(290).metadata(10)["year"].to_pylist() == list(range(291, 301))


def test_metadata_of_none() -> None:
    bare = make_spec("c", 1, "l2", "float32", "int", None)
    tail = Tail(bare)
    tail.append(1, make_rows(bare, [1], [[0]]))
    assert tail.metadata(1).num_columns == 0
    assert Tail(make_spec("c", 1, "l2", "float32", "int", {"year": int})).metadata(0).num_rows == 0
