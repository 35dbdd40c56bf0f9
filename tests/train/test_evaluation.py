"""Evaluation in training: what is measured, which step is best, when a run stops, and what it leaves to look at."""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from abi_jax.cli import main
from abi_jax.config import dump_yaml
from abi_jax.errors import InputError, Preempted
from abi_jax.model.directory import ModelDirectory
from abi_jax.model.provenance import Provenance
from abi_jax.sharding import AxisRules, use
from abi_jax.train.config import EvaluationConfig, TrainConfig
from abi_jax.train.loop import train
from abi_jax.train.report import flat, read_evaluations, read_metrics
from abi_jax.train.selection import Selection, check_metric
from abi_jax.train.setup import prepare
from abi_jax.train.validation import BINS, Validation, calibration_bins, calibration_error
from tests.train.tiny import MESHES, ONE, config, equal, interrupted, mesh_of, signalled


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
    selection = Selection(EvaluationConfig(every=1, patience=2, min_delta=0.1), "data")
    told = []
    for step, loss in enumerate([math.nan, 3.0, 2.0, 1.95, 1.5, 1.5, 1.45], 1):  # 1.95 is better, but not by enough
        told.append((selection.add(step, measured(loss)), selection.best.step, selection.best.since))
    assert told == [
        *[(False, None, 1), (True, 2, 0), (True, 3, 0), (True, 4, 1)],
        *[(True, 5, 0), (False, 5, 1), (True, 7, 2)],
    ]
    assert selection.exhausted


@pytest.mark.smoke
def test_what_a_checkpoint_keeps_of_it_goes_on() -> None:
    config = EvaluationConfig(every=1, patience=3)
    one = Selection(config, "data")
    assert Selection(config, "data", json.loads(json.dumps(one.state()))).best == one.best
    for step, loss in enumerate([2.0, 1.0, 1.5], 1):
        one.add(step, measured(loss))
    two = Selection(config, "data", json.loads(json.dumps(one.state())))
    assert two.best == one.best and not two.restarted
    for other in (
        Selection(config, "other data", one.state()),
        Selection(replace(config, metric="loss/abi"), "data", one.state()),
    ):
        assert other.restarted and other.best.step is None


@pytest.mark.smoke
def test_a_metric_by_name() -> None:
    by_group = Selection(EvaluationConfig(every=1, metric="loss/abbey"), "data")
    told = [by_group.add(1, measured(1.0, abbey=5.0)), by_group.add(2, measured(2.0, abbey=4.0))]
    assert told == [True, True]
    assert not by_group.add(3, measured(0.5))
    check_metric("loss/abi", ["abi"])
    with pytest.raises(InputError, match=r"metric = 'bleu'; expected one of loss, calibration_error, loss/abi"):
        check_metric("bleu", ["abi"])
    for wrong in ({"patience": 3}, {"matrix": True}):
        with pytest.raises(InputError, match=r"without evaluation.every"):
            EvaluationConfig(**wrong)


# --- in a run ------------------------------------------------------------------------------------


