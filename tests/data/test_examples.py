"""Examples: one for every answer, loss on that answer alone, never longer than a row."""

import dataclasses

import numpy as np
import pytest

from abi_jax.data import DataConfig, ExampleSource, Record, examples
from abi_jax.data.examples import Example
from abi_jax.errors import InputError
from abi_jax.persona import Persona
from abi_jax.text import Role, Tokenizer

P3 = tuple[Persona, ...]


def talk(*contents: str, **values: object) -> Record:
    turns = tuple({"role": ("user", "assistant")[i % 2], "content": c} for i, c in enumerate(contents))
    return Record(turns, {"abbey": 1.0}, where="here:1", dataset="set", **values)  # type: ignore[arg-type]


def make(record: Record, tokenizer: Tokenizer, personas: P3, **config: object) -> list[Example]:
    source = ExampleSource([record], DataConfig(**config), tokenizer, personas)  # type: ignore[arg-type]
    return [source[i] for i in range(len(source))]


def learned(tokenizer: Tokenizer, example: Example) -> str:
    return tokenizer.decode(example.targets[example.weights > 0], skip_special=False)


def test_one_example_for_every_answer(tokenizer: Tokenizer, personas: P3) -> None:
    record = talk("a?", "first answer", "b?", "second answer")
    one, two = make(record, tokenizer, personas)
    assert learned(tokenizer, one) == "first answer<|end|>"
    assert learned(tokenizer, two) == "second answer<|end|>"
    assert "first answer" in tokenizer.decode(two.tokens[two.roles == Role.HISTORY])
    for example in (one, two):
        np.testing.assert_array_equal(example.targets[:-1], example.tokens[1:])
        np.testing.assert_array_equal(example.active, example.weights > 0)
        assert example.mixture.tolist() == [1.0, 0.0, 0.0]


def test_a_preference_record_teaches_its_last_answer_only(tokenizer: Tokenizer, personas: P3) -> None:
    (example,) = make(talk("a?", "bad", "b?", "good", last_only=True), tokenizer, personas)
    assert learned(tokenizer, example) == "good<|end|>"


def test_backbone_learns_every_token_without_persona(tokenizer: Tokenizer, personas: P3) -> None:
    (example,) = make(talk("a?", "first", "b?", "second"), tokenizer, personas, mode="backbone")
    assert example.weights.all() and not example.mixture.any()
    assert "first" in tokenizer.decode(example.tokens) and example.tokens[0] == tokenizer.bos_id


def test_aspects_weigh_as_the_persona_says(tokenizer: Tokenizer, personas: P3) -> None:
    abbey = dataclasses.replace(personas[0], loss_weights={"empathy": 0.25})
    (example,) = make(talk("a?", "b", aspect="empathy"), tokenizer, (abbey, *personas[1:]))
    assert set(example.weights.tolist()) == {0.0, 0.25}


def test_long_dialogues_lose_their_oldest_turns_first(tokenizer: Tokenizer, personas: P3) -> None:
    words = "how are you today my dear friend"
    record = talk("oldest " + words, "old " + words, "newer " + words, "new " + words, "now?", "answer")
    full = make(record, tokenizer, personas, length=512)[-1]
    assert full.cuts == ()
    short = make(record, tokenizer, personas, length=len(full) - 3)[-1]
    text = tokenizer.decode(short.tokens)
    assert short.cuts == ("history_dropped",) and "oldest" not in text and "newer" in text
    assert learned(tokenizer, short) == "answer<|end|>"
    shorter = make(record, tokenizer, personas, length=20)[-1]
    assert "newer" not in tokenizer.decode(shorter.tokens) and "now?" in tokenizer.decode(shorter.tokens)


def test_a_long_question_loses_its_beginning(tokenizer: Tokenizer, personas: P3) -> None:
    (example,) = make(talk("word " * 200 + "last words?", "the answer"), tokenizer, personas, length=32)
    assert len(example) == 32 and example.cuts == ("prompt_cut",)
    assert example.tokens[0] == tokenizer.bos_id  # models lean on their opening token
    assert "last words?" in tokenizer.decode(example.tokens)
    assert learned(tokenizer, example) == "the answer<|end|>"


def test_a_long_answer_keeps_its_beginning_and_some_question(tokenizer: Tokenizer, personas: P3) -> None:
    answer = "once upon a time " * 60
    (example,) = make(talk("tell me a story please", answer), tokenizer, personas, length=32)
    assert len(example) == 32 and "response_cut" in example.cuts
    said = learned(tokenizer, example)
    assert answer.startswith(said) and said and "<|end|>" not in said
    assert (example.roles != Role.RESPONSE).sum() >= 6


@pytest.mark.parametrize("length", [8, 9, 16, 33])
def test_always_fits_and_always_teaches(tokenizer: Tokenizer, personas: P3, length: int) -> None:
    for question in ("a?", "word " * 50):
        for answer in ("b", "word " * 50):
            record = talk(question, answer, question, answer, memory=("m " * 30,), policy="p " * 30)
            for example in make(record, tokenizer, personas, length=length):
                assert 0 < len(example) <= length and (example.weights > 0).any()
                np.testing.assert_array_equal(example.active, example.weights > 0)


def test_counts_and_groups(tokenizer: Tokenizer, personas: P3) -> None:
    records = [talk("a?", "b"), talk("word " * 200, "c"), dataclasses.replace(talk("a?", "d"), mixture={})]
    records.append(dataclasses.replace(records[0], mixture={"abbey": 0.5, "abi": 0.5}, dataset="other"))
    source = ExampleSource(records, DataConfig(length=32), tokenizer, personas)
    assert source.groups == ["abbey", "aviva", "abi", "mixed", "base"]
    assert [source[i].group for i in range(4)] == [0, 0, 4, 3]
    assert source[0] is source[0]  # made once, and counted once
    assert dict(source.counts) == {"examples": 4, "prompt_cut": 1}
    by_set = ExampleSource(records, DataConfig(group_by="dataset"), tokenizer, personas)
    assert by_set.groups == ["set", "other"] and [by_set[i].group for i in range(4)] == [0, 0, 0, 1]


def test_examples_are_kept_up_to_a_number_of_tokens(
    tokenizer: Tokenizer, personas: P3, monkeypatch: pytest.MonkeyPatch
) -> None:
    records = [talk("question", "word " * 20)] * 10
    size = len(make(records[0], tokenizer, personas)[0])
    size += examples.OVERHEAD_TOKENS
    monkeypatch.setattr(examples, "KEPT_TOKENS", 3 * size + size // 2)
    source = ExampleSource(records, DataConfig(), tokenizer, personas)
    first = [source[i] for i in range(10)]
    assert source[9] is first[9] and source[7] is first[7]
    assert source[0] is not first[0]
    np.testing.assert_array_equal(source[0].tokens, first[0].tokens)
    assert source[8] is not first[8] and source[7] is first[7]  # the one used longest ago went first
    assert dict(source.counts) == {"examples": 10}
    monkeypatch.setattr(examples, "KEPT_TOKENS", 0)
    alone = ExampleSource(records, DataConfig(), tokenizer, personas)
    assert alone[0] is alone[0]


def test_an_attribute_without_a_name_is_no_group(tokenizer: Tokenizer, personas: P3) -> None:
    (example,) = make(talk("a?", "b", attributes={"": "x"}), tokenizer, personas)
    assert example.attribute == 0


def test_a_record_that_cannot_be_rendered_is_named(tokenizer: Tokenizer, personas: P3) -> None:
    with pytest.raises(InputError, match=r"here:1: .*response is empty"):
        make(talk("a?", "\ue0ff"), tokenizer, personas)
