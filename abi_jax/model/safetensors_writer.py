"""Writing of safetensors checkpoints as Hugging Face libraries read them.

Tensors arrive as a stream and leave in files of bounded size, so the host holds one file's
worth of them at most. Everything is written to a temporary folder and moved into place at the
end, the index last: a checkpoint is there whole or not at all.
"""

import contextlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Mapping
from math import prod
from pathlib import Path

import numpy as np

from abi_jax.errors import InputError
from abi_jax.model.safetensors_format import DTYPES
from abi_jax.model.safetensors_io import WEIGHTS, WEIGHTS_INDEX

_CODES = {dtype: code for code, dtype in DTYPES.items()}
_METADATA: Mapping[str, str] = {"format": "pt"}


def write_checkpoint(
    folder: str | Path,
    tensors: Iterable[tuple[str, np.ndarray]],
    max_shard_bytes: int = 5 << 30,
    metadata: Mapping[str, str] = _METADATA,
) -> tuple[Path, ...]:
    """Writes `(name, array)` pairs to `folder` and returns the files, in order.

    One file is `model.safetensors`; more are `model-00001-of-0000N.safetensors` with an index.
    A file closes before it would pass `max_shard_bytes`; a tensor larger than that has a file of
    its own. `folder` may exist and hold other files, but no checkpoint. Raises `InputError` for
    that, a repeated name, or a dtype safetensors does not have. Whatever is raised, also by
    `tensors` itself, nothing is left behind.
    """
    folder = Path(folder)
    if max_shard_bytes < 1:
        raise InputError(f"max_shard_bytes is {max_shard_bytes}; expected at least 1")
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder} is a file; expected a folder to write a checkpoint to")
    for old in (WEIGHTS, WEIGHTS_INDEX):
        if (folder / old).exists():
            raise InputError(f"{folder / old} exists; expected a folder without a checkpoint")
    made = [p for p in (folder, *folder.parents) if not p.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    moved: list[Path] = []
    temporary = Path(tempfile.mkdtemp(prefix=".writing-", dir=folder))
    try:
        shards = _write_shards(temporary, tensors, max_shard_bytes, metadata)
        total = len(shards)
        names = [WEIGHTS] if total == 1 else [f"model-{i:05d}-of-{total:05d}.safetensors" for i in range(1, total + 1)]
        if total > 1:
            _write_index(temporary / WEIGHTS_INDEX, dict(zip(names, shards, strict=True)))
        for i, final in enumerate(names):
            moved.append(folder / final)
            os.replace(temporary / str(i), folder / final)
        if total > 1:
            # until this rename there is no checkpoint in the folder
            moved.append(folder / WEIGHTS_INDEX)
            os.replace(temporary / WEIGHTS_INDEX, folder / WEIGHTS_INDEX)
        _sync_folder(folder)
    except BaseException:
        for path in moved:
            path.unlink(missing_ok=True)
        shutil.rmtree(temporary, ignore_errors=True)
        with contextlib.suppress(OSError):  # a folder that something else came to use stays
            for path in made:
                path.rmdir()
        raise
    temporary.rmdir()
    return tuple(folder / name for name in names)


def _write_shards(
    temporary: Path, tensors: Iterable[tuple[str, np.ndarray]], max_shard_bytes: int, metadata: Mapping[str, str]
) -> list[dict[str, int]]:
    """Writes files "0", "1", ... and returns the bytes of each tensor of each."""
    shards: list[dict[str, int]] = []
    seen: set[str] = set()
    pending: dict[str, np.ndarray] = {}
    held = 0
    for name, array in tensors:
        if name in seen or name == "__metadata__":
            raise InputError(f"tensor name {name!r} occurs twice or is reserved; names must be unique")
        seen.add(name)
        array = np.asarray(array, order="C")
        if array.dtype.byteorder == ">":
            array = array.astype(array.dtype.newbyteorder("<"))
        if array.dtype not in _CODES:
            raise InputError(f"tensor {name!r} has dtype {array.dtype}; safetensors knows {', '.join(DTYPES)}")
        if pending and held + array.nbytes > max_shard_bytes:
            shards.append(_write_file(temporary / str(len(shards)), pending, metadata))
            pending, held = {}, 0
        pending[name] = array
        held += array.nbytes
        del array  # or it would outlive its file
    if pending or not shards:
        shards.append(_write_file(temporary / str(len(shards)), pending, metadata))
    return shards


def _write_file(path: Path, tensors: dict[str, np.ndarray], metadata: Mapping[str, str]) -> dict[str, int]:
    # widest dtype first, as the reference writer does: every tensor then starts at a multiple of its item size
    order = sorted(tensors, key=lambda name: -tensors[name].dtype.itemsize)
    header: dict[str, object] = {"__metadata__": dict(metadata)} if metadata else {}
    at = 0
    for name in order:
        array = tensors[name]
        size = prod(array.shape) * array.dtype.itemsize
        header[name] = {"dtype": _CODES[array.dtype], "shape": list(array.shape), "data_offsets": [at, at + size]}
        at += size
    raw = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    raw += b" " * (-len(raw) % 8)
    with path.open("wb") as f:
        f.write(len(raw).to_bytes(8, "little") + raw)
        for name in order:
            f.write(tensors[name].reshape(-1).view(np.uint8).data)
        f.flush()
        os.fsync(f.fileno())
    return {name: array.nbytes for name, array in tensors.items()}


def _write_index(path: Path, shards: Mapping[str, Mapping[str, int]]) -> None:
    weight_map = {name: file for file, sizes in shards.items() for name in sizes}
    total = sum(sum(sizes.values()) for sizes in shards.values())
    with path.open("w", encoding="utf-8") as f:
        json.dump({"metadata": {"total_size": total}, "weight_map": weight_map}, f, indent=2, ensure_ascii=False)
        f.flush()
        os.fsync(f.fileno())


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
