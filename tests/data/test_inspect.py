"""What inspection tells of a data set, against what training makes of it."""

import dataclasses
import json
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from abi_jax.data import BalanceConfig, Balanced, Batches, DataConfig, examples
from abi_jax.data import inspect as module
from abi_jax.data.figure import draw
from abi_jax.data.inspect import inspect
from abi_jax.errors import InputError
from abi_jax.persona import Persona
from abi_jax.text import Tokenizer
from abi_jax.text.chat import Rendered, render
from tests.data.conftest import Write

P3 = tuple[Persona, ...]
TALE = " ".join(f"word{n}" for n in range(60))


def chat(*contents: str, persona: str = "abbey", **values: Any) -> dict[str, Any]:
    roles = ("user", "assistant")
    return {
        "messages": [{"role": roles[n % 2], "content": c} for n, c in enumerate(contents)],
        "persona": persona,
        **values,
    }


@pytest.fixture
def path(write: Write) -> str:
    return write(
        chat("one two?", "three", aspect="empathy", attributes={"age": "old"}),
        chat("a?", "b", "c?", "d e f", attributes={"age": "old", "region": 7}),
        chat("tell", TALE, persona="aviva", policy="be brief", memory=["it rains"]),
        chat("tell", TALE + " again", persona="aviva", attributes={"age": "young"}),
        chat("One  two?", "three"),
        "{",
        chat("nobody answers"),
    )


def test_counts(path: str) -> None:
    found = inspect(DataConfig(train=(path,), held_out=0))
    assert found.steps["chats"] == {
        "read": 7,
        "skipped": 2,
        "cleaned": 0,
        "exact": 0,
        "near": 0,
        "leaked": 0,
        "held_out": 0,
        "records": 5,
        "examples": 6,
    }
    assert found.counts == {
        "persona": {"abbey": (3, 4), "aviva": (2, 2)},
        "aspect": {"none": (4, 5), "empathy": (1, 1)},
        "attributes.age": {"old": (2, 3), "none": (2, 2), "young": (1, 1)},
        "attributes.region": {"none": (4, 4), "7": (1, 2)},
    }
    assert found.duplicates == {"chats": {"exact": 1, "near": 1, "leaked": 0}}
    assert [reason.partition(": ")[0] for reason in found.bad] == [f"{path}:6", f"{path}:7"]
    assert found.lengths.unit == "words" and found.lengths.sizes.tolist() == [3, 2, 6, 65, 62, 3]
    assert found.lengths.summary() == {"min": 2, "median": 4.5, "p95": 64.25, "max": 65, "mean": 23.5}
    whole = inspect(DataConfig(train=(path,), held_out=0, mode="backbone"))
    assert whole.lengths.sizes.tolist() == [3, 6, 65, 62, 3]


def test_what_is_left_out_is_told_once(path: str) -> None:
    found = inspect(DataConfig(train=(path,), held_out=0, duplicates="near"))
    assert found.duplicates == {"chats": {"exact": 1, "near": 1, "leaked": 0}}
    assert found.total("records") == 3 and found.steps["chats"]["near"] == 1


def test_both_sides_of_the_split(path: str, write: Write) -> None:
    other = write(chat("one two?", "three"), chat("else?", "yes"), "[", name="other.jsonl")
    found = inspect(DataConfig(train=(path,), evaluate=(other,), clean=True))
    assert found.total("held_out") == found.steps["other"]["records"] == 2 and found.total("skipped") == 3
    assert found.duplicates["chats"] == {"exact": 0, "near": 1, "leaked": 2}
    assert len(found.bad) == 3
    hashed = inspect(DataConfig(held_out=12))
    assert hashed.total("records") == 527 and 25 < hashed.total("held_out") < 60


def test_lengths_in_tokens_and_what_a_row_cuts(tokenizer: Tokenizer, personas: P3, path: str) -> None:
    config = DataConfig(train=(path,), held_out=0, length=40)
    found = inspect(config, personas, tokenizer)
    whole = inspect(dataclasses.replace(config, length=4096), personas, tokenizer)
    assert found.lengths.unit == "tokens" and whole.lengths.cut == {}
    np.testing.assert_array_equal(found.lengths.sizes, whole.lengths.sizes)
    assert (found.lengths.sizes > 40).sum() == 2
    assert found.lengths.cut == {"response_cut": 2, "prompt_cut": 1}


@pytest.mark.parametrize("balance", [BalanceConfig(), BalanceConfig(("persona",), 1.0)])
def test_packing_is_what_batches_show(tokenizer: Tokenizer, personas: P3, balance: BalanceConfig) -> None:
    config = DataConfig(length=256, batch_size=4, open_rows=4, balance=balance)
    found = inspect(config, personas, tokenizer)
    with Batches(config, tokenizer, personas) as batches:
        some = list(islice(batches, 200))
        assert found.balance == batches.balance
        rows = 200 * config.batch_size / batches.epoch
    assert found.lengths.filled == pytest.approx(np.mean([(batch["segments"] > 0).mean() for batch in some]), abs=0.02)
    assert found.lengths.rows == pytest.approx(rows, rel=0.05)


