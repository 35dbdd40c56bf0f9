"""Runs that stop and go on: bit for bit on the same mesh, to rounding on another, and never by accident."""

import json
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from abi_jax.config import dump_yaml
from abi_jax.errors import InputError, Preempted
from abi_jax.model.directory import ModelDirectory
from abi_jax.model.verify import verify
from abi_jax.train.config import TrainConfig
from abi_jax.train.loop import train
from tests.train.tiny import MESHES, MODEL, STEPS, config, equal, interrupted, listing, signalled, single

# Killed in its 6th step, as soon as there is a checkpoint: they are written while it goes on.
KILLED = """
import os, signal, sys, time
from pathlib import Path
from abi_jax.cli import main
from abi_jax.model.directory import ModelDirectory
from tests.train.tiny import counting

def kill():
    while not ModelDirectory(Path(sys.argv[1])).steps():
        time.sleep(0.01)
    os.kill(os.getpid(), signal.SIGKILL)

with counting(5, kill):
    main(["train", sys.argv[2], "--set", "checkpoint_every=2"])
"""


def metrics(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def losses(folder: Path) -> list[float]:
    return [record["loss"] for record in metrics(folder)]


def backbone(out: Path, **changes: Any) -> TrainConfig:
    return config("backbone", out=out, mesh=MESHES["2x2x2"], **changes)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of 20 steps without interruption. Not to be changed."""
    out = tmp_path_factory.mktemp("whole") / "run"
    train(backbone(out), progress=False)
    return out


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same run, stopped in its 14th step; its last checkpoint is of step 10. Not to be changed."""
    out = tmp_path_factory.mktemp("stopped") / "run"
    with interrupted(after=13):
        train(backbone(out), progress=False)
    return out


def test_what_a_run_reports(whole: Path) -> None:
    records = metrics(whole)
    assert [r["step"] for r in records] == list(range(1, STEPS + 1))
    measured = {"loss", "gradient_norm", "learning_rate", "tokens_per_second", "input_wait", "mfu", "loss_by_group"}
    assert set(records[0]) == {"step", "epoch", *measured}
    assert set(records[0]["loss_by_group"]) <= {"abbey", "aviva", "abi", "mixed", "base"}
    for record in records:
        low, high = min(record["loss_by_group"].values()), max(record["loss_by_group"].values())
        assert low <= record["loss"] <= high
        assert record["gradient_norm"] > 0 and record["tokens_per_second"] > 0
        assert 0 < record["mfu"] < 1 and 0 <= record["input_wait"] < 1
    epochs = [r["epoch"] for r in records]
    assert epochs == sorted(epochs) and epochs[0] > 0
    np.testing.assert_allclose(losses(whole), single("backbone").losses, rtol=0, atol=1e-5)


def test_a_run_keeps_what_it_needs_to_go_on_and_no_more_checkpoints_than_asked(whole: Path) -> None:
    assert ModelDirectory(whole).steps() == [10, 15, 20]
    assert sorted(p.name for p in whole.iterdir()) == [
        "checkpoints",
        "curves.png",
        "lineage",
        "metrics.jsonl",
        "model.yaml",
        "personas.yaml",
        "tokenizer",
        "train.yaml",
    ]


def test_an_interrupted_run_goes_on_as_if_nothing_had_happened(whole: Path, stopped: Path, tmp_path: Path) -> None:
    assert ModelDirectory(stopped).steps() == [5, 10]
    assert [r["step"] for r in metrics(stopped)] == list(range(1, 14))
    out = shutil.copytree(stopped, tmp_path / "run")
    last = train(backbone(out), progress=False)
    assert [r["step"] for r in metrics(out)] == list(range(1, STEPS + 1))
    assert losses(out) == losses(whole)
    assert last["loss"] == losses(whole)[-1]
    assert equal(ModelDirectory(out).load_params(), ModelDirectory(whole).load_params())


def test_a_run_goes_on_from_its_own_checkpoint_whatever_it_was_started_from(stopped: Path, tmp_path: Path) -> None:
    out = shutil.copytree(stopped, tmp_path / "run")
    with interrupted(after=1):
        train(backbone(out, model={"init": tmp_path / "deleted"}, resume="must"), progress=False)
    assert [r["step"] for r in metrics(out)] == list(range(1, 12))


@pytest.mark.parametrize("mesh", ["data", "tensor"])
def test_a_run_goes_on_upon_another_mesh(mesh: str, whole: Path, stopped: Path, tmp_path: Path) -> None:
    out = shutil.copytree(stopped, tmp_path / "run")
    train(replace(backbone(out), mesh=MESHES[mesh]), progress=False)
    np.testing.assert_allclose(losses(out), losses(whole), rtol=0, atol=1e-5)


def test_a_finished_run_is_left_as_it_is(whole: Path) -> None:
    before = {p: p.stat().st_mtime_ns for p in whole.rglob("*") if p.is_file()}
    assert train(backbone(whole), progress=False) == {}
    assert {p: p.stat().st_mtime_ns for p in whole.rglob("*") if p.is_file()} == before


def test_a_run_that_never_saved_starts_again(stopped: Path, whole: Path, tmp_path: Path) -> None:
    out = shutil.copytree(stopped, tmp_path / "run")
    shutil.rmtree(out / "checkpoints")
    with interrupted(after=3):
        train(backbone(out), progress=False)
    assert losses(out) == losses(whole)[:3]


def test_never_and_must_say_what_they_found(stopped: Path, tmp_path: Path) -> None:
    before = listing(stopped)
    with pytest.raises(InputError, match=r"holds a run already; choose another, or resume=auto"):
        train(backbone(stopped, resume="never"), progress=False)
    with pytest.raises(InputError, match=r"holds no run to resume"):
        train(backbone(tmp_path / "none", resume="must"), progress=False)
    unsaved = shutil.copytree(stopped, tmp_path / "unsaved")
    shutil.rmtree(unsaved / "checkpoints")
    with pytest.raises(InputError, match=r"holds no run to resume"):
        train(backbone(unsaved, resume="must"), progress=False)
    assert listing(stopped) == before
    assert listing(tmp_path) == sorted(["unsaved", *(f"unsaved/{name}" for name in listing(unsaved))])


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"seed": 1}, "seed is 1, but this data position was saved with 0"),
        ({"length": 32}, "length is 32, but this data position was saved with 64"),
        ({"train": ("demo/abbey",)}, "the records, tokenizer or personas are not those"),
    ],
)
def test_other_data_is_not_taken_for_the_rest_of_this(data: dict[str, Any], message: str, stopped: Path) -> None:
    before = listing(stopped)
    with pytest.raises(InputError, match=message):
        train(backbone(stopped, data=data), progress=False)
    assert listing(stopped) == before


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"freeze_backbone": False}, "freeze_backbone = False, but out = .* holds a run with True"),
        ({"data": {"mode": "persona"}}, "data.mode = 'persona', but out = .* holds a run with 'backbone'"),
        ({"model": {"config": replace(MODEL, d_ff=128)}}, "model.config.d_ff = 128, but out = .* holds a run with 64"),
        ({"optimizer": {"kind": "adafactor"}}, "optimizer.kind = 'adafactor', but out = .* holds a run with 'adamw'"),
    ],
)
def test_a_run_of_another_kind_is_not_taken_for_this(changes: dict[str, Any], message: str, stopped: Path) -> None:
    before = listing(stopped)
    with pytest.raises(InputError, match=message):
        train(backbone(stopped, **changes), progress=False)
    assert listing(stopped) == before


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"d_ff": 128}, r"it has layers.0.mlp.down.kernel \(32, 64\); expected \(32, 128\)"),
        ({"num_layers": 1}, r"it has layers.1.attention.k.kernel \(64, 32\); expected none"),
        ({"num_layers": 3}, r"it has layers.2.attention.k.kernel missing; expected \(64, 32\)"),
    ],
)
def test_checkpoints_of_another_model_are_named(
    changes: dict[str, Any], message: str, stopped: Path, tmp_path: Path
) -> None:
    out = Path(shutil.copytree(stopped, tmp_path / "run"))
    (out / "model.yaml").write_text(dump_yaml(replace(MODEL, **changes)))
    before = listing(out)
    with pytest.raises(InputError, match=rf"checkpoints/10 is of another model than model.yaml: {message}"):
        train(backbone(out), progress=False)
    assert listing(out) == before


