"""A training run that is killed (SIGKILL) again and again, and what that changes: nothing.

    python -m benchmarks.kills --kills 25 --processes 1 2

A tiny model is trained by `abi train`, once without interruption and then with kills: at random moments of a run's
life, while a checkpoint is being written, and between writing and linking it. Of two processes one is killed first
and the other a moment later. After every kill all steps that are listed must be whole, and none but the newest without
a link; once the run has gone on, `verify` must find nothing, while it trains. At the end losses, evaluations and the
digest of weights and optimizer must be those of the uninterrupted run, bit for bit. Prints one JSON object.
"""

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from abi_jax.config import dump_yaml
from abi_jax.data import DataConfig
from abi_jax.model.config import ModelConfig
from abi_jax.model.directory import ModelDirectory
from abi_jax.model.provenance import Provenance
from abi_jax.model.verify import verify
from abi_jax.sharding import MeshConfig
from abi_jax.sharding.local import LocalConfig, free_port, process_environment
from abi_jax.train.config import EvaluationConfig, ModelSection, OptimizerConfig, TrainConfig
from abi_jax.train.report import read_evaluations, read_metrics

MODEL = ModelConfig(
    vocab_size=384, d_model=32, num_layers=2, num_heads=4, num_kv_heads=4, head_dim=8, d_ff=64, max_length=64
)
PATIENCE = 300  # seconds for anything to happen
MODES = ("random", "writing", "linking")


@dataclass
class Run:
    """The processes of one `abi train`, started and killed many times."""

    folder: Path
    processes: int
    steps: int = 300
    every: int = 5
    began: float = 0.0
    running: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.folder.mkdir(parents=True)
        config = TrainConfig(
            out=self.out,
            steps=self.steps,
            checkpoint_every=self.every,
            keep=2,
            log_every=1,
            model=ModelSection(config=MODEL),
            data=DataConfig(mode="backbone", length=64, batch_size=4),
            optimizer=OptimizerConfig(learning_rate=3e-3),
            evaluation=EvaluationConfig(every=4 * self.every, batches=2),
            mesh=MeshConfig(data=self.processes),
        )
        (self.folder / "train.yaml").write_text(dump_yaml(config), encoding="utf-8")

    @property
    def out(self) -> Path:
        return self.folder / "run"

    def start(self) -> None:
        command = (sys.executable, "-m", "abi_jax.cli", "train", str(self.folder / "train.yaml"))
        config, port = LocalConfig(command, self.processes), free_port()
        self.began = time.monotonic()
        with (self.folder / "log.txt").open("ab") as log:
            self.running = [
                subprocess.Popen(
                    command,
                    env=process_environment(config, process, port),
                    stdout=log,
                    stderr=log,
                    start_new_session=True,
                )
                for process in range(self.processes)
            ]

    def ended(self) -> bool:
        return all(process.poll() is not None for process in self.running)

    def finish(self) -> None:
        """Waits for its own end."""
        for process in self.running:
            if process.wait(PATIENCE) != 0:
                raise RuntimeError(self.log()[-4000:])

    def kill(self, chosen: random.Random) -> None:
        """Kills all processes, one first."""
        for process in chosen.sample(self.running, len(self.running)):
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
            time.sleep(chosen.random() * 0.2 if len(self.running) > 1 else 0)
        for process in self.running:
            process.wait()

    def wait(self, condition: Callable[[], bool]) -> bool:
        """Waits until the condition holds; False where the run ended first."""
        while not condition():
            if self.ended():
                return False
            if time.monotonic() - self.began > PATIENCE:
                raise TimeoutError(self.log()[-4000:])
            time.sleep(0.001)
        return True

    def log(self) -> str:
        return (self.folder / "log.txt").read_text(encoding="utf-8", errors="replace")

    def losses(self) -> list[float]:
        return [record["loss"] for record in read_metrics(self.out / "metrics.jsonl") if "loss" in record]

    def evaluations(self) -> list[tuple[int, dict[str, Any]]]:
        return read_evaluations(self.out / "metrics.jsonl")

    def reported(self) -> int:
        """When it last reported a step, in ns; 0 before the first."""
        metrics = self.out / "metrics.jsonl"
        return metrics.stat().st_mtime_ns if metrics.is_file() else 0

    def partial(self) -> set[int]:
        """The checkpoints that are being written, or were when their run was killed (inodes)."""
        return {p.stat().st_ino for p in (self.out / "checkpoints").glob("*.orbax-checkpoint-tmp")}

    def dropping(self) -> set[int]:
        """The checkpoints that are being dropped, or were when their run was killed (inodes)."""
        return {p.stat().st_ino for p in (self.out / "checkpoints" / "dropped").glob("*")}

    def linking(self) -> bool:
        """Whether a step is whole and not yet linked."""
        if not (self.out / "lineage").is_dir():
            return False
        try:
            return bool(Provenance(self.out).unlinked())
        except OSError:  # a step was dropped meanwhile
            return False