def run(out: Path, **changes: Any) -> TrainConfig:
    evaluation = EvaluationConfig(**({"every": 5} | changes.pop("evaluation", {})))
    return config("persona", out=out, mesh=MESHES["data"], evaluation=evaluation, freeze_backbone=False, **changes)


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of 20 steps, evaluated at every fifth. Not to be changed."""
    out = tmp_path_factory.mktemp("evaluated") / "run"
    train(run(out, evaluation={"matrix": True}, tensorboard=True), progress=False)
    return out


@pytest.mark.slow
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


def test_losses_are_the_sums_over_all_held_out_tokens(evaluated: Path) -> None:
    """In a batch of one row, and in two passes of a batch: the same numbers as in one batch."""
    whole = read_evaluations(evaluated / "metrics.jsonl")[-1][1]
    start = config("persona", out=evaluated, mesh=ONE, model={"init": evaluated}, freeze_backbone=False)
    mesh, rules = mesh_of(ONE), AxisRules()
    with use(mesh, rules):
        for rows, parts in ((1, 1), (8, 2)):
            data = replace(start.data, batch_size=rows)
            run = prepare(
                replace(start, data=data, accumulate=parts, evaluation=EvaluationConfig(every=1)), mesh, rules
            )
            with Validation(run) as validation:
                again = validation(run.trained, run.frozen)
            assert again["loss"] == pytest.approx(whole["loss"], abs=1e-5)
            assert again["loss_by_group"] == pytest.approx(whole["loss_by_group"], abs=1e-5)
            assert again["accuracy"] == pytest.approx(whole["accuracy"], abs=1e-3)
    assert {"abbey", "aviva", "abi"} <= set(whole["loss_by_group"])


def test_a_few_batches_speak_for_all_personas(evaluated: Path) -> None:
    start = config("persona", out=evaluated, mesh=ONE, model={"init": evaluated}, freeze_backbone=False)
    mesh, rules = mesh_of(ONE), AxisRules()
    with use(mesh, rules):
        run = prepare(replace(start, evaluation=EvaluationConfig(every=1, batches=2)), mesh, rules)
        with Validation(run) as validation:
            assert {"abbey", "aviva", "abi"} <= set(validation(run.trained, run.frozen)["loss_by_group"])


def test_an_interrupted_run_remembers_its_evaluations(evaluated: Path, tmp_path: Path) -> None:
    with interrupted(after=12):
        train(run(tmp_path / "run", evaluation={"matrix": True}), progress=False)
    last = train(run(tmp_path / "run", evaluation={"matrix": True}), progress=False)
    assert read_evaluations(tmp_path / "run" / "metrics.jsonl") == read_evaluations(evaluated / "metrics.jsonl")
    assert last["best_step"] == 20


def told(monkeypatch: pytest.MonkeyPatch, *losses: float) -> None:
    """Lets evaluations find these losses, one after the other."""
    left = iter(losses)
    monkeypatch.setattr(Validation, "__call__", lambda *_: measured(next(left), abbey=1.0))


def test_a_run_that_gets_no_better_stops_early_and_stays_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    told(monkeypatch, 2.0, 3.0)
    changes: dict[str, Any] = {"evaluation": {"patience": 1}, "keep": 1, "log_every": 7}
    out = tmp_path / "run"
    last = train(run(out, **changes), progress=False)
    assert (last["step"], last["best_step"], last["stopped_early"]) == (10, 5, True)
    (out / "metrics.jsonl").unlink()  # what is best does not depend on it
    assert train(run(out, **changes), progress=False) == {"best_step": 5, "stopped_early": True}
    (tmp_path / "run.yaml").write_text(dump_yaml(run(out, **changes)))
    assert main(["train", str(tmp_path / "run.yaml")]) == 0
    assert "stopped early, it was trained already; best step 5" in capsys.readouterr().out

    # it speaks with its best step, which is kept, and so does what is made from it
    directory = ModelDirectory(out)
    assert directory.steps() == [5, 10] and directory.selected_step() == 5
    assert equal(directory.load_params(), directory.load_params(step=5))
    assert not equal(directory.load_params(), directory.load_params(step=10))
    train(config("persona", out=tmp_path / "next", mesh=MESHES["data"], steps=1, model={"init": out}), progress=False)
    links = Provenance(out).chain.links()
    assert Provenance(tmp_path / "next").chain.links()[0].parents == (links[0].hash,)
    assert [link.step for link in links] == [5, 10]


def test_the_best_step_survives_a_lost_and_a_torn_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "run"
    told(monkeypatch, 2.0, 3.0, 2.5, 1.0)
    with interrupted(after=12):
        train(run(out, keep=1), progress=False)
    with (out / "metrics.jsonl").open("a") as file:
        file.write('{"step": 13, "lo')
    last = train(run(out, keep=1), progress=False)
    assert last["best_step"] == 20
    assert [r["step"] for r in read_metrics(out / "metrics.jsonl") if "loss" in r] == list(range(1, 21))


def test_sigterm_skips_an_evaluation_that_is_due_and_the_run_makes_up_for_it(tmp_path: Path) -> None:
    whole, out = tmp_path / "whole", tmp_path / "run"
    train(run(whole, steps=10), progress=False)
    with signalled(after=4), pytest.raises(Preempted):  # the signal comes in step 5
        train(run(out, steps=10), progress=False)
    assert read_evaluations(out / "metrics.jsonl") == [] and ModelDirectory(out).steps() == [5]
    train(run(out, steps=10), progress=False)
    assert read_evaluations(out / "metrics.jsonl") == read_evaluations(whole / "metrics.jsonl")


@pytest.mark.parametrize("metric", ["loss/abey", "bleu"])
def test_a_metric_there_is_not_is_told_before_the_first_step(metric: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=f"evaluation.metric = '{metric}'; expected one of loss"):
        train(run(tmp_path / "run", evaluation={"metric": metric}), progress=False)
    assert not (tmp_path / "run").exists()


def test_a_trace_is_written_where_it_is_asked_for(tmp_path: Path) -> None:
    train(config("backbone", out=tmp_path / "run", mesh=MESHES["data"], steps=8, profile=True), progress=False)
    assert list((tmp_path / "run" / "profile").rglob("*.xplane.pb"))


@pytest.mark.smoke
def test_numbers_of_a_record_by_path() -> None:
    record = {"step": 3, "loss": 1.5, "evaluation": {"loss": 2, "by": {"abbey": math.nan, "abi": 1}}}
    assert flat(record) == {"loss": 1.5, "evaluation/loss": 2.0, "evaluation/by/abi": 1.0}
    assert json.dumps(flat({"step": 1})) == "{}"
