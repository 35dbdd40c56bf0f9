"""Personas: files, mixtures, reading rules, loss weights."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from abi_jax.errors import InputError
from abi_jax.persona import (
    Persona,
    Sampling,
    check_mixture,
    dump_personas,
    load_personas,
    loss_weight,
    mixture_vector,
    parse_mixture,
    read_personas,
    reading_table,
    strict_table,
)
from abi_jax.text import READABLE, Role

SHIPPED = ["abbey", "aviva", "abi", "healthcare", "legal", "creative", "financial"]
NAMES = ["abbey", "aviva", "abi"]


def test_shipped_personas_load_and_round_trip(tmp_path: Path) -> None:
    personas = load_personas(SHIPPED)
    assert [p.name for p in personas] == SHIPPED
    assert all(p.voice and p.title and p.description and p.loss_weights for p in personas)
    (tmp_path / "personas.yaml").write_text(dump_personas(personas), encoding="utf-8")
    assert read_personas(tmp_path / "personas.yaml") == personas


def test_an_answer_may_be_as_long_as_the_context_unless_a_persona_says_otherwise(tmp_path: Path) -> None:
    assert all(p.sampling.limit(1000) == 1000 for p in load_personas(SHIPPED))
    path = tmp_path / "brief.yaml"
    path.write_text("name: brief\nsampling:\n  max_tokens: 192\n", encoding="utf-8")
    (brief,) = load_personas([str(path)])
    (tmp_path / "personas.yaml").write_text(dump_personas([brief]), encoding="utf-8")
    assert read_personas(tmp_path / "personas.yaml")[0].sampling.limit(1000) == 192


def test_aspects_and_reading_rules_of_the_three() -> None:
    abbey, aviva, abi = load_personas(NAMES)
    assert set(abbey.loss_weights) == {"empathy", "technical"}
    assert set(aviva.loss_weights) == {"factual", "concise"}
    assert set(abi.loss_weights) == {"policy", "context"}
    table = reading_table([abbey, aviva, abi])
    assert table.shape == (3, len(Role)) and table.dtype == bool
    assert table[:, Role.PADDING].all()
    assert not table[1, Role.HISTORY] and table[1, Role.MEMORY]
    assert table[[0, 2]].all()
    assert not strict_table([abbey, aviva, abi]).any()
    assert strict_table(load_personas(["financial"])).tolist() == [True]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("abbey=0.6,aviva=0.4", {"abbey": 0.6, "aviva": 0.4}),
        (" abbey = 0.5 , abi = 0.5 ", {"abbey": 0.5, "abi": 0.5}),
        ("aviva", {"aviva": 1.0}),
        ("abbey=1,aviva=0", {"abbey": 1.0, "aviva": 0.0}),
        ("base", {}),
        ("", {}),
        (None, {}),
    ],
)
def test_mixtures(text: str | None, expected: dict[str, float]) -> None:
    assert parse_mixture(text, NAMES) == expected


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("abey=1", r"unknown persona 'abey' \(nearest: 'abbey'\); known: abbey, aviva, abi"),
        ("abbey=-0.5,aviva=1.5", r"weight of persona 'abbey' is -0\.5"),
        ("abbey=0.5,aviva=0.4", r"sum to 0\.9; expected 1"),
        ("abbey=nan", "weight of persona 'abbey' is nan"),
        ("abbey=inf", "weight of persona 'abbey' is inf"),
        ("abbey=much", "weight of 'abbey' is 'much'; expected a number"),
        ("abbey=0.5,abbey=0.5", "names 'abbey' twice"),
        ("abbey=0.5,,aviva=0.5", "unknown persona ''"),
        ("abbey=0", "sum to 0; expected 1"),
    ],
)
def test_mixtures_off_the_simplex(text: str, reason: str) -> None:
    with pytest.raises(InputError, match=reason):
        parse_mixture(text, NAMES)


@given(st.lists(st.floats(0.01, 1.0), min_size=3, max_size=3))
def test_any_point_of_the_simplex_is_taken(weights: list[float]) -> None:
    total = sum(weights)
    mixture = {n: w / total for n, w in zip(NAMES, weights, strict=True)}
    vector = mixture_vector(mixture, NAMES)
    assert vector.shape == (3,) and vector.dtype == np.float32
    np.testing.assert_allclose(vector, [w / total for w in weights], rtol=1e-6)


def test_the_base_model_is_a_row_of_zeros() -> None:
    assert mixture_vector({}, NAMES).tolist() == [0.0, 0.0, 0.0]
    assert check_mixture({"anyone": 1.0}, None) == {"anyone": 1.0}


def test_loss_weights_follow_the_mixture() -> None:
    personas = (Persona("a", loss_weights={"x": 2.0}), Persona("b", loss_weights={"x": 0.5}))
    assert loss_weight(personas, {"a": 1.0}, "x") == 2.0
    assert loss_weight(personas, {"a": 0.5, "b": 0.5}, "x") == 1.25
    assert loss_weight(personas, {"a": 1.0}, "unheard of") == loss_weight(personas, {}, "x") == 1.0


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"name": "Abbey"}, "name = 'Abbey'"),
        ({"name": "base"}, "name = 'base'"),
        ({"name": "a", "reads": ("imput", "response")}, r"'imput' \(nearest: 'input'\)"),
        ({"name": "a", "reads": ("input",)}, "expected 'response' among them"),
        ({"name": "a", "loss_weights": {"x": -1.0}}, r"loss_weights\.x = -1\.0"),
    ],
)
def test_bad_personas_are_named(values: dict[str, object], reason: str) -> None:
    with pytest.raises(InputError, match=reason):
        Persona(**values)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "value"),
    [("temperature", -1.0), ("top_p", 0.0), ("min_p", 2.0), ("repetition_penalty", 0.0), ("max_tokens", 0)],
)
def test_bad_sampling_is_named(name: str, value: float) -> None:
    with pytest.raises(InputError, match=f"{name} = "):
        Sampling(**{name: value})  # type: ignore[arg-type]


def test_unknown_file_key_and_repeated_name(tmp_path: Path) -> None:
    (tmp_path / "x.yaml").write_text("name: x\nvoise: hello\n")
    with pytest.raises(InputError, match=r"x\.yaml:2.*voise.*voice"):
        load_personas([str(tmp_path / "x.yaml")])
    with pytest.raises(InputError, match="abbey given twice"):
        load_personas(["abbey", "abbey"])
    with pytest.raises(InputError, match="abby"):
        load_personas(["abby"])


def test_every_role_but_padding_may_be_read() -> None:
    assert {r.upper() for r in READABLE} == {r.name for r in Role} - {"PADDING"}
