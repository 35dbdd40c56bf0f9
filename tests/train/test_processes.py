"""Two processes of four devices are one mesh of eight: the same losses and answers, and either continues the other."""

import io
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from abi_jax.model.directory import ModelDirectory
from abi_jax.model.generate import Generator, Prompt
from abi_jax.model.verify import verify
from abi_jax.sharding import AxisRules, use
from abi_jax.sharding.local import LocalConfig, launch
from abi_jax.train.config import EvaluationConfig, TrainConfig
from abi_jax.train.loop import train
from abi_jax.train.report import read_evaluations, read_metrics
from abi_jax.train.setup import prepare
from abi_jax.train.validation import Validation
from tests.train.tiny import MESHES, config, mesh_of, single

# Personas on a mesh that splits rows between the processes, stopped half-way; a backbone on one that splits heads
# between them, so that both read the same rows; then what the personas say.
PROGRAM = """
import json, sys, numpy as np
from pathlib import Path
from abi_jax.sharding import initialize, make_mesh, use
initialize()
from abi_jax.model.directory import ModelDirectory
from abi_jax.model.generate import Generator
from abi_jax.train.loop import train
from tests.train.test_processes import personas, prompts
from tests.train.tiny import MESHES, config, interrupted

out = Path(sys.argv[1])
with interrupted(after=12):
    train(personas(out, "2x2x2"), progress=False)
train(config("backbone", out=out / "backbone", mesh=MESHES["tensor"]), progress=False)
directory, mesh = ModelDirectory(out / "personas"), make_mesh(MESHES["2x2x2"])
with use(mesh):
    generator = Generator(directory.config, directory.load_params(mesh=mesh))
    print(json.dumps(generator.generate(prompts(), 12)))
"""


# One process of two is told to stop; both do, after the same step.
STOPPED = """
import contextlib, sys, jax
from pathlib import Path
from abi_jax.errors import Preempted
from abi_jax.sharding import initialize
initialize()
from abi_jax.train.loop import train
from tests.train.tiny import MESHES, config, signalled

run = config("backbone", out=Path(sys.argv[1]), mesh=MESHES["data"], steps=100_000, checkpoint_every=100_000)
with signalled(after=6) if jax.process_index() == 1 else contextlib.nullcontext():
    try:
        train(run, progress=False)
    except Preempted as stopped:
        print("stopped", stopped.step)
"""


def personas(out: Path, mesh: str) -> TrainConfig:
    """The run that two processes begin and one ends."""
    evaluation = EvaluationConfig(every=10, batches=2, matrix=True)
    return config("persona", out=out / "personas", mesh=MESHES[mesh], checkpoint_every=10, evaluation=evaluation)


def prompts() -> list[Prompt]:
    """Abbey, Aviva, half of each, and the base model."""
    mixtures = ([1, 0, 0, 0], [0, 1, 0, 0], [0.5, 0.5, 0, 0], None)
    tokens = np.arange(300, 312, dtype=np.int32)
    return [Prompt(tokens, np.full(12, 4), None if w is None else np.array(w, np.float32)) for w in mixtures]


def losses(folder: Path) -> list[float]:
    return [record["loss"] for record in read_metrics(folder / "metrics.jsonl") if "loss" in record]


def evaluated(run: TrainConfig) -> dict[str, Any]:
    """What one process measures of the checkpoint there is."""
    mesh, rules = mesh_of(MESHES["fsdp"]), AxisRules()
    with use(mesh, rules):
        found = prepare(replace(run, model=replace(run.model, init=run.out)), mesh, rules)
        with Validation(found) as validation:
            return validation(found.trained, found.frozen)


def test_sigterm_to_one_process_stops_all_after_the_same_step(tmp_path: Path) -> None:
    stdout, stderr = io.StringIO(), io.StringIO()
    command = (sys.executable, "-c", STOPPED, str(tmp_path / "run"))
    assert launch(LocalConfig(command, processes=2, devices=4, prefix=False), stdout, stderr) == 0, stderr.getvalue()
    said = {line for line in stdout.getvalue().splitlines() if line.startswith("stopped")}
    (step,) = ModelDirectory(tmp_path / "run").steps()
    assert said == {f"stopped {step}"} and verify(tmp_path / "run").findings == ()


@pytest.mark.slow
def test_two_processes_train_and_answer_as_one(tmp_path: Path) -> None:
    stdout, stderr = io.StringIO(), io.StringIO()
    command = (sys.executable, "-c", PROGRAM, str(tmp_path))
    assert launch(LocalConfig(command, processes=2, devices=4, prefix=False), stdout, stderr) == 0, stderr.getvalue()

    np.testing.assert_allclose(losses(tmp_path / "backbone"), single("backbone").losses, rtol=0, atol=1e-5)
    np.testing.assert_allclose(losses(tmp_path / "personas"), single("persona").losses[:12], rtol=0, atol=1e-5)

    said = [json.loads(line) for line in stdout.getvalue().splitlines() if line.startswith("[[")]
    directory = ModelDirectory(tmp_path / "personas")
    assert directory.steps() == [10]
    assert verify(tmp_path / "personas").findings == verify(tmp_path / "backbone").findings == ()
    assert said == [Generator(directory.config, directory.load_params()).generate(prompts(), 12)] * 2

    assert jax.process_count() == 1
    run = personas(tmp_path, "fsdp")
    ((step, measured),) = read_evaluations(tmp_path / "personas" / "metrics.jsonl")
    again = evaluated(run)
    assert step == 10 and measured["loss"] == pytest.approx(again["loss"], abs=1e-5)
    assert measured["loss_by_group"] == pytest.approx(again["loss_by_group"], abs=1e-5)
    assert measured["calibration_error"] == pytest.approx(again["calibration_error"], abs=1e-4)
    for voice, row in again["matrix"].items():
        assert measured["matrix"][voice] == pytest.approx(row, rel=1e-5)

    train(run, progress=False)
    np.testing.assert_allclose(losses(tmp_path / "personas"), single("persona").losses, rtol=0, atol=1e-5)
