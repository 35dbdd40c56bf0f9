"""Arrays of a segment: one step of an Orbax checkpoint, in which a chunk's file is the memory of its rows."""

import json
import logging
from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import orbax.checkpoint as ocp

from abi_jax.wdbx.errors import DamagedError

# Orbax warns at every step that is not an OCDBT file that there are no OCDBT files to merge.
logging.getLogger("absl").addFilter(lambda record: "Skipping merge of OCDBT" not in str(record.msg))


class _Lent(np.ndarray):
    """An array that Orbax need not copy before it writes: nobody changes it meanwhile, since `save` waits."""

    def __deepcopy__(self, memo: dict[int, Any] | None, /) -> "_Lent":
        return self


def save_arrays(folder: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Writes `arrays` by name as an Orbax step: zarr, not compressed, not in one OCDBT file, a chunk an array."""
    saving = ocp.PyTreeCheckpointHandler(use_ocdbt=False, use_compression=False)
    with ocp.Checkpointer(saving) as checkpointer:
        checkpointer.save(folder, args=ocp.args.PyTreeSave({name: each.view(_Lent) for name, each in arrays.items()}))


def open_arrays(folder: Path) -> dict[str, np.ndarray]:
    """The arrays of a step by name, mapped: nothing is read before it is used, and nothing reaches the files.

    Raises `DamagedError` where an array's file is missing or has another size than its description says.
    """
    described = sorted(folder.glob("*/.zarray"))
    return {about.parent.name: _mapped(about) for about in described}


def read_arrays(folder: str, files: Mapping[str, bytes]) -> dict[str, np.ndarray]:
    """The arrays of a step by name, of its files by their path in it; each is a copy.

    folder: what errors name. Raises `DamagedError` as `open_arrays` does.
    """
    made = {}
    for path in sorted(path for path in files if path.count("/") == 1 and path.endswith("/.zarray")):
        shape, dtype = _described(f"{folder}/{path}", files[path])
        file = f"{path.removesuffix('/.zarray')}/{_chunk(shape)}"
        data = b"" if 0 in shape else files.get(file)
        size = prod(shape) * dtype.itemsize
        if data is None or len(data) != size:
            found = "is missing" if data is None else f"has {len(data)} bytes"
            raise DamagedError(f"{folder}/{file} {found}; expected {shape} of {dtype}")
        made[path.removesuffix("/.zarray")] = np.frombuffer(bytearray(data), dtype).reshape(shape)
    return made


def _described(name: str, about: bytes) -> tuple[tuple[int, ...], np.dtype]:
    try:
        said: dict[str, Any] = json.loads(about)
        return tuple(said["shape"]), np.dtype(said["dtype"])
    except (ValueError, KeyError, TypeError):
        raise DamagedError(f"{name} does not describe an array; see abi wdbx verify") from None


def _chunk(shape: tuple[int, ...]) -> str:
    return ".".join("0" * max(1, len(shape)))


def _mapped(about: Path) -> np.ndarray:
    try:
        shape, dtype = _described(str(about), about.read_bytes())
    except OSError:
        raise DamagedError(f"{about} does not describe an array; see abi wdbx verify") from None
    file = about.parent / _chunk(shape)
    if 0 in shape:
        return np.zeros(shape, dtype)
    try:
        return np.memmap(file, dtype, "c", shape=shape)
    except (OSError, ValueError) as error:
        raise DamagedError(f"{file}: {error}; expected {shape} of {dtype}") from None
