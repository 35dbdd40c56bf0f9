"""Evaluation in training: what is measured, which step is best, when a run stops, and what it leaves to look at."""

import json
import math
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from abi_jax.errors import InputError
from abi_jax.model.directory import ModelDirectory
from abi_jax.model.provenance import Provenance
from abi_jax.train.config import EvaluationConfig, TrainConfig
from abi_jax.train.loop import train
from abi_jax.train.report import flat
from abi_jax.train.selection import Best, Selection, read_evaluations
from abi_jax.train.validation import BINS, calibration_bins, calibration_error
from tests.train.tiny import MESHES, config, equal, interrupted


def measured(loss: float, error: float = 0.1, **groups: float) -> dict[str, Any]:
    return {"loss": loss, "calibration_error": error, "loss_by_group": groups}


# --- calibration ---------------------------------------------------------------------------------


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 2**31), size=st.integers(1, 50))
def test_calibration_error_is_the_sum_over_bins(seed: int, size: int) -> None:
    rng = np.random.default_rng(seed)
    confidence = rng.uniform(0, 1, (2, size)).astype(np.float32)
    correct, counted = rng.integers(0, 2, (2, size)) > 0, rng.integers(0, 4, (2, size)) > 0
    naive = 0.0
    for low in range(BINS):
        inside = counted & (np.floor(confidence * np.float32(BINS)).clip(max=BINS - 1) == low)
        if inside.any():
            naive += inside.sum() / counted.sum() * abs(confidence[inside].mean() - correct[inside].mean())
    bins = calibration_bins(jnp.asarray(confidence), jnp.asarray(correct), jnp.asarray(counted))
    assert calibration_error(np.asarray(bins)) == pytest.approx(naive, abs=1e-5)


# --- selection -----------------------------------------------------------------------------------


@pytest.mark.smoke
def test_the_best_step_and_the_end_of_patience() -> None:
    before = [(1, measured(3.0)), (2, measured(2.0))]
    selection = Selection(EvaluationConfig(every=1, patience=2, min_delta=0.1), before)
    after = [1.95, 1.5, 1.5, 1.45]  # the first is better than 2, but not by enough
    told = [(selection.add(step, measured(loss)), selection.exhausted) for step, loss in enumerate(after, 3)]
    assert told == [(False, False), (True, False), (False, False), (False, True)]
    assert selection.best == Best(4, 1.5)


@pytest.mark.smoke
def test_a_metric_by_name() -> None:
    by_group = Selection(EvaluationConfig(every=1, metric="loss/abbey"), [])
    told = [by_group.add(1, measured(1.0, abbey=5.0)), by_group.add(2, measured(2.0, abbey=4.0))]
    assert told == [True, True]
    with pytest.raises(InputError, match=r"metric = 'bleu'; expected one of loss, calibration_error, loss/abi"):
        Selection(EvaluationConfig(every=1, metric="bleu"), [(1, measured(1.0, abi=2.0))])
    with pytest.raises(InputError, match=r"patience = 3 without evaluation.every"):
        EvaluationConfig(patience=3)


# --- in a run ------------------------------------------------------------------------------------


def run(out: Path, **changes: Any) -> TrainConfig:
    evaluation = EvaluationConfig(**({"every": 5, "batches": 2} | changes.pop("evaluation", {})))
    return config("persona", out=out, mesh=MESHES["data"], evaluation=evaluation, freeze_backbone=False, **changes)


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of 20 steps, evaluated at every fifth. Not to be changed."""
    out = tmp_path_factory.mktemp("evaluated") / "run"
    train(run(out, evaluation={"matrix": True}, tensorboard=True), progress=False)
    return out


def test_what_an_evaluation_holds(evaluated: Path) -> None:
    found = read_evaluations(evaluated / "metrics.jsonl")
    assert [step for step, _ in found] == [5, 10, 15, 20]
    losses = [m["loss"] for _, m in found]
    assert losses[-1] < losses[0]
    for _, m in found:
        assert m["perplexity"] == pytest.approx(math.exp(m["loss"]))
        assert 0 <= m["calibration_error"] <= 1 and 0 <= m["accuracy"] <= 1
        low, high = min(m["loss_by_group"].values()), max(m["loss_by_group"].values())
        assert low <= m["loss"] <= high
        assert {"base", "abbey", "aviva", "abi"} <= set(m["matrix"])
    # the backbone learns too: the matrix of the last step is of the last step's weights
    assert found[0][1]["matrix"]["base"] != found[-1][1]["matrix"]["base"]


def test_a_run_leaves_a_figure_and_a_board(evaluated: Path) -> None:
    assert (evaluated / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert list((evaluated / "tensorboard").glob("events*"))


def test_an_interrupted_run_remembers_its_evaluations(evaluated: Path, tmp_path: Path) -> None:
    with interrupted(after=12):
        train(run(tmp_path / "run", evaluation={"matrix": True}), progress=False)
    last = train(run(tmp_path / "run", evaluation={"matrix": True}), progress=False)
    assert read_evaluations(tmp_path / "run" / "metrics.jsonl") == read_evaluations(evaluated / "metrics.jsonl")
    assert last["best_step"] == 20


def test_a_run_that_gets_no_better_stops_early_and_stays_stopped(tmp_path: Path) -> None:
    changes: dict[str, Any] = {"evaluation": {"patience": 1, "min_delta": 100.0}, "keep": 1}
    out = tmp_path / "run"
    last = train(run(out, **changes), progress=False)
    assert last["step"] == 10 and last["best_step"] == 5
    assert train(run(out, **changes), progress=False) == {"best_step": 5}

    # it speaks with its best step, which is kept, and so does what is made from it
    directory = ModelDirectory(out)
    assert directory.steps() == [5, 10] and directory.selected_step() == 5
    assert equal(directory.load_params(), directory.load_params(step=5))
    assert not equal(directory.load_params(), directory.load_params(step=10))
    train(config("persona", out=tmp_path / "next", mesh=MESHES["data"], steps=1, model={"init": out}), progress=False)
    links = Provenance(out).chain.links()
    assert Provenance(tmp_path / "next").chain.links()[0].parents == (links[0].hash,)
    assert [link.step for link in links] == [5, 10]


def test_a_trace_is_written_where_it_is_asked_for(tmp_path: Path) -> None:
    train(config("backbone", out=tmp_path / "run", mesh=MESHES["data"], steps=8, profile=True), progress=False)
    assert list((tmp_path / "run" / "profile").rglob("*.xplane.pb"))


@pytest.mark.smoke
def test_numbers_of_a_record_by_path() -> None:
    record = {"step": 3, "loss": 1.5, "evaluation": {"loss": 2, "by": {"abbey": math.nan, "abi": 1}}}
    assert flat(record) == {"loss": 1.5, "evaluation/loss": 2.0, "evaluation/by/abi": 1.0}
    assert json.dumps(flat({"step": 1})) == "{}"
