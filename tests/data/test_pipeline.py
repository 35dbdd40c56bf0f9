"""Batches: deterministic, resumable at any point, the same however many processes make them."""

import dataclasses
import gc
import json
import threading
from collections import Counter
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from abi_jax.data import Batch, Batches, DataConfig, Splits, merge_states
from abi_jax.errors import InputError
from abi_jax.persona import Persona
from abi_jax.text import Tokenizer

P3 = tuple[Persona, ...]
Write = Callable[..., str]
CONFIG = DataConfig(length=128, batch_size=4, open_rows=3)


def take(batches: Batches, n: int) -> list[Batch]:
    return list(islice(batches, n))


def same(one: Batch, two: Batch) -> bool:
    return one.keys() == two.keys() and all(np.array_equal(one[k], two[k]) for k in one)


def seen(batches: list[Batch]) -> Counter[bytes]:
    """Counts the examples in some batches by their tokens."""
    found: Counter[bytes] = Counter()
    for batch in batches:
        for tokens, segments in zip(batch["tokens"], batch["segments"], strict=True):
            found.update(tokens[segments == s].tobytes() for s in range(1, segments.max(initial=0) + 1))
    return found


def test_one_pass_holds_every_example_once(tokenizer: Tokenizer, personas: P3) -> None:
    with Batches(CONFIG, tokenizer, personas, "held_out") as batches:
        everything = list(batches)
        assert sum(seen(everything).values()) == batches.examples == batches.counts["examples"]
        assert list(batches) == []
        batches.restart()
        assert all(same(a, b) for a, b in zip(everything, batches, strict=True))
        assert batches.epoch == 1.0


def test_order_depends_on_the_seed_alone(tokenizer: Tokenizer, personas: P3) -> None:
    with Batches(CONFIG, tokenizer, personas) as one, Batches(CONFIG, tokenizer, personas) as two:
        assert all(same(a, b) for a, b in zip(take(one, 5), take(two, 5), strict=True))
    reseeded = dataclasses.replace(CONFIG, seed=1)
    with Batches(reseeded, tokenizer, personas) as three, Batches(CONFIG, tokenizer, personas) as four:
        assert not same(next(three), next(four))


def test_training_repeats_in_a_new_order_and_covers_everything(tokenizer: Tokenizer, personas: P3) -> None:
    config = dataclasses.replace(CONFIG, train=("demo/abbey",), open_rows=1, prefetch=0)
    with Batches(config, tokenizer, personas) as batches:
        first: list[Batch] = []
        while batches.epoch < 2.2:
            first.append(next(batches))
        counts = seen(first)
        assert len(counts) == batches.examples and min(counts.values()) >= 2 and max(counts.values()) <= 3


