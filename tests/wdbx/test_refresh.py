"""A reader that goes on: what did not change stays open, with all that was made of it."""

from pathlib import Path

import numpy as np

from abi_jax import wdbx


def test_segments_that_stay_are_not_opened_again(tmp_path: Path) -> None:
    vectors = np.random.default_rng(0).normal(size=(4000, 8))
    with wdbx.open(tmp_path / "store") as db:
        c = db.create_collection("c", 8, "l2", schema={"lang": str}, ids="int")
        c.upsert(np.arange(4000), vectors, {"lang": ["en", "de"] * 2000})
        db.seal()
        with wdbx.open(tmp_path / "store", mode="r") as reader:
            looked = reader.collection("c").view()
            assert reader.collection("c").query(vectors[3], 1)[0].id == 3
            codes = looked.segments[0].codes
            c.delete([3])
            c.upsert([4000], [np.zeros(8)], [{"lang": "en"}])
            reader.refresh()
            now = reader.collection("c").view()
            assert now.segments[0].codes is codes
            assert reader.collection("c").query(vectors[3], 1)[0].id != 3
            assert reader.collection("c").get([3, 4000])[0] is None
            assert looked.get([3])[0] is not None
            assert len(looked) == len(now) == 4000
            db.seal()
            reader.refresh()
            assert len(reader.collection("c")) == 4000
            assert reader.collection("c").query(np.zeros(8), 1, {"lang": "en"})[0].id == 4000


def test_a_segment_that_was_written_anew_is_another(tmp_path: Path) -> None:
    with wdbx.open(tmp_path / "store") as db:
        c = db.create_collection("c", 2, "l2")
        c.upsert(["a", "b"], [[0, 1], [1, 0]])
        db.seal()
        with wdbx.open(tmp_path / "store", mode="r") as reader:
            before = reader.collection("c").view().segments[0]
            c.upsert(["a"], [[5, 5]])
            db.compact()
            reader.refresh()
            after = reader.collection("c").view().segments
            assert before.number not in [each.number for each in after]
            assert reader.collection("c").query([5, 5], 1)[0].id == "a"
