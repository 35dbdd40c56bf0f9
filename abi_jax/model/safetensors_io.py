"""Reading of safetensors checkpoints, a region of a tensor at a time.

A folder holds one `model.safetensors`, or several files and `model.safetensors.index.json`.
Headers are checked against the files when the folder is opened (`safetensors_format`); data is
read only when asked for, so a checkpoint far larger than the host's memory goes straight to its
shards. `safetensors_writer` writes such folders.
"""

import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import IO, Any

import jax
import numpy as np
from jax.sharding import Sharding
from jax.typing import DTypeLike

from abi_jax.errors import InputError
from abi_jax.model.safetensors_format import Entry, parse_json, read_header

Index = tuple[slice, ...]
Box = tuple[tuple[int, int], ...]  # (start, stop) of each dimension

WEIGHTS = "model.safetensors"
WEIGHTS_INDEX = "model.safetensors.index.json"

_BLOCK = 8 << 20  # bytes of scratch for a cast or a strided read
_LONG_RUN = 32 << 10  # contiguous runs at least this long are read one by one


@dataclass(frozen=True)
class Transform:
    """How one weight is cut out of a stored tensor: `part`, then `transpose`, then `apply`.

    `part` selects a region of the stored tensor (steps of 1), `transpose` reverses the
    dimensions, and `apply` is an elementwise function of a block of values in the destination
    dtype. All three commute with sharding, so each shard still reads only its own region.
    """

    part: Index = ()
    transpose: bool = False
    apply: Callable[[np.ndarray], np.ndarray] | None = None

    def __post_init__(self) -> None:
        if any(s.step not in (None, 1) for s in self.part):
            raise ValueError(f"part {self.part} has a step; only steps of 1 commute with sharding")


@dataclass(frozen=True)
class TensorIndex:
    """The tensors of an opened checkpoint, by name."""

    folder: Path
    entries: Mapping[str, Entry]

    def names(self) -> tuple[str, ...]:
        """Returns the tensor names in file order."""
        return tuple(self.entries)

    def __contains__(self, name: object) -> bool:
        return name in self.entries

    def entry(self, name: str) -> Entry:
        """Returns where `name` is. Raises `InputError` naming the folder, the tensor and the nearest names."""
        if name not in self.entries:
            near = difflib.get_close_matches(name, self.entries, n=3)
            raise InputError(
                f"{self.folder}: tensor {name!r} is missing from this checkpoint of {len(self.entries)} tensors"
                + (f"; nearest: {', '.join(near)}" if near else "")
            )
        return self.entries[name]

    def shape(self, name: str) -> tuple[int, ...]:
        """Returns the stored shape."""
        return self.entry(name).shape

    def dtype(self, name: str) -> np.dtype[Any]:
        """Returns the stored dtype (bfloat16 and float8 from ml_dtypes)."""
        return self.entry(name).dtype

    def read(self, name: str) -> np.ndarray:
        """Returns the whole tensor in its stored dtype."""
        return self.read_slice(name, ())

    def read_slice(self, name: str, index: Index) -> np.ndarray:
        """Returns `tensor[index]` in the stored dtype, having read that region only.

        `index` may have fewer slices than the tensor has dimensions; bounds and steps mean what
        they mean in numpy. With a step, the region between the first and the last element is
        held while it is thinned out; otherwise at most 8 MiB more than the result.
        """
        entry = self.entry(name)
        if len(index) > len(entry.shape):
            raise InputError(f"{entry.file}: {name!r} of shape {entry.shape} has no {len(index)} dimensions to slice")
        spans = [range(size)[s] for size, s in zip(entry.shape, _full(index, len(entry.shape)), strict=True)]
        # the region from the lowest to the highest element of each dimension, then the steps within it
        box = tuple((min(r), max(r) + 1) if r else (0, 0) for r in spans)
        out = _read_box(name, entry, box, entry.dtype)
        return out if all(r.step == 1 for r in spans) else out[tuple(slice(None, None, r.step) for r in spans)].copy()

    def load_sharded(
        self,
        name: str,
        sharding: Sharding,
        dtype: DTypeLike | None = None,
        transform: Transform | None = None,
        shape: tuple[int, ...] | None = None,
    ) -> jax.Array:
        """Returns the tensor as a global array, each process reading only the regions of its own devices.

        `dtype` defaults to the stored one. `shape`, when given, is what the model expects after
        `transform`; `InputError` names file, tensor and both shapes if the file differs. One
        shard at a time is staged on the host (`jax.make_array_from_callback` stages them all),
        and shards that hold the same region share one read.
        """
        entry, how = self.entry(name), transform or Transform()
        rank = len(entry.shape)
        if len(how.part) > rank:
            raise InputError(f"{entry.file}: {name!r} of shape {entry.shape} has no part {how.part}")
        part = [range(n)[s] for n, s in zip(entry.shape, _full(how.part, rank), strict=True)]
        final = tuple(len(r) for r in (reversed(part) if how.transpose else part))
        if shape is not None and final != tuple(shape):
            raise InputError(f"{entry.file}: {name!r} gives shape {final} (stored {entry.shape}), expected {shape}")

        def read(box: Box) -> np.ndarray:
            inner = tuple(reversed(box)) if how.transpose else box
            moved = tuple((r.start + lo, r.start + hi) for r, (lo, hi) in zip(part, inner, strict=True))
            return _read_box(name, entry, moved, entry.dtype if dtype is None else np.dtype(dtype), how)

        placed: dict[jax.Device, jax.Array] = {}
        for box, devices in _devices_by_region(sharding, final).items():
            region = read(box)
            for device in devices:
                placed[device] = jax.device_put(region, device)
            for device in devices:
                placed[device].block_until_ready()
        order = sharding.addressable_devices_indices_map(final)
        return jax.make_array_from_single_device_arrays(final, sharding, [placed[d] for d in order])


