"""What is trained on and what is kept apart: folds, and nothing that is on both sides."""

import dataclasses
from collections import Counter
from typing import Any

import pytest

from abi_jax.data import Batches, DataConfig, Record, Splits, demo_files, is_held_out, read_records
from abi_jax.errors import InputError
from abi_jax.persona import Persona
from abi_jax.text import Tokenizer
from tests.data.conftest import Write

P3 = tuple[Persona, ...]
TALE = " ".join(f"word{n}" for n in range(60))


def chat(question: str, answer: str, persona: str = "abbey") -> dict[str, Any]:
    turns = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return {"messages": turns, "persona": persona}


def keys(records: list[Record] | tuple[Record, ...]) -> list[str]:
    return [r.where for r in records]


def test_every_dialogue_is_held_out_by_one_fold(personas: P3) -> None:
    whole = read_records(demo_files()).records
    held: Counter[str] = Counter()
    for fold in range(5):
        splits = Splits(DataConfig(folds=5, fold=fold), personas)
        assert not set(keys(splits.train.records)) & set(keys(splits.held_out.records))
        assert len(splits.train.records) + len(splits.held_out.records) == len(whole)
        assert 60 < len(splits.held_out.records) < 150
        held.update(keys(splits.held_out.records))
        assert list(splits.held_out.records) == [r for r in whole if is_held_out(r, 5, fold)]
    assert held == Counter(keys(whole))


def test_fold_0_of_k_is_what_one_in_k_holds_out(personas: P3) -> None:
    folded, plain = (Splits(DataConfig(**c), personas) for c in ({"folds": 7}, {"held_out": 7}))  # type: ignore[arg-type]
    assert keys(folded.held_out.records) == keys(plain.held_out.records)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"folds": 3, "fold": 3}, r"fold = 3 of folds = 3; expected an integer from 0 to 2"),
        ({"folds": 3, "fold": -1}, r"fold = -1 of folds = 3"),
        ({"fold": 1}, r"fold = 1 of folds = 0; expected 0, or folds above it"),
        ({"folds": 1}, r"folds = 1 keeps everything apart"),
        ({"folds": -2}, r"folds = -2; expected"),
        ({"folds": 3, "evaluate": ("demo/abi",)}, r"folds = 3 and evaluate = \['demo/abi'\]; expected one of them"),
        ({"similarity": 0.0}, r"similarity = 0\.0; expected a number from 0\.2 to 1"),
    ],
)
def test_settings_that_do_not_fit(changes: dict[str, Any], reason: str) -> None:
    with pytest.raises(InputError, match=reason):
        DataConfig(**changes)


def test_a_position_belongs_to_its_fold(tokenizer: Tokenizer, personas: P3) -> None:
    config = DataConfig(length=64, batch_size=2, folds=4)
    with Batches(config, tokenizer, personas) as batches:
        state = batches.get_state()
    with Batches(dataclasses.replace(config, fold=1), tokenizer, personas) as other:
        with pytest.raises(InputError, match="fold is 1, but this data position was saved with 0"):
            other.set_state(state)
        older = {**state, "settings": {k: v for k, v in state["settings"].items() if k not in ("folds", "fold")}}
        with pytest.raises(InputError, match="folds is 4, but this data position was saved with 0"):
            other.set_state(older)


def test_files_are_read_once_for_both_sides(monkeypatch: pytest.MonkeyPatch, personas: P3) -> None:
    read: list[str] = []

    def counted(sources: Any, *rest: Any) -> Any:
        read.extend(map(str, sources))
        return read_records(sources, *rest)

    monkeypatch.setattr("abi_jax.data.splits.read_records", counted)
    splits = Splits(DataConfig(duplicates="near"), personas)
    assert read == []
    for _ in range(2):
        assert splits.side("held_out").records and splits.side("train").records
    assert len(read) == len(set(read)) == len(demo_files())


def test_duplicates_are_left_out_and_counted_by_data_set(write: Write, personas: P3) -> None:
    write(chat("a?", "first"), chat("A? ", "FIRST"), chat("tell me", TALE), name="one.jsonl")
    two = write(chat("a?", "first"), chat("tell me", TALE + " again"), chat("a?", "first", "abi"), name="two.jsonl")
    config = DataConfig(train=(two.replace("two", "one"), two), held_out=0)
    expected: dict[str, tuple[int, dict[str, dict[str, int]]]] = {
        "keep": (6, {"one": {}, "two": {}}),
        "exact": (4, {"one": {"exact": 1}, "two": {"exact": 1}}),
        "near": (3, {"one": {"exact": 1}, "two": {"exact": 1, "near": 1}}),
    }
    for duplicates, (count, removed) in expected.items():
        side = Splits(dataclasses.replace(config, duplicates=duplicates), personas).train  # type: ignore[arg-type]
        assert len(side.records) == count
        left_out = {name: {k: n for k, n in c.items() if k in ("exact", "near")} for name, c in side.tally.items()}
        assert left_out == removed


@pytest.mark.parametrize("duplicates", ["exact", "near"])
def test_what_is_held_out_is_not_trained_on(duplicates: Any, write: Write, personas: P3) -> None:
    train = write(
        chat("a?", "first"),
        chat("tell me", TALE + " again"),
        chat("b?", "second"),
        chat("b?", "second"),
        name="t.jsonl",
    )
    held = write(chat("A?", "first"), chat("tell me", TALE), chat("c?", "third"), name="h.jsonl")
    config = DataConfig(train=(train,), evaluate=(held,), duplicates=duplicates)
    splits = Splits(config, personas)
    leaked = 2 if duplicates == "near" else 1
    assert splits.train.tally["t"]["leaked"] == leaked and splits.train.tally["t"]["exact"] == 1
    assert len(splits.train.records) == 3 - leaked and len(splits.held_out.records) == 3
    # The same when the other side was not asked for.
    assert Splits(config, personas).side("train").records == splits.train.records
    assert Splits(config, personas).side("held_out").records == splits.held_out.records


def test_a_backbone_is_not_trained_on_what_another_persona_holds_out(write: Write, personas: P3) -> None:
    """A dialogue is held out for its question and persona; to a backbone its twin is the same text."""
    path = write(*(chat(f"q{n}?", f"answer {n}", name) for n in range(40) for name in ("abbey", "abi")))
    config = DataConfig(train=(path,), mode="backbone", held_out=3, duplicates="exact")
    splits = Splits(config, personas)
    said = [{r.question for r in side.records} for side in (splits.train, splits.held_out)]
    assert all(said) and not said[0] & said[1]
    assert splits.train.tally["chats"]["leaked"] > 0
    kept = Splits(dataclasses.replace(config, mode="persona"), personas)
    assert kept.train.tally["chats"]["leaked"] == 0


def test_near_duplicates_across_a_hashed_split_go_from_training(write: Write, personas: P3) -> None:
    """A word more in the question puts a dialogue on a side of its own; its text must not be on both."""
    path = write(*(chat(f"tell me tale {n}", f"{TALE} {n}") for n in range(24)))
    config = DataConfig(train=(path,), held_out=3)
    before = Splits(config, personas)
    assert len(before.train.records) > 10 and len(before.held_out.records) > 3
    after = Splits(dataclasses.replace(config, duplicates="near"), personas)
    assert len(after.train.records) == 0 and len(after.held_out.records) == 1
    assert after.train.tally["chats"]["leaked"] == len(before.train.records)
    with pytest.raises(InputError, match=r"is empty: 24 records, .* kept apart, \d+ duplicates left out"):
        after.side("train")