def test_personas_are_checked_when_they_are_given(personas: P3, path: str, write: Write) -> None:
    nobody = write({"messages": chat("a?", "b")["messages"]}, chat("a?", "b"), name="nobody.jsonl")
    config = DataConfig(train=(nobody,), held_out=0)
    assert inspect(config).counts["persona"] == {"none": (1, 1), "abbey": (1, 1)}
    assert inspect(config, personas).total("skipped") == 1
    with pytest.raises(InputError, match=r"is empty .*2 records were skipped, the first because: .*no persona"):
        inspect(config, personas[1:])


def test_samples_show_every_persona_with_roles(tokenizer: Tokenizer, path: str) -> None:
    config = DataConfig(train=(path,), held_out=0)
    plain = inspect(config, samples=2)
    assert {s["persona"] for s in plain.samples} == {"abbey", "aviva"}
    assert inspect(config, samples=0).samples == [] and len(inspect(config, samples=99).samples) == 6
    parts = {s["where"]: s["parts"] for s in inspect(config, samples=99).samples}
    assert parts[f"{path}:3"] == [("policy", "be brief"), ("memory", "it rains"), ("input", "tell"), ("response", TALE)]
    assert ("history", "a?") in parts[f"{path}:2"] or parts[f"{path}:2"] == [("input", "a?"), ("response", "b")]
    read = {s["where"]: s["parts"] for s in inspect(config, None, tokenizer, 99).samples}[f"{path}:1"]
    assert "".join(text for _, text in read).endswith("three<|end|>")
    assert [role for role, _ in read][-2:] == ["input", "response"]


def test_an_example_that_cannot_be_rendered_is_reported(
    tokenizer: Tokenizer, write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some templates refuse what others take."""

    def refusing(tokenizer: Tokenizer, turns: Any, *more: Any) -> Rendered:
        if turns[-1]["content"] == "refuse me":
            raise InputError("the chat template refuses")
        return render(tokenizer, turns, *more)

    monkeypatch.setattr(examples, "render", refusing)
    path = write(chat("refuse me", "b"), chat("a?", "b"), chat("a?", "\ue0ff"))
    found = inspect(DataConfig(train=(path,), held_out=0), None, tokenizer)
    assert len(found.lengths.sizes) == found.unrendered == found.total("skipped") == 1
    assert "content is empty" in found.bad[0] and "the chat template refuses" in found.bad[1]


def test_a_large_balanced_epoch_is_sampled(tokenizer: Tokenizer, personas: P3, monkeypatch: pytest.MonkeyPatch) -> None:
    config = DataConfig(length=256, open_rows=4, balance=BalanceConfig(("persona",), 1.0))
    whole = inspect(config, personas, tokenizer).lengths
    places: list[int] = []
    one = Balanced.__getitem__

    def seen(self: Balanced, at: int) -> Any:
        places.append(at)
        return one(self, at)

    monkeypatch.setattr(Balanced, "__getitem__", seen)
    monkeypatch.setattr(module, "MOST_PLACES", 300)
    sampled = inspect(config, personas, tokenizer).lengths
    assert len(places) == 300 and max(places) > 700
    assert whole.rows is not None and sampled.rows == pytest.approx(whole.rows, rel=0.1)
    places.clear()
    assert inspect(config, personas).balance and not places  # nobody asked for rows


def test_an_empty_value_is_a_value(write: Write) -> None:
    path = write(chat("a?", "b", attributes={"age": ""}), chat("c?", "d"))
    found = inspect(DataConfig(train=(path,), held_out=0))
    assert found.counts["attributes.age"] == {"": (1, 1), "none": (1, 1)}


def test_names_are_drawn_as_they_are(write: Write, tmp_path: Path) -> None:
    path = write(chat("a?", "b", attributes={"pay": "$1_{$ \x1b" + "x" * 99}), name="cost$_{$.jsonl")
    draw(inspect(DataConfig(train=(path,), held_out=0, balance=BalanceConfig(("attributes.pay",)))), tmp_path / "x.svg")
    assert (tmp_path / "x.svg").read_text().startswith("<?xml")


def test_everything_is_json_and_can_be_drawn(tokenizer: Tokenizer, path: str, tmp_path: Path) -> None:
    config = DataConfig(train=(path,), held_out=0, length=40, balance=BalanceConfig(("attributes.age",)))
    for balance in (config.balance, BalanceConfig()):
        for given in (None, tokenizer):
            found = inspect(dataclasses.replace(config, balance=balance), None, given)
            told = json.loads(json.dumps(found.to_dict()))
            assert told["records"] == 5 and told["examples"] == 6 and told["skipped"] == 2
            draw(found, tmp_path / "found.png")
            assert (tmp_path / "found.png").stat().st_size > 10_000
    assert told["counts"]["aspect"]["empathy"] == {"records": 1, "examples": 1}