def open_checkpoint(folder: str | Path) -> TensorIndex:
    """Opens `model.safetensors`, or the files that `model.safetensors.index.json` names.

    Raises `InputError` naming the file (and tensor) when neither exists, a header is corrupt,
    a file is shorter or longer than its header says, or the index names what is not there.
    """
    folder = Path(folder)
    if (folder / WEIGHTS).is_file():
        return TensorIndex(folder, read_header(folder / WEIGHTS))
    path = folder / WEIGHTS_INDEX
    if not path.is_file():
        raise InputError(f"{folder}: no checkpoint here; expected {WEIGHTS} or {WEIGHTS_INDEX}")
    weight_map = parse_json(path, path.read_bytes())
    weight_map = weight_map.get("weight_map") if isinstance(weight_map, dict) else None
    if not isinstance(weight_map, dict):
        raise InputError(f"{path}: no object 'weight_map' from tensor names to file names")
    files: dict[str, dict[str, Entry]] = {}
    entries: dict[str, Entry] = {}
    for name, file in weight_map.items():
        if not isinstance(file, str) or Path(file).name != file:
            raise InputError(f"{path}: tensor {name!r} is in {file!r}; expected the name of a file in the same folder")
        if file not in files:
            if not (folder / file).is_file():
                raise InputError(f"{path}: tensor {name!r} is in {file!r}, which is missing from {folder}")
            files[file] = read_header(folder / file)
        if name not in files[file]:
            raise InputError(f"{folder / file}: tensor {name!r} is missing; {path.name} says it is here")
        entries[name] = files[file][name]
    return TensorIndex(folder, entries)


def _full(index: Index, rank: int) -> Index:
    return (*index, *(slice(None),) * (rank - len(index)))


def _devices_by_region(sharding: Sharding, shape: tuple[int, ...]) -> dict[Box, list[jax.Device]]:
    regions: dict[Box, list[jax.Device]] = {}
    for device, index in sharding.addressable_devices_indices_map(shape).items():
        spans = (range(n)[s] for n, s in zip(shape, _full(index or (), len(shape)), strict=True))
        regions.setdefault(tuple((r.start, r.stop) for r in spans), []).append(device)
    return regions


def _read_box(name: str, entry: Entry, box: Box, dtype: np.dtype[Any], how: Transform | None = None) -> np.ndarray:
    """Returns the region `box` of the stored tensor in `dtype`, transformed."""
    how = how or Transform()
    shape = tuple(hi - lo for lo, hi in box)
    out = np.empty(tuple(reversed(shape)) if how.transpose else shape, dtype)
    if out.size:
        try:
            with entry.file.open("rb", buffering=0) as f:
                _fill(f, entry.offset, entry.shape, box, out.T if how.transpose else out, entry.dtype)
        except (OSError, EOFError) as error:
            raise InputError(f"{entry.file}: cannot read tensor {name!r}: {error}") from error
    if how.apply is not None:
        out[...] = how.apply(out)
    return out


def _fill(f: IO[bytes], offset: int, shape: tuple[int, ...], box: Box, out: np.ndarray, dtype: np.dtype[Any]) -> None:
    """Copies region `box` of the row-major array of `shape` at `offset` into `out`, at most 8 MiB at a time."""
    if not shape:
        shape, box, out = (1,), ((0, 1),), out.reshape(1)
    partial = [d for d in range(1, len(shape)) if box[d] != (0, shape[d])]
    row = prod(shape[1:]) * dtype.itemsize
    start, stop = box[0]
    if not partial and out.dtype == dtype and out.flags.c_contiguous:
        _read_into(f, offset + start * row, out)
        return
    run = prod(hi - lo for lo, hi in box[partial[-1] :]) * dtype.itemsize if partial else row
    if row > _BLOCK or (partial and run >= _LONG_RUN):
        for i in range(stop - start):
            _fill(f, offset + (start + i) * row, shape[1:], box[1:], out[i], dtype)
        return
    # short runs: one read of whole rows and a strided copy is faster than a read per run
    inner = tuple(slice(lo, hi) for lo, hi in box[1:])
    window = np.empty((min(stop - start, max(1, _BLOCK // row)), *shape[1:]), dtype)
    for first in range(start, stop, len(window)):
        rows = window[: stop - first]
        _read_into(f, offset + first * row, rows)
        out[first - start : first - start + len(rows)] = rows[(slice(None), *inner)]


def _read_into(f: IO[bytes], offset: int, out: np.ndarray) -> None:
    view = out.reshape(-1).view(np.uint8).data
    f.seek(offset)
    while view:
        got = f.readinto(view)  # type: ignore[attr-defined]
        if not got:
            raise EOFError(f"the file ended {len(view)} bytes early; was it changed while it was read?")
        view = view[got:]
