"""Balanced sampling: measured shares are the expected ones, on any number of processes, after any stop."""

import dataclasses
import json
from collections import Counter
from itertools import islice
from typing import Any

import grain
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from abi_jax.data import BalanceConfig, Balanced, Batch, Batches, DataConfig, Record
from abi_jax.data.balance import balanced_counts, group_names
from abi_jax.errors import InputError
from abi_jax.persona import Persona
from abi_jax.text import Tokenizer
from tests.data.conftest import Write

P3 = tuple[Persona, ...]
BY_AGE = BalanceConfig(by=("attributes.age",))


def drawn(groups: list[str], alpha: float, seed: int, epochs: int) -> list[Counter[int]]:
    """How often every example is in each epoch."""
    source = Balanced(grain.MapDataset.range(len(groups)), groups, BalanceConfig(("aspect",), alpha), seed)
    return [Counter(source[e * len(source) + i] for i in range(len(source))) for e in range(epochs)]


@settings(max_examples=50, deadline=None)
@given(st.lists(st.sampled_from("abc"), min_size=1, max_size=60), st.floats(0, 1), st.integers(0, 2**32 - 1))
def test_every_epoch_has_the_expected_shares(groups: list[str], alpha: float, seed: int) -> None:
    sizes = Counter(groups)
    most = max(sizes.values())
    for epoch in drawn(groups, alpha, seed, 3):
        measured = Counter[str]()
        for example, seen in epoch.items():
            measured[groups[example]] += seen
        for name, size in sizes.items():
            assert measured[name] == round(size * (most / size) ** alpha)
            times = [epoch[i] for i, g in enumerate(groups) if g == name]
            assert max(times) - min(times) <= 1 <= min(times)


def test_the_weight_of_an_example_is_a_power_of_its_groups_size() -> None:
    counts = {"a": 10_000, "b": 400, "c": 25}
    for alpha in (0.0, 0.3, 0.5, 1.0):
        places = balanced_counts(counts, alpha)
        weights = np.array([places[g] / n for g, n in counts.items()])
        expected = np.array([n**-alpha for n in counts.values()])
        np.testing.assert_allclose(weights / weights.sum(), expected / expected.sum(), rtol=2e-3)
    assert balanced_counts(counts, 0) == counts
    assert balanced_counts(counts, 1) == dict.fromkeys(counts, 10_000)


def test_what_is_drawn_for_the_rest_changes_with_epoch_and_seed() -> None:
    groups = ["a"] * 30 + ["b"] * 20
    one, two = drawn(groups, 1.0, 0, 2)
    (other,) = drawn(groups, 1.0, 1, 1)
    assert one != two and one != other and drawn(groups, 1.0, 0, 1) == [one]
    twice = [{i for i, times in epoch.items() if times == 2} for epoch in (one, two)]
    assert all(len(t) == 10 and min(t) >= 30 for t in twice)


def record(persona: str = "abbey", aspect: str | None = None, dataset: str = "set", **attributes: Any) -> Record:
    turns = ({"role": "user", "content": "a?"}, {"role": "assistant", "content": "b"})
    return Record(turns, {persona: 1.0}, aspect=aspect, attributes=attributes, dataset=dataset)


def test_groups_are_combinations_of_values() -> None:
    records = [record(aspect="empathy", age="old"), record("abi", age=7), record(aspect="empathy", age=None)]
    records.append(dataclasses.replace(records[0], mixture={"aviva": 0.5, "abbey": 0.5}, dataset="more"))
    assert group_names(records, ["persona", "attributes.age"]) == [
        "persona=abbey, attributes.age=old",
        "persona=abi, attributes.age=7",
        "persona=abbey, attributes.age=none",
        "persona=abbey=0.5,aviva=0.5, attributes.age=old",
    ]
    assert group_names(records, ["aspect", "dataset"])[1] == "aspect=none, dataset=set"
    with pytest.raises(InputError, match=r"balance\.by names 'attributes\.agee', but none of 4 .*there are: age"):
        group_names(records, ["attributes.agee"])
    with pytest.raises(InputError, match=r"balance\.by names 'aspect', but none of 1 records has it$"):
        group_names([record()], ["aspect"])


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"by": ("age",)}, "by names 'age'; expected persona, aspect, dataset or attributes.NAME"),
        ({"by": ("attributes.",)}, "by names 'attributes.'; expected an attribute's name"),
        ({"alpha": 1.5}, "alpha = 1.5; expected a number from 0"),
        ({"alpha": float("nan")}, "alpha = nan"),
    ],
)
def test_settings_that_do_not_fit(changes: dict[str, Any], reason: str) -> None:
    with pytest.raises(InputError, match=reason):
        BalanceConfig(**changes)


