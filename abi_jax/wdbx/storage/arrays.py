"""Arrays of a segment: one step of an Orbax checkpoint, in which a chunk's file is the memory of its rows."""

import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import orbax.checkpoint as ocp
import tensorstore as ts
from orbax.checkpoint import type_handlers

from abi_jax.wdbx.errors import LACKING, DamagedError
from abi_jax.wdbx.storage.mapped import mapped

# Orbax warns at every step that it is not an OCDBT file, and has no arrays of devices, to be described.
_EXPECTED = "Skipping merge of OCDBT", "No jax.Array in TypeHandlerRegistry"
logging.getLogger("absl").addFilter(lambda record: not any(each in str(record.msg) for each in _EXPECTED))


UNSYNCED = ts.Context({"file_io_concurrency": {"limit": 128}, "file_io_sync": False})


class _Lent(np.ndarray):
    """An array that Orbax need not copy before it writes: nobody changes it meanwhile, since `save` waits."""

    def __deepcopy__(self, memo: dict[int, Any] | None, /) -> "_Lent":
        return self


class _Unsynced(type_handlers.NumpyHandler):
    """Writes arrays without waiting for the disk after every file and folder, as tensorstore does unless told."""

    async def serialize(
        self, values: Sequence[np.ndarray], infos: Sequence[Any], args: Sequence[Any] | None = None
    ) -> Sequence[Any]:
        for info in infos:
            info.ts_context = UNSYNCED
        return await super().serialize(values, infos, args)


def save_arrays(folder: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Writes `arrays` by name as an Orbax step: zarr, not compressed, not in one OCDBT file, a chunk an array.

    Nothing is durable when it returns: that is for who knows under which names it is to stay.
    """
    saving = ocp.PyTreeCheckpointHandler(
        use_ocdbt=False,
        use_compression=False,
        type_handler_registry=type_handlers.create_type_handler_registry((np.ndarray, _Unsynced())),
    )
    with ocp.Checkpointer(saving) as checkpointer:
        checkpointer.save(folder, args=ocp.args.PyTreeSave({name: each.view(_Lent) for name, each in arrays.items()}))


def open_arrays(folder: Path, files: Iterable[str]) -> dict[str, np.ndarray]:
    """The arrays of a step by name, mapped: nothing is read before it is used, and nothing reaches the files.

    files: those of the step by their path in it. Raises `DamagedError` where one that an array needs is missing, cannot
    be read or has another size than the array's description says, and `OSError` where the process lacks descriptors or
    memory.
    """
    return {path.split("/")[0]: _mapped(folder / path) for path in _descriptions(files)}


def read_arrays(folder: str, files: Iterable[str], held: Mapping[str, bytes]) -> dict[str, np.ndarray]:
    """The arrays of a step by name, of its files by their path in it; each is a copy.

    folder: what errors name. held: what the files hold. Raises `DamagedError` as `open_arrays` does.
    """
    made = {}
    for path in _descriptions(files):
        shape, dtype = _described(f"{folder}/{path}", held.get(path, b""))
        file = f"{path.removesuffix('/.zarray')}/{_chunk(shape)}"
        data = b"" if 0 in shape else held.get(file)
        size = prod(shape) * dtype.itemsize
        if data is None or len(data) != size:
            found = "is missing" if data is None else f"has {len(data)} bytes"
            raise DamagedError(f"{folder}/{file} {found}; expected {shape} of {dtype}")
        made[path.removesuffix("/.zarray")] = np.frombuffer(bytearray(data), dtype).reshape(shape)
    return made


def _descriptions(files: Iterable[str]) -> list[str]:
    return sorted(path for path in files if path.count("/") == 1 and path.endswith("/.zarray"))


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
    except OSError as error:
        if error.errno in LACKING:
            raise
        raise DamagedError(f"{about} does not describe an array; see abi wdbx verify") from None
    file = about.parent / _chunk(shape)
    if 0 in shape:
        return np.zeros(shape, dtype)
    try:
        return mapped(file, prod(shape) * dtype.itemsize).view(dtype).reshape(shape)
    except (OSError, ValueError) as error:
        if isinstance(error, OSError) and error.errno in LACKING:
            raise
        found = f"cannot be read ({error.strerror})" if isinstance(error, OSError) else error
        raise DamagedError(f"{file} {found}; expected {shape} of {dtype}") from None
