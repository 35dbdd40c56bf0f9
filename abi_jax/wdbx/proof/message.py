"""Reading what is hashed of a row back into the row. docs/wdbx-format.md, "Digests and proofs"."""

import struct
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np

from abi_jax.wdbx.digest import DOMAIN
from abi_jax.wdbx.spec import CollectionSpec

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True)
class MessageRow:
    """A row as its message tells it. since: versions from its segment's first to its birth."""

    id: str | int
    since: int
    vector: np.ndarray
    metadata: dict[str, Any]


def read_message(spec: CollectionSpec, message: bytes) -> MessageRow:
    """The row of a message that `digest.row_messages` made. Raises `ValueError` where it is none."""
    reader = _Reader(message)
    if reader.take(len(DOMAIN)) != DOMAIN:
        raise ValueError("not the message of a row")
    since = reader.number("<Q")
    vector = np.frombuffer(reader.take(spec.dim * spec.numpy_dtype.itemsize), spec.numpy_dtype)
    id_: Any = reader.number("<I" if spec.ids == "str" else "<q")
    fixed = [(name, kind, reader.number("<B"), reader.number(_width(kind))) for name, kind in spec.schema]
    if spec.ids == "str":
        id_ = reader.take(id_).decode()
    metadata = {}
    for name, kind, there, number in fixed:
        value = _value(reader, kind, number)
        if there not in (0, 1):
            raise ValueError(f"column {name} is neither there nor not")
        if there:
            metadata[name] = value
    reader.finish()
    return MessageRow(id_, since, vector, metadata)


class _Reader:
    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def take(self, count: int) -> bytes:
        taken = self._data[self._at : self._at + count]
        if len(taken) != count:
            raise ValueError("the message of a row ends too early")
        self._at += count
        return taken

    def number(self, layout: str) -> Any:
        return struct.unpack(layout, self.take(struct.calcsize(layout)))[0]

    def finish(self) -> None:
        if self._at != len(self._data):
            raise ValueError("the message of a row goes on behind the row")


def _width(kind: str) -> str:
    return {"float": "<d", "int": "<q", "time": "<q", "bool": "<B"}.get(kind, "<I")


def _value(reader: _Reader, kind: str, number: Any) -> Any:
    """A column's value: `number` itself, or as many bytes or elements of what follows."""
    made: dict[str, Callable[[], Any]] = {
        "str": lambda: reader.take(number).decode(),
        "bytes": lambda: reader.take(number),
        "bool": lambda: bool(number),
        "time": lambda: EPOCH + timedelta(microseconds=number),
        "list[int]": lambda: [reader.number("<q") for _ in range(number)],
        "list[str]": lambda: [reader.take(size).decode() for size in [reader.number("<I") for _ in range(number)]],
    }
    return made[kind]() if kind in made else number
