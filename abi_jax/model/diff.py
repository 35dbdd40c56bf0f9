"""What changed between two versions of a model: which tensors, and by how much."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from math import sqrt
from pathlib import Path
from typing import Literal

import numpy as np

from abi_jax.errors import InputError
from abi_jax.model.directory import ModelDirectory
from abi_jax.model.provenance import Provenance, Record

SLAB = 1 << 20  # elements that are held as f64


@dataclass(frozen=True)
class Change:
    """A tensor that differs. largest: of `|b - a|`; relative: `||b - a|| / ||a||`; None where it says nothing."""

    name: str
    kind: Literal["changed", "added", "removed"]
    largest: float | None = None
    relative: float | None = None


@dataclass(frozen=True)
class Version:
    """One step of a model directory, with its record."""

    path: Path
    record: Record

    @classmethod
    def open(cls, name: str) -> "Version":
        """Reads `directory` (its newest step) or `directory@step`. Raises `InputError` where there is none."""
        given, at, step = name.rpartition("@")
        path = ModelDirectory.open(given if at and step.isdecimal() else name).path
        provenance = Provenance(path)
        steps = provenance.steps()
        wanted = int(step) if at and step.isdecimal() else max(steps, default=-1)
        if wanted not in steps:
            raise InputError(f"{name!r}: no step of {str(path)!r}; its steps: {', '.join(map(str, steps)) or 'none'}")
        return cls(path, provenance.record(steps[wanted]))

    def read(self, name: str) -> np.ndarray:
        """Reads a tensor, as it is stored."""
        try:
            return np.asarray(ModelDirectory(self.path).read_tensor(self.record.step, name))
        except (ValueError, OSError):
            raise InputError(f"{name} of {str(self.path)!r} cannot be read; see abi verify") from None


def diff(
    a: Version,
    b: Version,
    item: str = "params",
    track: Callable[[Iterable[str], int], Iterable[str]] = lambda names, total: names,
) -> tuple[list[Change], int]:
    """The tensors of an item that differ, largest relative change first, and how many are the same.

    Digests say which differ: only those are read. track: wraps their names, e.g. in a progress bar.
    """
    left, right = ({n: t for n, t in v.record.tensors.items() if n.startswith(item + "/")} for v in (a, b))
    both = left.keys() & right.keys()
    differ = sorted(n for n in both if left[n] != right[n])
    found = [Change(n, "removed") for n in sorted(left.keys() - both)]
    found += [Change(n, "added") for n in sorted(right.keys() - both)]
    for name in track(differ, len(differ)):
        if left[name].shape != right[name].shape:
            found.append(Change(name, "changed"))
            continue
        found.append(_measure(name, a.read(name).reshape(-1), b.read(name).reshape(-1)))
    found.sort(key=lambda c: (-1.0 if c.relative is None else -c.relative, c.name))
    return found, len(both) - len(differ)


def _measure(name: str, old: np.ndarray, new: np.ndarray) -> Change:
    largest = norm = moved = 0.0
    for first in range(0, len(old), SLAB):
        x, y = (v[first : first + SLAB].astype(np.float64) for v in (old, new))
        norm += float(x @ x)
        np.subtract(y, x, out=y)
        moved += float(y @ y)
        largest = np.maximum(largest, np.abs(y).max())  # unlike max, it keeps what is not a number
    return Change(name, "changed", float(largest), sqrt(moved / norm) if norm else None)
