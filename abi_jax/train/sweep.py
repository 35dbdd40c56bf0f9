"""Sweeps and cross-validation: the same run with other settings and on other folds, and which of them is best.

runs/sweep/
  learning_rate=0.001/fold-0/    a run like any other
  sweep.json                     what every setting gave, the best first
  sweep.png
"""

import itertools
import json
import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import jax

from abi_jax.config import dump_yaml, load
from abi_jax.errors import InputError
from abi_jax.files import write_atomically
from abi_jax.train.config import TrainConfig
from abi_jax.train.loop import train
from abi_jax.train.report import METRICS
from abi_jax.train.selection import Selection, read_evaluations

RESULT, REPORT, FIGURE, REFIT = "result.json", "sweep.json", "sweep.png", "best"


@dataclass(frozen=True)
class Trial:
    """One setting: the best value of the metric in each fold, its step, their mean and standard deviation."""

    settings: dict[str, str]
    values: tuple[float, ...]
    steps: tuple[int, ...]
    mean: float
    deviation: float


@dataclass(frozen=True)
class Sweep:
    """What to try: `grid` is key -> values, all of them combined; folds: 0 for the data's own held-out part."""

    path: Path
    overrides: tuple[str, ...]
    grid: dict[str, tuple[str, ...]]
    folds: int
    out: Path

    def __post_init__(self) -> None:
        if self.folds == 1:
            raise InputError("folds = 1; expected 0 (one held-out part), or at least 2")

    def settings(self) -> list[dict[str, str]]:
        """Every combination of the grid; one empty setting where there is none."""
        rows = itertools.product(*self.grid.values())
        return [dict(zip(self.grid, row, strict=True)) for row in rows]

    def config(self, settings: dict[str, str], fold: int | None, out: Path) -> TrainConfig:
        """The run of a setting on a fold, or on the data's own parts where `fold` is None."""
        chosen = [f"{key}={value}" for key, value in settings.items()]
        folds = [] if fold is None else [f"data.folds={self.folds}", f"data.fold={fold}"]
        config = load(TrainConfig, self.path, [*self.overrides, *chosen, *folds, f"out={out}"])
        every = config.evaluation.every or config.steps
        return replace(config, evaluation=replace(config.evaluation, every=every))

    def name(self, settings: dict[str, str]) -> str:
        """The folder of a setting."""
        said = ",".join(f"{key.rpartition('.')[2]}={value}" for key, value in settings.items()) or "as-is"
        return said.replace("/", "_").replace(" ", "")


def run_sweep(
    sweep: Sweep, refit: bool = False, tell: Callable[[str], None] = lambda text: None, progress: bool = True
) -> list[Trial]:
    """Runs what is missing, writes `sweep.json` and the figure, and returns the trials, the best first.

    refit: train the best setting once more, on all folds, in `out`/best. Raises `InputError` for settings that are
    not a configuration before anything runs.
    """
    settings = sweep.settings()
    if len({sweep.name(s) for s in settings}) < len(settings):
        raise InputError(f"--grid {', '.join(sweep.grid)}: a setting is there twice; expected different values")
    folds: Sequence[int | None] = range(sweep.folds) if sweep.folds else [None]
    plan = [(s, [sweep.config(s, fold, _place(sweep, s, fold)) for fold in folds]) for s in settings]
    trials = []
    for number, (setting, configs) in enumerate(plan, 1):
        found = []
        for config in configs:
            tell(f"[{number}/{len(plan)}] {config.out}")
            found.append(_result(config, progress))
            tell(f"[{number}/{len(plan)}] {config.evaluation.metric} {found[-1][0]:.4f} at step {found[-1][1]}")
        values, steps = zip(*found, strict=True)
        deviation = statistics.stdev(values) if len(values) > 1 else 0.0
        trials.append(Trial(setting, values, steps, statistics.fmean(values), deviation))
    trials.sort(key=lambda trial: trial.mean)
    if jax.process_index() == 0:
        report = {"metric": plan[0][1][0].evaluation.metric, "folds": sweep.folds, "trials": list(map(asdict, trials))}
        write_atomically(sweep.out / REPORT, json.dumps(report, indent=1) + "\n")
        _draw(report, sweep.out / FIGURE)
    if refit:
        tell(f"training {sweep.name(trials[0].settings)} on all data: {sweep.out / REFIT}")
        train(sweep.config(trials[0].settings, None, sweep.out / REFIT), progress)
    return trials


def _place(sweep: Sweep, settings: dict[str, str], fold: int | None) -> Path:
    folder = sweep.out / sweep.name(settings)
    return folder if fold is None else folder / f"fold-{fold}"


def _result(config: TrainConfig, progress: bool) -> tuple[float, int]:
    """The best value of a run's metric and its step; a run that has told it with this configuration is not repeated."""
    path, said = config.out / RESULT, dump_yaml(config)
    if path.is_file():
        told: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if told["config"] == said:
            return told["value"], told["step"]
        raise InputError(f"{str(config.out)!r} holds a trial with another configuration; expected another --out")
    train(config, progress)
    best = Selection(config.evaluation, read_evaluations(config.out / METRICS)).best
    if best is None:
        raise InputError(f"{str(config.out)!r} was not evaluated; expected held-out data")
    if jax.process_index() == 0:
        write_atomically(path, json.dumps({"value": best.value, "step": best.step, "config": said}) + "\n")
    return best.value, best.step


def _draw(report: dict[str, Any], path: Path) -> None:
    from matplotlib.figure import Figure

    trials = report["trials"][::-1]  # the best on top
    figure = Figure(figsize=(8, 1 + 0.4 * len(trials)), layout="constrained")
    axes = figure.subplots()
    for at, trial in enumerate(trials):
        axes.plot(trial["values"], [at] * len(trial["values"]), ".", color="0.6")
        axes.errorbar(trial["mean"], at, xerr=trial["deviation"], fmt="o", capsize=3)
    names = [", ".join(f"{key}={value}" for key, value in trial["settings"].items()) or "as is" for trial in trials]
    axes.set_yticks(range(len(trials)), names)
    folds = f", mean and deviation over {report['folds']} folds" if report["folds"] else ""
    axes.set(xlabel=f"{report['metric']}, lower is better{folds}")
    axes.grid(alpha=0.3, axis="x")
    figure.savefig(path, dpi=110)
