"""Which step of a run is the best so far, and whether it is time to stop."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from abi_jax.errors import InputError
from abi_jax.train.config import EvaluationConfig

OVERALL = ("loss", "calibration_error")


@dataclass(frozen=True)
class Best:
    """The best step and its value of the metric, and what patience is counted by: the value that the last `since`
    evaluations did not improve upon by enough. `data`: a digest of what was measured on; evaluated: the last step
    that was.
    """

    metric: str
    data: str
    step: int | None = None
    value: float = math.inf
    reference: float = math.inf
    since: int = 0
    evaluated: int = 0


class Selection:
    """Follows one metric of a run's evaluations; the smaller, the better. A value that is no number is never best."""

    def __init__(self, config: EvaluationConfig, data: str, before: Mapping[str, Any] | None = None) -> None:
        """`before`: what `state` gave when the run was saved. It counts if it was of this metric and this data."""
        self._config = config
        self.best = Best(config.metric, data)
        told = Best(**before) if before else self.best
        self.restarted = (told.metric, told.data) != (config.metric, data)
        if not self.restarted:
            self.best = told

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps, as JSON values."""
        values = asdict(self.best)
        return {k: v for k, v in values.items() if not (isinstance(v, float) and math.isinf(v)) and v is not None}

    def add(self, step: int, measured: Mapping[str, Any]) -> bool:
        """Takes an evaluation in; whether it is the best so far. Raises `InputError` for a metric there is not."""
        value, old = metric_of(self._config.metric, measured), self.best
        better = value < old.value
        enough = value < old.reference - (self._config.min_delta if math.isfinite(old.reference) else 0.0)
        self.best = Best(
            metric=old.metric,
            data=old.data,
            step=step if better else old.step,
            value=value if better else old.value,
            reference=value if enough else old.reference,
            since=0 if enough else old.since + 1,
            evaluated=step,
        )
        return better

    @property
    def exhausted(self) -> bool:
        """Whether there were `patience` evaluations without an improvement."""
        return 0 < self._config.patience <= self.best.since


def check_metric(name: str, groups: Sequence[str]) -> None:
    """Raises `InputError` unless `name` is `loss`, `calibration_error` or `loss/GROUP`, of one of the groups."""
    known = [*OVERALL, *(f"loss/{group}" for group in groups)]
    if name not in known:
        raise InputError(f"evaluation.metric = {name!r}; expected one of {', '.join(known)}")


def metric_of(name: str, measured: Mapping[str, Any]) -> float:
    """The value of a metric; infinite for a group without a token."""
    if name in OVERALL:
        return float(measured[name])
    return float(measured["loss_by_group"].get(name.removeprefix("loss/"), math.inf))
