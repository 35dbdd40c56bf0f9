"""Which step of a run is the best so far, and whether it is time to stop."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from abi_jax.errors import InputError
from abi_jax.train.config import EvaluationConfig


@dataclass(frozen=True)
class Best:
    """The best step, and its value of the metric."""

    step: int
    value: float


class Selection:
    """Follows one metric of a run's evaluations; the smaller, the better."""

    def __init__(self, config: EvaluationConfig, evaluations: list[tuple[int, dict[str, Any]]]) -> None:
        """`evaluations`: those that there were already, in order, as (step, what was measured)."""
        self._config = config
        self.best: Best | None = None
        self._since = 0
        for step, measured in evaluations:
            self.add(step, measured)

    def add(self, step: int, measured: dict[str, Any]) -> bool:
        """Takes an evaluation in; whether it is the best so far. Raises `InputError` for a metric there is not."""
        value = metric_of(self._config.metric, measured)
        better = self.best is None or value < self.best.value - self._config.min_delta
        self._since = 0 if better else self._since + 1
        if better:
            self.best = Best(step, value)
        return better

    @property
    def exhausted(self) -> bool:
        """Whether there were `patience` evaluations without an improvement."""
        return 0 < self._config.patience <= self._since


def metric_of(name: str, measured: dict[str, Any]) -> float:
    """The value of `loss`, `calibration_error` or `loss/GROUP`. Raises `InputError` for another name."""
    known = {"loss": measured["loss"], "calibration_error": measured["calibration_error"]}
    known |= {f"loss/{group}": value for group, value in measured["loss_by_group"].items()}
    if name not in known:
        raise InputError(f"evaluation.metric = {name!r}; expected one of {', '.join(known)}")
    return float(known[name])


def read_evaluations(metrics: Path) -> list[tuple[int, dict[str, Any]]]:
    """The evaluations in a run's `metrics.jsonl`, in order; none where there is no such file."""
    if not metrics.is_file():
        return []
    records = [json.loads(line) for line in metrics.read_text(encoding="utf-8").splitlines()]
    return [(record["step"], record["evaluation"]) for record in records if "evaluation" in record]
