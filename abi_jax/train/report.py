"""What a run says of itself: progress on standard error, `metrics.jsonl`, TensorBoard."""

import importlib.util
import json
import math
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

import jax
from tqdm import tqdm

from abi_jax.errors import InputError
from abi_jax.train.hardware import peak_flops
from abi_jax.train.objectives import group_means
from abi_jax.train.optimizer import make_schedule
from abi_jax.train.setup import Run

METRICS = "metrics.jsonl"


class Reporter:
    """Tells how a run goes; process 0 speaks for all."""

    def __init__(
        self, run: Run, groups: tuple[str, ...], attributes: tuple[str, ...], start: int, progress: bool
    ) -> None:
        self._run, self.config = run, run.config
        self._groups, self._attributes = groups, attributes
        self._speaks = jax.process_index() == 0
        shown, redrawn = progress and self._speaks, sys.stderr.isatty()
        self._lines = shown and not redrawn  # into a file or a pipe, which would hold every state of a bar
        self._bar = tqdm(
            total=self.config.steps,
            initial=start,
            unit="step",
            disable=not (shown and redrawn),
            desc=f"training {self.config.data.mode}",
            dynamic_ncols=True,
        )
        self._board = _Board(self.config.out, start) if self.config.tensorboard and self._speaks else None
        self._rate = make_schedule(self.config.optimizer, self.config.steps)
        self._at, self._since = start, time.perf_counter()
        self._peak: float | None = None
        self._waited = self._apart = 0.0

    def waited(self, seconds: float) -> None:
        """Counts time in which the devices had nothing to do because a batch was not there."""
        self._waited += seconds

    def __call__(self, step: int, metrics: Mapping[str, jax.Array], epoch: float) -> dict[str, Any]:
        """Waits for `metrics`, writes them, and returns them as plain numbers."""
        values = jax.device_get(dict(metrics))
        now = time.perf_counter()
        seconds = now - self._since - self._apart
        tokens = (step - self._at) * self.config.data.batch_size * self.config.data.length
        speed = tokens / seconds
        if self._peak is None:
            self._peak = peak_flops()
        record = {
            "step": step,
            "loss": float(values["loss"]),
            "gradient_norm": float(values["gradient_norm"]),
            "learning_rate": float(self._rate(step - 1)),
            "tokens_per_second": speed,
            "input_wait": self._waited / seconds,
            "epoch": epoch,
            "loss_by_group": group_means(self._groups, values["group_loss"], values["group_tokens"]),
        }
        if self._peak:
            record["mfu"] = speed * self._run.flops_per_token / self._peak
        if self._attributes:
            sums, counts = values["attribute_loss"][1:], values["attribute_tokens"][1:]
            record |= {"bias": float(values["bias"]), "loss_by_attribute": group_means(self._attributes, sums, counts)}
        said = f"loss {record['loss']:.3f}, {speed:,.0f} tokens/s"
        if self._peak:
            said += f", MFU {record['mfu']:.0%}"
        left = timedelta(seconds=round(seconds / (step - self._at) * (self.config.steps - step)))
        self._say(step, said, f"{said}, {left} left")
        self._write(record)
        self._at, self._since, self._waited, self._apart = step, time.perf_counter(), 0.0, 0.0
        return record

    def evaluation(self, step: int, measured: dict[str, Any], best: bool, seconds: float) -> None:
        """Writes what an evaluation found; its `seconds` are not counted as training."""
        self._apart += seconds
        said = f"held-out loss {measured['loss']:.3f}, calibration error {measured['calibration_error']:.3f}"
        said += ", the best so far" if best else ""
        if not self._bar.disable:
            self._bar.write(f"step {step}: {said}", file=self._bar.fp)  # which goes quiet with the terminal
        self._say(step, said, said)
        self._write({"step": step, "evaluation": measured})

    def _say(self, step: int, short: str, long: str) -> None:
        self._bar.set_postfix_str(short, refresh=False)
        self._bar.update(step - self._bar.n)
        if self._lines:
            mode, steps = self.config.data.mode, self.config.steps
            with suppress(OSError):  # training goes on where nobody listens any more
                print(f"training {mode}: step {step}/{steps}, {long}", file=sys.stderr, flush=True)

    def _write(self, record: dict[str, Any]) -> None:
        if self._speaks:
            path = self.config.out / METRICS
            try:
                with path.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(record) + "\n")
            except OSError as error:
                raise InputError(
                    f"{path}: {error.strerror}; the same command goes on from the last checkpoint"
                ) from error
        if self._board is not None:
            self._board.write(record)

    def __enter__(self) -> "Reporter":
        return self

    def __exit__(self, *exception: object) -> None:
        self._bar.close()
        if self._board is not None:
            self._board.close()


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The records of a `metrics.jsonl`; none where there is no such file. What is cut off or damaged is left out."""
    found = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else []:
        with suppress(ValueError):
            found.append(json.loads(line))
    return [record for record in found if isinstance(record, dict) and "step" in record]


def read_evaluations(path: Path) -> list[tuple[int, dict[str, Any]]]:
    """The evaluations in a `metrics.jsonl`, in order: step, and what was measured."""
    return [(record["step"], record["evaluation"]) for record in read_metrics(path) if "evaluation" in record]


def check_tensorboard() -> None:
    """Raises `InputError` where metrics cannot be written for TensorBoard; every process asks."""
    if importlib.util.find_spec("tensorboardX") is None:
        raise InputError("tensorboard = true needs tensorboardX; expected abi-jax[tensorboard] installed")


class _Board:
    """Metrics for TensorBoard; what an interrupted run wrote after `start` is hidden there."""

    def __init__(self, out: Path, start: int) -> None:
        from tensorboardX import SummaryWriter

        self._writer = SummaryWriter(str(out / "tensorboard"), purge_step=start + 1)

    def write(self, record: Mapping[str, Any]) -> None:
        for name, value in flat(record).items():
            self._writer.add_scalar(name, value, record["step"])

    def close(self) -> None:
        self._writer.close()


def flat(record: Mapping[str, Any], prefix: str = "") -> dict[str, float]:
    """Numbers of a nested record by path, `evaluation/loss_by_group/abbey`; the step itself is left out."""
    found: dict[str, float] = {}
    for name, value in record.items():
        if isinstance(value, Mapping):
            found |= flat(value, f"{prefix}{name}/")
        elif f"{prefix}{name}" != "step" and math.isfinite(value):
            found[prefix + name] = float(value)
    return found
