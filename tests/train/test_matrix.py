"""The perplexity matrix against the sum it stands for."""

import json
from collections import defaultdict
from contextlib import closing
from dataclasses import replace
from functools import partial
from pathlib import Path
from unittest.mock import Mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from abi_jax.data import Example, ExampleSource
from abi_jax.model.decoder import Decoder
from abi_jax.model.inputs import Inputs
from abi_jax.model.weight import describe, merge
from abi_jax.persona import parse_mixture
from abi_jax.sharding import AxisRules, MeshConfig, use
from abi_jax.train.matrix import Matrix, MatrixMeter, perplexity_matrix
from abi_jax.train.setup import Run, pad_rules, prepare
from abi_jax.train.trees import join
from tests.model.cases import readable_roles
from tests.train.tiny import CAPACITY, MESHES, ONE, config, mesh_of

HELD_OUT = 90


def opened(trained: Path, mesh: MeshConfig) -> Run:
    """The trained personas, with a few dialogues held out."""
    run = config("persona", model={"init": trained / "personas"}, data={"held_out": HELD_OUT, "length": 64})
    grid = mesh_of(mesh)
    with use(grid):
        return prepare(run, grid, AxisRules())


BLEND = "abbey=0.5,aviva=0.5"  # of the dialogues that have it


def measured(trained: Path, mesh: MeshConfig) -> Matrix:
    run = opened(trained, mesh)
    with use(run.mesh, run.rules):
        return perplexity_matrix(run, run.trained, run.frozen)


def naive(trained: Path) -> dict[str, dict[str, float]]:
    """One dialogue at a time, one voice at a time, in plain numpy from the logits on."""
    run = opened(trained, ONE)
    records = run.splits.held_out.records
    source = ExampleSource(records, replace(run.config.data, group_by="dataset"), run.tokenizer, run.personas)
    graphdef, _ = describe(partial(Decoder, run.model))
    reads, strict = pad_rules(run.personas, CAPACITY)
    names = [p.name for p in run.personas]
    params = join(run.trained, run.frozen)

    @jax.jit
    def logits(inputs: Inputs) -> jax.Array:
        return merge(graphdef, params)(inputs)

    def loss(example: Example, voice: dict[str, float]) -> tuple[float, int]:
        T = 64 - len(example)
        w = np.zeros((1, CAPACITY), np.float32)
        for name, weight in voice.items():
            w[0, names.index(name)] = weight

        def row(x: np.ndarray) -> jax.Array:
            return jnp.asarray(np.pad(x, (0, T))[None])

        active = row(example.active)
        inputs = Inputs(
            row(example.tokens),
            jnp.arange(64)[None],
            row(np.ones(len(example), np.int32)),
            row(example.roles),
            active[..., None] * w[:, None],
            readable_roles(reads, strict, w, active),
        )
        scores = np.asarray(logits(inputs)[0, : len(example)], np.float64)
        probabilities = np.exp(scores) / np.exp(scores).sum(axis=1, keepdims=True)
        of_target = probabilities[np.arange(len(example)), example.targets]
        counted = example.weights > 0
        return float(-np.log(of_target[counted]).sum()), int(counted.sum())

    matrix: dict[str, dict[str, float]] = {}
    for name in ["base", *names, BLEND]:
        voice = parse_mixture(name, names)
        sums: dict[str, list[float]] = defaultdict(lambda: [0, 0])
        for at in range(len(source)):
            total, tokens = loss(source[at], voice)
            dataset = source.groups[source[at].group]
            sums[dataset][0] += total
            sums[dataset][1] += tokens
        matrix[name] = {dataset: float(np.exp(total / tokens)) for dataset, (total, tokens) in sums.items()}
    return matrix


def test_the_matrix_is_what_a_naive_sum_gives(trained: Path) -> None:
    matrix, expected = measured(trained, ONE), naive(trained)
    assert matrix.voices == ("base", "abbey", "aviva", "abi", BLEND)
    assert matrix.to_dict().keys() == expected.keys()
    for voice, row in matrix.to_dict().items():
        assert row == pytest.approx(expected[voice], rel=1e-5)
    assert len(matrix.datasets) > 1
    assert not np.allclose(matrix.values, matrix.values[:1], rtol=1e-3), "the voices do not differ"


def test_a_mesh_measures_the_same(trained: Path) -> None:
    one, many = measured(trained, ONE), measured(trained, MESHES["2x2x2"])
    np.testing.assert_allclose(many.values, one.values, rtol=1e-5)


def test_a_voice_alone_can_be_asked_of_other_data(trained: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.jsonl"
    messages = [{"role": "user", "content": "Two and two?"}, {"role": "assistant", "content": "Four."}]
    other.write_text(json.dumps({"messages": messages, "persona": "abi"}) + "\n")
    run = opened(trained, ONE)
    run = run.on(replace(run.config.data, evaluate=(str(other),)))
    with use(run.mesh, run.rules):
        matrix = perplexity_matrix(run, run.trained, run.frozen)
    assert matrix.datasets == ("other",)
    assert matrix.values.shape == (4, 1) and bool((matrix.values > 1).all())


def test_a_frozen_backbone_keeps_its_row_while_personas_change(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = opened(trained, ONE)
    with use(run.mesh, run.rules), closing(MatrixMeter(run)) as meter:
        monkeypatch.setattr(meter, "_evaluate", evaluate := Mock(wraps=meter._evaluate))
        before = meter(run.trained, run.frozen)
        first, voices = evaluate.call_count, len(before.voices)
        after = meter(jax.tree.map(jnp.zeros_like, run.trained), run.frozen)
        assert evaluate.call_count - first == first // voices * (voices - 1) > 0
    np.testing.assert_array_equal(after.values[0], before.values[0])
    np.testing.assert_array_equal(after.values, np.broadcast_to(after.values[0], after.values.shape))
    assert not np.allclose(before.values[1:], before.values[:1], rtol=1e-3)


@pytest.mark.smoke
def test_the_table_marks_the_best_voice_of_each_column() -> None:
    matrix = Matrix(("base", "abbey"), ("chats", "a_long_data_set"), np.array([[12.5, 3.0], [10.25, 4.0]]))
    assert matrix.table().splitlines() == [
        "                      chats  a_long_data_set",
        "base                 12.50             3.00*",
        "abbey                10.25*            4.00 ",
    ]
    assert matrix.to_dict() == {
        "base": {"chats": 12.5, "a_long_data_set": 3.0},
        "abbey": {"chats": 10.25, "a_long_data_set": 4.0},
    }