@pytest.mark.parametrize("prefetch", [0, 2])
@pytest.mark.parametrize("split", ["train", "held_out"])
def test_resumes_anywhere_bit_for_bit(tokenizer: Tokenizer, personas: P3, prefetch: int, split: Any) -> None:
    config = dataclasses.replace(CONFIG, prefetch=prefetch)
    with Batches(config, tokenizer, personas, split) as batches:
        whole, states = [], [json.dumps(batches.get_state())]
        for batch in islice(batches, 40):
            whole.append(batch)
            states.append(json.dumps(batches.get_state()))
    with Batches(config, tokenizer, personas, split) as resumed:
        for at in (0, 1, 3, len(whole) // 2, len(whole) - 1):
            resumed.set_state(json.loads(states[at]))
            assert json.dumps(resumed.get_state()) == states[at]
            assert all(same(a, b) for a, b in zip(whole[at:], take(resumed, len(whole) - at), strict=True))


@settings(max_examples=8, deadline=None)
@given(st.integers(0, 30), st.integers(1, 8))
def test_resume_with_any_packing(tokenizer: Tokenizer, personas: P3, at: int, open_rows: int) -> None:
    config = dataclasses.replace(CONFIG, open_rows=open_rows, train=("demo/aviva",), prefetch=0)
    with Batches(config, tokenizer, personas) as one, Batches(config, tokenizer, personas) as two:
        take(one, at)
        two.set_state(one.get_state())
        assert all(same(a, b) for a, b in zip(take(one, 5), take(two, 5), strict=True))


@pytest.mark.parametrize("split", ["train", "held_out"])
@pytest.mark.parametrize("count", [2, 4])
def test_processes_share_the_same_global_batches(tokenizer: Tokenizer, personas: P3, count: int, split: Any) -> None:
    with Batches(CONFIG, tokenizer, personas, split) as alone:
        expected = take(alone, 12)
    parts = []
    for index in range(count):
        with Batches(CONFIG, tokenizer, personas, split, index, count) as mine:
            parts.append(take(mine, 12))
    assert len({len(p) for p in parts}) == 1
    for step, batch in enumerate(expected):
        joined = {k: np.concatenate([p[step][k] for p in parts]) for k in batch}
        assert same(batch, joined)


def test_every_example_is_made_by_exactly_one_process(tokenizer: Tokenizer, personas: P3) -> None:
    config = dataclasses.replace(CONFIG, train=("demo/abi",), open_rows=1)
    found: Counter[bytes] = Counter()
    for index in range(2):
        with Batches(config, tokenizer, personas, "train", index, 2) as mine:
            stream = mine._iterator._maybe_nonnative_parent._streams
            taken = [s._at(s._first + k * s._stride) for s in stream.values() for k in range(mine.examples // 4)]
            found.update(e.tokens.tobytes() for e in taken)
            total = mine.examples
    assert len(found) == sum(found.values()) == total // 4 * 4


def test_positions_of_all_processes_merge(tokenizer: Tokenizer, personas: P3) -> None:
    states = []
    for index in range(2):
        with Batches(CONFIG, tokenizer, personas, "train", index, 2) as mine:
            take(mine, 3)
            states.append(mine.get_state())
    with Batches(CONFIG, tokenizer, personas) as alone:
        expected = take(alone, 5)[3:]
        alone.set_state(merge_states(states))
        assert all(same(a, b) for a, b in zip(expected, take(alone, 2), strict=True))
        with pytest.raises(InputError, match="has rows 0, 1 but not 2"):
            alone.set_state(states[0])


def test_a_position_of_other_data_is_refused(tokenizer: Tokenizer, personas: P3) -> None:
    with Batches(CONFIG, tokenizer, personas) as batches:
        state = batches.get_state()
    changes = (
        ({"seed": 5}, "seed is 5, but this data position was saved with 0"),
        ({"group_by": "dataset"}, "group_by is 'dataset', but this data position was saved with 'persona'"),
        ({"train": ("demo/abi",)}, "the records, tokenizer or personas are not those"),
    )
    for change, reason in changes:
        other = Batches(dataclasses.replace(CONFIG, **change), tokenizer, personas)
        with other, pytest.raises(InputError, match=reason):
            other.set_state(state)


def test_groups_count_what_they_name(tokenizer: Tokenizer, personas: P3) -> None:
    with Batches(CONFIG, tokenizer, personas, "held_out") as batches:
        for batch in batches:
            alone, mixed = batch["mixture"].max(-1) == 1, batches.groups.index("mixed")
            expected = np.where(alone, batch["mixture"].argmax(-1), mixed)
            np.testing.assert_array_equal(batch["group"][batch["active"]], expected[batch["active"]])
    config = dataclasses.replace(CONFIG, group_by="dataset")
    with Batches(config, tokenizer, personas) as batches:
        assert batches.groups == ("abbey", "aviva", "abi", "blend")


def test_backbone_mode_needs_no_personas(tokenizer: Tokenizer, write: Write) -> None:
    turns = [{"role": "user", "content": "why?"}, {"role": "assistant", "content": "because"}]
    path = write({"messages": turns}, {"messages": turns, "persona": "someone else"})
    config = DataConfig(train=(path,), held_out=0, mode="backbone", length=32, batch_size=2)
    with Batches(config, tokenizer) as batches:
        batch = next(batches)
        assert batch["mixture"].shape == (2, 32, 0)
        np.testing.assert_array_equal(batch["weights"] > 0, batch["segments"] > 0)


def test_bad_records_skipped_and_counted(tokenizer: Tokenizer, personas: P3, write: Write) -> None:
    turns = [{"role": "user", "content": "why?"}, {"role": "assistant", "content": "because"}]
    path = write({"messages": turns, "persona": "abbey"}, "{", {"messages": turns})
    config = DataConfig(train=(path,), held_out=0, length=32, batch_size=1)
    with pytest.raises(InputError, match=r"chats\.jsonl:2: not JSON"):
        Batches(config, tokenizer, personas)
    with Batches(dataclasses.replace(config, bad_records="skip"), tokenizer, personas) as batches:
        next(batches)
        assert batches.counts["records"] == 1 and batches.counts["skipped"] == 2


def test_splits(tokenizer: Tokenizer, personas: P3, write: Write) -> None:
    both = Splits(CONFIG, personas)
    train, held = both.train.records, both.held_out.records
    assert len(train) + len(held) == 527 and len(train) > 10 * len(held) * 0.8
    own = dataclasses.replace(CONFIG, train=("demo/abbey",), evaluate=("demo/abi",))
    assert len(Splits(own, personas).train.records) == 165
    assert {r.dataset for r in Splits(own, personas).held_out.records} == {"abi"}
    with pytest.raises(InputError, match="the held_out split of demo is empty: 527 records"):
        Splits(dataclasses.replace(CONFIG, held_out=0), personas).side("held_out")


def test_what_does_not_fit_is_refused(tokenizer: Tokenizer, personas: P3) -> None:
    with pytest.raises(InputError, match="batch_size = 4 does not divide by 3 processes"):
        Batches(CONFIG, tokenizer, personas, process_count=3)
    with pytest.raises(InputError, match="length = 4; expected"):
        DataConfig(length=4)
    with pytest.raises(InputError, match="train is empty"):
        DataConfig(train=())
    with pytest.raises(InputError, match=r"abi\.jsonl:1: unknown persona 'abi'"):
        Batches(CONFIG, tokenizer, personas[:2])


def prefetching() -> set[threading.Thread]:
    return {each for each in threading.enumerate() if each.name.startswith("grain-thread-prefetch")}


def test_closing_stops_the_thread_also_when_forgotten(tokenizer: Tokenizer, personas: P3) -> None:
    before = prefetching()
    batches = Batches(CONFIG, tokenizer, personas)
    next(batches)
    assert len(prefetching() - before) == 1
    batches.close()
    batches.close()
    assert not prefetching() - before
    with pytest.raises(ValueError, match="closed"):
        next(batches)
    forgotten = Batches(CONFIG, tokenizer, personas)
    next(forgotten)
    del forgotten
    gc.collect()
    assert not prefetching() - before


def test_an_error_while_making_a_batch_reaches_the_caller(
    tokenizer: Tokenizer, personas: P3, write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: object) -> None:
        raise InputError("the chat template refuses")

    monkeypatch.setattr("abi_jax.data.examples.render", refused)
    turns = [{"role": "user", "content": "why?"}, {"role": "assistant", "content": "because"}]
    path = write({"messages": turns, "persona": "abbey"})
    batches = Batches(DataConfig(train=(path,), held_out=0, length=32, batch_size=1), tokenizer, personas)
    with batches, pytest.raises(InputError, match=r"chats\.jsonl:1: the chat template refuses"):
        next(batches)


def about(age: object, question: str) -> dict[str, Any]:
    turns = [{"role": "user", "content": question}, {"role": "assistant", "content": "because"}]
    return {"messages": turns, "persona": "abbey", "attributes": {} if age is None else {"age": age}}


def test_attributes_are_told_apart(tokenizer: Tokenizer, personas: P3, write: Write) -> None:
    path = write(*(about(age, f"why {n}?") for n, age in enumerate(["old", 7, None, "young", "old", ["x"]])))
    config = DataConfig(train=(path,), held_out=0, length=32, batch_size=2, bias_by="age", evaluate=(path,))
    with Batches(config, tokenizer, personas, "held_out") as batches:
        assert batches.attributes == ("7", "['x']", "old", "young")
        found = {}
        for batch in batches:
            assert batch["attribute"].dtype == np.int32 and batch["attribute"].shape == (2, 32)
            assert not batch["attribute"][batch["segments"] == 0].any()
            order = iter(batches.last_records)
            for row, segments in zip(batch["attribute"], batch["segments"], strict=True):
                for segment in range(1, segments.max(initial=0) + 1):
                    (number,) = set(row[segments == segment].tolist())
                    found[next(order)] = number
    assert found == {f"{path}:{n + 1}": number for n, number in enumerate([3, 1, 0, 4, 3, 2])}
    with Batches(dataclasses.replace(config, bias_by=""), tokenizer, personas) as batches:
        assert "attribute" not in next(batches) and batches.attributes == ()


def test_a_value_has_one_number_on_both_sides(tokenizer: Tokenizer, personas: P3, write: Write) -> None:
    train, held = write(about("young", "a?"), name="t.jsonl"), write(about("old", "b?"), name="h.jsonl")
    config = DataConfig(train=(train,), evaluate=(held,), length=32, batch_size=1, bias_by="age")
    for split, number in (("train", 2), ("held_out", 1)):
        with Batches(config, tokenizer, personas, split) as batches:  # type: ignore[arg-type]
            assert batches.attributes == ("old", "young") and next(batches)["attribute"].max() == number
            state = batches.get_state()
    other = Batches(dataclasses.replace(config, bias_by=""), tokenizer, personas, "held_out")
    with other, pytest.raises(InputError, match="bias_by is '', but this data position was saved with 'age'"):
        other.set_state(state)
    with pytest.raises(InputError, match="bias_by = 'gender', but no record has that attribute"):
        Batches(dataclasses.replace(config, bias_by="gender"), tokenizer, personas)


@pytest.mark.parametrize("prefetch", [0, 3])
def test_the_records_of_the_last_batch(tokenizer: Tokenizer, personas: P3, prefetch: int) -> None:
    config = dataclasses.replace(CONFIG, prefetch=prefetch)
    with Batches(config, tokenizer, personas) as batches:
        assert batches.last_records == ()
        told: list[tuple[str, ...]] = []
        for batch in islice(batches, 8):
            told.append(batches.last_records)
            assert len(told[-1]) == batch["segments"].max(axis=1).sum()
            file, _, line = told[-1][0].rpartition(":")
            said = json.loads(Path(file).read_text().splitlines()[int(line) - 1])["messages"]
            text = tokenizer.decode(batch["tokens"][0][batch["segments"][0] == 1])
            assert any(message["content"] in text for message in said)
            if len(told) == 3:
                state = batches.get_state()
        batches.set_state(state)
        assert batches.last_records == ()
        again = [batches.last_records for _ in islice(batches, 5)]
        assert again == told[3:]
    shared = []
    for index in range(2):
        with Batches(config, tokenizer, personas, "train", index, 2) as mine:
            shared.append([mine.last_records for _ in islice(mine, 8)])
    assert [a + b for a, b in zip(*shared, strict=True)] == told
