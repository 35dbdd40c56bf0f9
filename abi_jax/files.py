"""Files that are whole or not there, also after the power fails."""

import contextlib
import os
from pathlib import Path

from abi_jax.errors import InputError


def write_atomically(path: Path, text: str) -> None:
    """Writes a text file under another name first, so that what is at `path` is always whole.

    Raises `InputError` where it cannot be written, e.g. on a full disk; what was there stays.
    """
    partial = path.with_name(path.name + ".partial")
    try:
        with partial.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
        sync_folder(path.parent)
    except OSError as error:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
        raise InputError(f"{path} cannot be written: {error.strerror}") from None


def sync_folder(folder: Path) -> None:
    """Waits until the names in a folder are on disk; renaming a file writes its folder, which fsync leaves alone."""
    opened = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):  # not every file system can
            os.fsync(opened)
    finally:
        os.close(opened)
