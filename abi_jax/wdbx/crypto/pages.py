"""Arrays of a step as encrypted pages: each opens in its own place alone, and several at a time.

docs/wdbx-format.md, "Encryption".
"""

import json
import os
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from math import prod
from typing import Any

import ml_dtypes  # noqa: F401  its dtypes have names for NumPy from here on
import numpy as np
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from abi_jax.lineage_digest import canonical
from abi_jax.wdbx.crypto.keyring import derived
from abi_jax.wdbx.crypto.rows import SealedRows
from abi_jax.wdbx.errors import DamagedError

PAGE = 64 << 10  # bytes of what is encrypted
GRAIN = 256  # an array that is smaller than a page is one of so many bytes, or a multiple
TAG = 16
SALT = 16
ABOUT = "about"  # the array that says what the others are
PAGES_A_JOB = 64
WORTH_THREADS = 256  # pages
THREADS = min(8, os.cpu_count() or 1)


class StepKey:
    """What opens and seals the pages of one step: its data key, and its place."""

    def __init__(self, key: bytes, store: bytes, step: str) -> None:
        self.key = key
        self.step = step
        self._cipher = AESGCM(key)
        self._domain = b"abi-jax/wdbx page\0" + store + step.encode() + b"\0"

    def seal(self, number: int, name: str, data: np.ndarray) -> np.ndarray:
        """Array `name`, `number` in the order of names, as pages: uint8 `[pages, bytes + 16]`. data: uint8 `[n]`."""
        size = min(PAGE, max(1, -(-len(data) // GRAIN)) * GRAIN)
        pages = max(1, -(-len(data) // size))
        made = np.empty((pages, size + TAG), np.uint8)
        last = np.zeros(size, np.uint8)
        rest = data[(pages - 1) * size :]
        last[: len(rest)] = rest

        def work(start: int) -> None:
            for page in range(start, min(start + PAGES_A_JOB, pages)):
                plain = last if page == pages - 1 else data[page * size : (page + 1) * size]
                place = self._place(name, page, pages)
                self._cipher.encrypt_into(_nonce(number, page), plain.data, place, made[page].data)

        _in_threads(work, pages)
        return made

    def open(self, number: int, name: str, frames: np.ndarray) -> np.ndarray:
        """What `seal` made pages of, with zeros behind it: uint8 `[n]`. Raises `DamagedError` with the first page that
        does not open."""
        made = np.empty((len(frames), frames.shape[1] - TAG), np.uint8)
        self.open_into(number, name, frames, 0, made)
        return made.reshape(-1)

    def open_into(self, number: int, name: str, frames: np.ndarray, first: int, made: np.ndarray) -> None:
        """Opens pages from `first` on into `made`, uint8 `[pages, bytes]`; many of them in several threads."""
        pages = len(frames)

        def work(start: int) -> None:
            for i in range(start, min(start + PAGES_A_JOB, len(made))):
                page = first + i
                try:
                    place = self._place(name, page, pages)
                    self._cipher.decrypt_into(_nonce(number, page), frames[page].data, place, made[i].data)
                except InvalidTag:
                    raise DamagedError(
                        f"{self.step}/{name}: page {page} of {pages} does not open: it was changed, or is of another "
                        "place or store"
                    ) from None

        _in_threads(work, len(made))

    def salts(self, rows: int, start: int = 0) -> np.ndarray:
        """16 bytes a row that nobody without the key can tell, for `rows` rows from `start` on: uint8 `[rows, 16]`."""
        counter = modes.CTR(start.to_bytes(SALT, "big"))
        stream = Cipher(algorithms.AES(derived(self.key, "wdbx salt")), counter).encryptor()
        return np.frombuffer(stream.update(bytes(rows * SALT)), np.uint8).reshape(rows, SALT)

    def _place(self, name: str, page: int, pages: int) -> bytes:
        return self._domain + name.encode() + b"\0" + page.to_bytes(8, "little") + pages.to_bytes(8, "little")


class SealedArrays(Mapping[str, np.ndarray]):
    """The arrays of an encrypted step by name. One is opened when it is first asked for, and kept."""

    def __init__(self, key: StepKey, frames: Mapping[str, np.ndarray]) -> None:
        self._key = key
        self._frames = frames
        self._names = sorted(frames)
        self._opened: dict[str, np.ndarray] = {}
        for name, array in frames.items():
            if array.ndim != 2 or array.dtype != np.uint8 or array.shape[1] <= TAG:
                raise DamagedError(f"{key.step}/{name} does not hold pages, but {array.dtype} of shape {array.shape}")
        if ABOUT not in frames:
            raise DamagedError(f"{key.step} has no array {ABOUT!r}; see abi wdbx verify")
        self._about = _read_about(key.step, self._open(ABOUT))
        if sorted([*self._about, ABOUT]) != self._names:
            raise DamagedError(f"{key.step} has the arrays {self._names}; expected {sorted([*self._about, ABOUT])}")

    def __getitem__(self, name: str) -> np.ndarray:
        if name not in self._opened:
            dtype, shape = self._about[name]
            data = self._open(name)[: dtype.itemsize * prod(shape)]
            self._opened[name] = data.view(dtype).reshape(shape)
        return self._opened[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._about)

    def __len__(self) -> int:
        return len(self._about)

    def __contains__(self, name: object) -> bool:
        return name in self._about

    def rows(self, name: str) -> SealedRows:
        """An array of which a page is opened when a row in it is looked at."""
        dtype, shape = self._about[name]
        number, frames = self._names.index(name), self._frames[name]

        def opener(first: int, last: int, made: np.ndarray) -> None:
            assert len(made) == last - first
            self._key.open_into(number, name, frames, first, made)

        return SealedRows(dtype, shape, frames.shape[1] - TAG, len(frames), opener)

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of an array, which is not opened for it."""
        return self._about[name][1]

    def salts(self, rows: int) -> np.ndarray:
        """Salts of the digests of `rows` rows, uint8 `[rows, 16]`."""
        return self._key.salts(rows)

    def _open(self, name: str) -> np.ndarray:
        return self._key.open(self._names.index(name), name, self._frames[name])


def seal_arrays(key: StepKey, arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The arrays of a step as they are stored: pages of each, and of what they are."""
    about = canonical({name: [array.dtype.name, list(array.shape)] for name, array in arrays.items()})
    framed = len(about).to_bytes(8, "little") + about
    whole = {name: _bytes(array) for name, array in arrays.items()} | {ABOUT: np.frombuffer(framed, np.uint8)}
    return {name: key.seal(number, name, whole[name]) for number, name in enumerate(sorted(whole))}


def _read_about(step: str, data: np.ndarray) -> dict[str, tuple[np.dtype, tuple[int, ...]]]:
    try:
        framed = data.tobytes()
        said: dict[str, Any] = json.loads(framed[8 : 8 + int.from_bytes(framed[:8], "little")])
        return {name: (np.dtype(dtype), tuple(shape)) for name, (dtype, shape) in said.items()}
    except (ValueError, TypeError, AttributeError):
        raise DamagedError(f"{step} does not say what its arrays are") from None


def _bytes(array: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8)


def _nonce(number: int, page: int) -> bytes:
    return number.to_bytes(4, "little") + page.to_bytes(8, "little")


def _in_threads(work: Any, pages: int) -> None:
    starts = range(0, pages, PAGES_A_JOB)
    if pages < WORTH_THREADS:
        for start in starts:
            work(start)
        return
    with ThreadPoolExecutor(THREADS) as pool:
        list(pool.map(work, starts))