def check(run: Run) -> None:
    """Raises `AssertionError` where what a kill left behind is not what a run can go on from."""
    directory = ModelDirectory(run.out)
    steps = directory.steps()
    if not (run.out / "lineage" / "chain.jsonl").is_file():
        assert len(steps) <= 1, f"steps {steps} without a link"
        unlinked = steps
    else:
        unlinked = Provenance(run.out).unlinked()
        wrong = [f for f in verify(run.out).findings if f.where not in {f"checkpoints/{step}" for step in unlinked}]
        assert not wrong, wrong
    assert unlinked in ([], steps[-1:]), f"steps {unlinked} of {steps} have no link"
    for step in unlinked:
        for name in directory.tensor_names(step):
            directory.read_tensor(step, name)


def interrupt(run: Run, mode: str, chosen: random.Random, life: float) -> str | None:
    """Starts the run, kills it, and says in what it was killed; None where it ended first. life: seconds to expect."""
    partial, dropping, reported, linked = run.partial(), run.dropping(), run.reported(), run.linking()
    run.start()
    if mode == "random":
        moment = run.began + chosen.uniform(0, life)
        alive = run.wait(lambda: time.monotonic() > moment)
    else:
        alive = run.wait(lambda: run.reported() != reported) and _goes_on_whole(run)
        after = time.monotonic() + chosen.uniform(0, 1.5)
        alive = alive and run.wait(lambda: time.monotonic() > after)
        what = run.linking if mode == "linking" else lambda: bool(run.partial() - partial)
        alive = alive and run.wait(what)
        time.sleep(chosen.choice([0, 0, 0.005, 0.02, 0.05]))
    if not alive:
        run.finish()
        return None
    run.kill(chosen)
    if run.partial() - partial:
        return "writing a checkpoint"
    if run.linking() and not linked:
        return "linking a checkpoint"
    if run.dropping() - dropping:
        return "dropping a checkpoint"
    return "training" if run.reported() != reported else "starting"


def _goes_on_whole(run: Run) -> bool:
    if (run.out / "lineage" / "chain.jsonl").is_file():
        findings = verify(run.out, contents=False).findings
        assert not findings or run.ended(), findings
    return True


def measure(folder: Path, kills: int, processes: int, seed: int = 0, steps: int = 300) -> dict[str, Any]:
    """Kills runs `kills` times in all; one that comes to its end is compared, and another begun."""
    chosen = random.Random(seed)
    whole = Run(folder / "whole", processes, steps)
    whole.start()
    whole.finish()
    whole_life = time.monotonic() - whole.began
    again = Run(folder / "again", processes, steps)
    again.start()
    again.wait(lambda: again.reported() != 0)
    life = time.monotonic() - again.began + 3
    again.kill(chosen)
    counts: Counter[str] = Counter()
    runs = [again]
    while sum(counts.values()) < kills:
        where = interrupt(runs[-1], MODES[sum(counts.values()) % len(MODES)], chosen, life)
        if where is None:
            runs.append(Run(folder / f"again-{len(runs)}", processes, steps))
            continue
        counts[where] += 1
        check(runs[-1])
        print(f"kill {sum(counts.values())} of {kills}: {where}", file=sys.stderr, flush=True)
    runs[-1].start()
    runs[-1].finish()
    content = Provenance(whole.out).chain.links()[-1].content
    for run in runs:
        assert run.losses() == whole.losses(), "other losses than without interruption"
        assert run.evaluations() == whole.evaluations(), "other evaluations than without interruption"
        assert Provenance(run.out).chain.links()[-1].content == content, "another state than without interruption"
        assert verify(run.out).findings == ()
    return {
        "processes": processes,
        "kills": sum(counts.values()),
        "killed_while": dict(sorted(counts.items())),
        "linked_when_it_went_on": sum(run.log().count("was saved, but not linked") for run in runs),
        "runs": len(runs),
        "steps": steps,
        "seconds_without_interruption": round(whole_life, 1),
        "losses_identical": True,
        "evaluations_identical": len(whole.evaluations()),
        "state_identical": True,
    }


def main() -> None:
    """Parses the command line, prints one JSON object; exit status 1 where anything differs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=25, help="for each number of processes")
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--steps", type=int, default=300, help="of the run")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(Path(".cache/jax").absolute()))
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
    with tempfile.TemporaryDirectory(prefix="abi-kills-") as folder:
        results = [measure(Path(folder) / str(n), args.kills, n, args.seed, args.steps) for n in args.processes]
    print(json.dumps({"benchmark": "kills", "results": results}))


if __name__ == "__main__":
    main()
