"""NumPy's own files, a part at a time: .npy mapped, .npz read as a stream."""

import zipfile
from pathlib import Path
from typing import IO

import numpy as np

from abi_jax.errors import InputError


def open_npy(path: Path) -> np.ndarray:
    """The array of a .npy file, mapped."""
    found: np.ndarray = np.load(path, mmap_mode="r", allow_pickle=False)
    return found


class ZippedArray:
    """An array of a .npz file, of which parts are read one behind the other."""

    def __init__(self, path: Path, name: str) -> None:
        self._path, self._name = path, name
        self._file, self.shape, self.dtype = self._open()
        self._at = 0

    def _open(self) -> tuple[IO[bytes], tuple[int, ...], np.dtype]:
        file = zipfile.ZipFile(self._path).open(f"{self._name}.npy")  # noqa: SIM115 (read as long as the array is)
        version = np.lib.format.read_magic(file)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, fortran, dtype = read(file)
        if dtype.hasobject or not shape or (fortran and len(shape) > 1):
            raise InputError(
                f"{self._path}: array {self._name!r} is of {dtype}, {shape}; expected rows of plain numbers"
            )
        return file, shape, dtype

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, part: slice) -> np.ndarray:
        start, stop, _ = part.indices(len(self))
        if start < self._at:
            self._file.close()
            self._file, _, _ = self._open()
            self._at = 0
        self._read(start - self._at)
        return self._read(stop - start)

    def whole(self) -> np.ndarray:
        """All of it."""
        return self[: len(self)]

    def _read(self, rows: int) -> np.ndarray:
        size = int(np.prod(self.shape[1:], dtype=np.int64)) * self.dtype.itemsize
        data = self._file.read(rows * size)
        if len(data) != rows * size:
            raise InputError(f"{self._path}: array {self._name!r} ends before its row {self._at + rows}")
        self._at += rows
        return np.frombuffer(data, self.dtype).reshape(rows, *self.shape[1:])


def open_npz(path: Path) -> dict[str, ZippedArray]:
    """The arrays of a .npz file by name."""
    try:
        with zipfile.ZipFile(path) as file:
            names = [name.removesuffix(".npy") for name in file.namelist()]
        return {name: ZippedArray(path, name) for name in names}
    except zipfile.BadZipFile:
        raise InputError(f"{path} is not a .npz file, or damaged") from None