def test_changed_data_is_not_taken_for_the_rest_of_this(tmp_path: Path) -> None:
    """The same file, with one answer changed."""
    data, out = tmp_path / "chats.jsonl", tmp_path / "run"
    said = {"messages": [{"role": "user", "content": "Hello?"}, {"role": "assistant", "content": "Good day."}]}
    lines = [json.dumps(said | {"persona": "abbey", "labels": {"n": n}}) + "\n" for n in range(40)]
    data.write_text("".join(lines))
    run = backbone(out, data={"train": (str(data),), "held_out": 0}, checkpoint_every=2)
    with interrupted(after=3):
        train(run, progress=False)
    data.write_text("".join([*lines[:-1], lines[-1].replace("Good day", "Good night")]))
    with pytest.raises(InputError, match="the records, tokenizer or personas are not those"):
        train(run, progress=False)
    assert ModelDirectory(out).steps() == [2]


def test_a_loss_that_is_not_a_number_stops_the_run_before_it_is_saved(stopped: Path, tmp_path: Path) -> None:
    out = shutil.copytree(stopped, tmp_path / "run")
    with pytest.raises(
        InputError, match=r"step 1\d has a loss of .*(nan|inf); its batch .*; the last checkpoint is of step 10"
    ):
        train(backbone(out, optimizer={"learning_rate": 1e30, "schedule": "constant"}), progress=False)
    assert ModelDirectory(out).steps() == [5, 10]
    assert "NaN" not in (out / "metrics.jsonl").read_text()
    evidence = json.loads((out / "non-finite.json").read_text())
    assert evidence["step"] > 10 and all(".jsonl:" in where for where in evidence["records"])
    train(backbone(out), progress=False)
    assert not (out / "non-finite.json").exists()


