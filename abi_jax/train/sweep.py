"""Sweeps and cross-validation: the same run with other settings and on other folds, and which of them is best.

runs/sweep/
  learning_rate=0.001/fold-0/    a run like any other
  sweep.json                     what every setting gave, the best first
  sweep.png
"""

import itertools
import json
import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import jax

from abi_jax.config import dump_yaml, load
from abi_jax.errors import InputError
from abi_jax.files import write_atomically
from abi_jax.train.config import EvaluationConfig, TrainConfig
from abi_jax.train.finite import NonFiniteError
from abi_jax.train.loop import train
from abi_jax.train.report import METRICS, read_evaluations
from abi_jax.train.resume import SETTINGS
from abi_jax.train.selection import metric_of

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

    def refit(self, trial: "Trial") -> TrainConfig:
        """The run of a trial's setting on everything, for as many steps as its best took on average."""
        config = self.config(trial.settings, None, self.out / REFIT)
        data = replace(config.data, held_out=0, evaluate=())
        steps = max(1, round(statistics.fmean(trial.steps)))
        return replace(config, data=data, evaluation=EvaluationConfig(), steps=steps)

    def name(self, settings: dict[str, str]) -> str:
        """The folder of a setting."""
        said = ",".join(f"{key.rpartition('.')[2]}={value}" for key, value in settings.items()) or "as-is"
        return said.replace("/", "_").replace(" ", "")


def run_sweep(
    sweep: Sweep, refit: bool = False, tell: Callable[[str], None] = lambda text: None, progress: bool = True
) -> list[Trial]:
    """Runs what is missing, writes `sweep.json` and the figure, and returns the trials, the best first.

    A trial whose loss is no number counts as infinitely bad. refit: train the best setting once more in `out`/best, on
    everything, held-out data too, for as many steps as its trials' best took on average. Raises `InputError` for
    settings that are not a configuration before anything runs.
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
            value, step = found[-1]
            said = f"{value:.4f} at step {step}" if math.isfinite(value) else "not a number"
            tell(f"[{number}/{len(plan)}] {config.evaluation.metric} {said}")
        values, steps = zip(*found, strict=True)
        whole = len(values) > 1 and all(map(math.isfinite, values))
        deviation = statistics.stdev(values) if whole else 0.0
        trials.append(Trial(setting, values, steps, statistics.fmean(values), deviation))
    trials.sort(key=lambda trial: trial.mean)
    if jax.process_index() == 0:
        metric, told = plan[0][1][0].evaluation.metric, [_plain(asdict(trial)) for trial in trials]
        report = {"metric": metric, "folds": sweep.folds, "trials": told}
        write_atomically(sweep.out / REPORT, json.dumps(report, indent=1) + "\n")
        _draw(report, sweep.out / FIGURE)
    if refit and math.isfinite(trials[0].mean):
        config = sweep.refit(trials[0])
        tell(f"training {sweep.name(trials[0].settings)} on everything for {config.steps} steps: {config.out}")
        _check_same(config)
        train(config, progress)
    return trials


def _check_same(config: TrainConfig) -> None:
    """Raises `InputError` where the directory of a trial holds the run of another configuration."""
    path = config.out / SETTINGS
    if path.is_file() and load(TrainConfig, path, env={}) != config:
        raise InputError(f"{str(config.out)!r} holds a run of another configuration; expected another --out")


def _plain(value: dict[str, Any]) -> dict[str, Any]:
    """Without infinity, which JSON does not have."""
    keep = {k: None if isinstance(v, float) and math.isinf(v) else v for k, v in value.items()}
    return keep | {"values": [v if math.isfinite(v) else None for v in value["values"]]}


def _place(sweep: Sweep, settings: dict[str, str], fold: int | None) -> Path:
    folder = sweep.out / sweep.name(settings)
    return folder if fold is None else folder / f"fold-{fold}"


def _result(config: TrainConfig, progress: bool) -> tuple[float, int]:
    """The best value of a run's metric and its step; a run that has told it with this configuration is not repeated."""
    path, said = config.out / RESULT, dump_yaml(config)
    if path.is_file():
        told: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if told["config"] == said:
            return math.inf if told["value"] is None else told["value"], told["step"]
        raise InputError(f"{str(config.out)!r} holds a trial with another configuration; expected another --out")
    _check_same(config)
    try:
        train(config, progress)
        found = read_evaluations(config.out / METRICS)
        value, step = min((metric_of(config.evaluation.metric, measured), step) for step, measured in found)
    except NonFiniteError:
        value, step = math.inf, 0
    if jax.process_index() == 0:
        config.out.mkdir(parents=True, exist_ok=True)
        told = {"value": value if math.isfinite(value) else None, "step": step, "config": said}
        write_atomically(path, json.dumps(told) + "\n")
    return value, step


def _draw(report: dict[str, Any], path: Path) -> None:
    from matplotlib.figure import Figure

    trials = report["trials"][::-1]  # the best on top
    figure = Figure(figsize=(8, 1 + 0.4 * len(trials)), layout="constrained")
    axes = figure.subplots()
    for at, trial in enumerate(trials):
        if trial["mean"] is None:
            continue
        axes.plot(trial["values"], [at] * len(trial["values"]), ".", color="0.6")
        axes.errorbar(trial["mean"], at, xerr=trial["deviation"], fmt="o", capsize=3)
    names = [", ".join(f"{key}={value}" for key, value in trial["settings"].items()) or "as is" for trial in trials]
    axes.set_yticks(range(len(trials)), names)
    folds = f", mean and deviation over {report['folds']} folds" if report["folds"] else ""
    axes.set(xlabel=f"{report['metric']}, lower is better{folds}")
    axes.grid(alpha=0.3, axis="x")
    figure.savefig(path, dpi=110)