@pytest.fixture
def skewed(write: Write) -> str:
    """A file of 30 dialogues about the old, 10 about the young and 2 about nobody; every second has two answers."""

    def chat(number: int) -> dict[str, Any]:
        ages = {"age": "old"} if number < 30 else {"age": "young"} if number < 40 else {}
        turns = [{"role": "user", "content": f"question {number}"}, {"role": "assistant", "content": f"reply {number}"}]
        return {"messages": turns * (1 + number % 2), "persona": "abbey", "attributes": ages}

    return write(*(chat(n) for n in range(42)))


def taken(batches: Batches, n: int) -> list[Batch]:
    return list(islice(batches, n))


def same(one: list[Batch], two: list[Batch]) -> bool:
    return all(
        a.keys() == b.keys() and all(np.array_equal(a[k], b[k]) for k in a) for a, b in zip(one, two, strict=True)
    )


def test_batches_hold_every_group_equally_often(tokenizer: Tokenizer, personas: P3, skewed: str) -> None:
    config = DataConfig(train=(skewed,), held_out=0, length=32, batch_size=1, open_rows=1, prefetch=0, bias_by="age")
    measured: dict[float, Counter[int]] = {}
    for alpha in (0.0, 0.5, 1.0):
        with Batches(dataclasses.replace(config, balance=BalanceConfig(BY_AGE.by, alpha)), tokenizer, personas) as made:
            measured[alpha] = Counter()
            while made.epoch < 8:
                batch = next(made)
                for segment in range(1, batch["segments"].max() + 1):
                    measured[alpha][int(batch["attribute"][batch["segments"] == segment][0])] += 1
            if alpha:
                assert made.attributes == ("old", "young")
                assert {g: n for g, (n, _) in made.balance.items()} == {
                    "attributes.age=none": 3,
                    "attributes.age=old": 45,
                    "attributes.age=young": 15,
                }
                assert made.examples == sum(after for _, after in made.balance.values())
            else:
                assert made.balance == {} and made.examples == 63
    examples = np.array([3, 45, 15])
    for alpha, counts in measured.items():
        shares = np.array([counts[i] for i in range(3)]) / counts.total()
        expected = examples ** (1 - alpha) / (examples ** (1 - alpha)).sum()
        np.testing.assert_allclose(shares, expected, atol=0.02)


@pytest.mark.parametrize("alpha", [0.4, 1.0])
def test_any_number_of_processes_and_any_stop(tokenizer: Tokenizer, personas: P3, skewed: str, alpha: float) -> None:
    balance = BalanceConfig(("attributes.age", "persona"), alpha)
    config = DataConfig(train=(skewed,), held_out=6, length=48, batch_size=4, open_rows=2, balance=balance)
    with Batches(config, tokenizer, personas) as alone:
        expected, states = [], []
        for _ in range(20):  # several epochs
            states.append(json.dumps(alone.get_state()))
            expected.append(next(alone))
        assert alone.epoch > 1.5
        for at in (1, 7, 16):
            alone.set_state(json.loads(states[at]))
            assert same(expected[at:], taken(alone, 20 - at))
    parts = []
    for index in range(2):
        with Batches(config, tokenizer, personas, "train", index, 2) as mine:
            parts.append(taken(mine, 20))
    joined = [{k: np.concatenate([a[k], b[k]]) for k in a} for a, b in zip(*parts, strict=True)]
    assert same(expected, joined)


def test_a_position_belongs_to_its_balance(tokenizer: Tokenizer, personas: P3, skewed: str) -> None:
    config = DataConfig(train=(skewed,), held_out=0, length=32, batch_size=1, balance=BY_AGE)
    with Batches(config, tokenizer, personas) as batches:
        state = json.loads(json.dumps(batches.get_state()))
        batches.set_state(state)
    for balance in (BalanceConfig(), BalanceConfig(BY_AGE.by, 0.5)):
        other = Batches(dataclasses.replace(config, balance=balance), tokenizer, personas)
        with other, pytest.raises(InputError, match=r"balance is \{.*but this data position was saved with \{"):
            other.set_state(state)


def test_held_out_data_is_measured_as_it_is(tokenizer: Tokenizer, personas: P3, skewed: str) -> None:
    config = DataConfig(train=(skewed,), held_out=2, length=64, batch_size=2, balance=BY_AGE)
    with Batches(config, tokenizer, personas, "held_out") as batches:
        assert batches.balance == {}
        assert len([r for _ in batches for r in batches.last_records]) == batches.examples < 63
