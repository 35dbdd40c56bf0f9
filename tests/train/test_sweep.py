"""Settings compared with each other, on folds of the data."""

import json
from pathlib import Path
from typing import Any

import pytest

from abi_jax.cli import main
from abi_jax.config import dump_yaml
from abi_jax.errors import InputError
from abi_jax.model.directory import ModelDirectory
from abi_jax.train import sweep as sweeps
from abi_jax.train.config import EvaluationConfig
from abi_jax.train.report import read_evaluations
from abi_jax.train.sweep import Sweep, run_sweep
from tests.train.tiny import MESHES, config

RATES = ("1e-30", "1e-2")


def written(folder: Path) -> Path:
    path = folder / "train.yaml"
    run = config("backbone", mesh=MESHES["data"], steps=6, checkpoint_every=6, evaluation=EvaluationConfig(batches=2))
    path.write_text(dump_yaml(run))
    return path


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory) -> Sweep:
    """Two learning rates on two folds. Not to be changed."""
    folder = tmp_path_factory.mktemp("sweep")
    made = Sweep(written(folder), (), {"optimizer.learning_rate": RATES}, 2, folder / "out")
    run_sweep(made, refit=True, progress=False)
    return made


@pytest.mark.slow
def test_the_better_setting_wins_and_every_fold_counts(swept: Sweep) -> None:
    report = json.loads((swept.out / "sweep.json").read_text())
    assert [t["settings"]["optimizer.learning_rate"] for t in report["trials"]] == ["1e-2", "1e-30"]
    best = report["trials"][0]
    assert best["mean"] == pytest.approx(sum(best["values"]) / 2) and best["deviation"] > 0
    for fold, value in enumerate(best["values"]):
        found = read_evaluations(swept.out / "learning_rate=1e-2" / f"fold-{fold}" / "metrics.jsonl")
        assert min(m["loss"] for _, m in found) == value
    assert (swept.out / "sweep.png").read_bytes().startswith(b"\x89PNG")


def test_the_best_setting_is_trained_on_everything(swept: Sweep) -> None:
    assert ModelDirectory.open(swept.out / "best").steps() == [6]
    text = (swept.out / "best" / "train.yaml").read_text()
    assert "folds: 0" in text and "learning_rate: 0.01" in text


def test_what_was_run_is_not_run_again(swept: Sweep, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any) -> None:
        raise AssertionError("it trains again")

    monkeypatch.setattr(sweeps, "train", refuse)
    trials = run_sweep(swept, progress=False)
    assert [t.settings["optimizer.learning_rate"] for t in trials] == ["1e-2", "1e-30"]


def test_another_configuration_is_not_taken_for_this_one(swept: Sweep) -> None:
    other = Sweep(swept.path, ("seed=5",), swept.grid, swept.folds, swept.out)
    with pytest.raises(InputError, match=r"holds a trial with another configuration; expected another --out"):
        run_sweep(other, progress=False)


@pytest.mark.smoke
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--grid", "optimizer.learning_rate"], "is not KEY=A,B"),
        (["--grid", "steps=3", "--grid", "steps=4"], "steps is given twice"),
        (["--folds", "1"], "folds = 1; expected 0"),
        (["--grid", "optimizer.learning_rat=1"], "unknown key 'optimizer.learning_rat'"),
        (["--grid", "seed=1,1"], "a setting is there twice"),
    ],
)
def test_bad_grids(arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    assert main(["sweep", str(written(tmp_path)), "--out", str(out), *arguments]) == 2
    assert message in capsys.readouterr().err
    assert not out.exists()