def test_the_first_step_that_is_not_finite_is_named_however_seldom_metrics_are_read(tmp_path: Path) -> None:
    steep = {"learning_rate": 1e30, "schedule": "constant", "warmup_steps": 0}
    with pytest.raises(InputError, match=r"step ([234]) has a loss of .*; its batch held .*jsonl:\d+, .* and \d+ more"):
        train(backbone(tmp_path / "run", optimizer=steep, log_every=20, checkpoint_every=20), progress=False)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": {"attention": "cuda"}}, "attention='cuda' is unknown"),
        ({"model": {"attention": "cudnn"}}, "dtype float32 is neither bfloat16 nor float16; use 'xla'"),
        ({"data": {"batch_size": 9}}, "does not divide by 4"),
        ({"data": {"train": ("nowhere.jsonl",)}}, "'nowhere.jsonl' does not exist"),
        ({"personas": ("abby",)}, "nearest: 'abbey'"),
        ({"only": ("abbey",)}, "expected data.mode = persona"),
    ],
)
def test_a_run_that_cannot_start_writes_nothing(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message):
        train(backbone(tmp_path / "run", **changes), progress=False)
    assert listing(tmp_path) == []


def test_sigterm_saves_the_step_it_comes_in_and_the_run_goes_on(whole: Path, tmp_path: Path) -> None:
    """Sent by the run to itself in its 7th step; no checkpoint was due before the 10th."""
    out = tmp_path / "run"
    with signalled(after=6), pytest.raises(Preempted, match="SIGTERM after step 7, which is saved"):
        train(backbone(out, checkpoint_every=10), progress=False)
    assert ModelDirectory(out).steps() == [7] and verify(out).findings == ()
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    train(backbone(out, checkpoint_every=10), progress=False)
    assert losses(out) == losses(whole)


@pytest.mark.slow
def test_a_killed_process_loses_no_more_than_the_steps_since_its_checkpoint(whole: Path, tmp_path: Path) -> None:
    out, file = tmp_path / "run", tmp_path / "train.yaml"
    file.write_text(dump_yaml(backbone(out, steps=STEPS)))
    command = [sys.executable, "-c", KILLED, str(out), str(file)]
    killed = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    saved = ModelDirectory(out).latest_step()
    assert saved is not None and 2 <= saved < 6
    train(backbone(out), progress=False)
    assert losses(out) == losses(whole)
