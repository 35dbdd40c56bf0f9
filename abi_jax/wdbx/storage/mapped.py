"""Files as memory. No descriptor is held: of a store with many segments a process would soon have too many.

`mmap` of Python and NumPy keeps one for each, since it may be asked to grow; a POSIX mapping needs none.
"""

import ctypes
import mmap
import os
import weakref
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

FAILED = ctypes.c_void_p(-1).value


@cache
def _libc() -> Any:
    made = ctypes.CDLL(None, use_errno=True)
    # off_t is as wide as a pointer wherever files may be larger than a segment
    made.mmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_ssize_t)
    made.mmap.restype = ctypes.c_void_p
    made.munmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t)
    return made


def mapped(path: Path, nbytes: int) -> np.ndarray:
    """A file of so many bytes, at least one, uint8 `[nbytes]`: read when it is used, and never written to.

    What is changed in memory stays there. The mapping goes with the last array that is a part of it. Raises `OSError`
    for what cannot be mapped, `ValueError` for a file of another size, which could not be read to its end.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        size = os.fstat(descriptor).st_size
        if size != nbytes:
            raise ValueError(f"has {size} bytes")
        access = mmap.PROT_READ | mmap.PROT_WRITE
        address = _libc().mmap(None, nbytes, access, mmap.MAP_PRIVATE, descriptor, 0)
        if address == FAILED:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number), str(path))
    finally:
        os.close(descriptor)
    held = (ctypes.c_uint8 * nbytes).from_address(address)
    # not when the process ends: threads may look at it to the last
    weakref.finalize(held, _libc().munmap, address, nbytes).atexit = False
    return np.frombuffer(memoryview(held), np.uint8)
