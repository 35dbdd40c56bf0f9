"""A loss or a gradient that is not a number ends a run: with the step, the records of its batch, and what was kept."""

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path

import jax

from abi_jax.errors import InputError
from abi_jax.files import write_atomically

EVIDENCE = "non-finite.json"
NAMED = 3


class NonFiniteError(InputError):
    """A loss or a gradient that is not a number."""


class FiniteWatch:
    """Holds the metrics of steps until it is cheap to look at them: reading them waits for the devices."""

    def __init__(self, out: Path) -> None:
        several = jax.process_count() > 1
        self._evidence = out / (f"non-finite-{jax.process_index()}.json" if several else EVIDENCE)
        self._held: list[tuple[int, Mapping[str, jax.Array], tuple[str, ...]]] = []

    def add(self, step: int, metrics: Mapping[str, jax.Array], records: tuple[str, ...]) -> None:
        """Takes a step in. records: where the examples of this process's batch came from."""
        self._held.append((step, {name: metrics[name] for name in ("loss", "gradient_norm")}, records))

    def check(self, saved: Callable[[], int | None]) -> None:
        """Raises `InputError` for the first step held that is not finite. saved: asks for the last checkpoint.

        What an earlier start wrote down about such a step is dropped once this one has gone on without it.
        """
        held, self._held = self._held, []
        values = jax.device_get([metrics for _, metrics, _ in held])
        for (step, _, records), found in zip(held, values, strict=True):
            loss, norm = float(found["loss"]), float(found["gradient_norm"])
            if not math.isfinite(loss + norm):
                raise NonFiniteError(self._reason(step, loss, norm, records, saved()))
        self._evidence.unlink(missing_ok=True)

    def _reason(self, step: int, loss: float, norm: float, records: tuple[str, ...], saved: int | None) -> str:
        evidence = {"step": step, "loss": str(loss), "gradient_norm": str(norm), "records": list(records)}
        write_atomically(self._evidence, json.dumps(evidence, indent=1) + "\n")
        some = ", ".join(records[:NAMED]) + (f" and {len(records) - NAMED} more" if len(records) > NAMED else "")
        kept = "nothing was saved" if saved is None else f"the last checkpoint is of step {saved}"
        return (
            f"step {step} has a loss of {loss} and a gradient norm of {norm}; its batch held {some} "
            f"(all in {self._evidence}); {kept}: start again with a lower optimizer.learning_rate or "
            "optimizer.clip_norm, or without those records"
        )
