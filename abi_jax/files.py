"""Files that are whole or not there, also after the power fails; and files that say that somebody is at work."""

import contextlib
import errno
import fcntl
import os
from pathlib import Path
from typing import IO

from abi_jax.errors import InputError


def write_atomically(path: Path, content: str | bytes) -> None:
    """Writes a file, text as UTF-8, under another name first, so that what is at `path` is always whole.

    Raises `InputError` where it cannot be written, e.g. on a full disk; what was there stays.
    """
    partial = path.with_name(path.name + ".partial")
    try:
        with partial.open("wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
        sync_folder(path.parent)
    except OSError as error:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
        raise InputError(f"{path} cannot be written: {error.strerror}") from None


def write_secret(path: str | Path, content: bytes) -> None:
    """Writes a new file that its owner alone can read, on disk when this returns. Raises `OSError`, also where there is
    one."""
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    sync_folder(Path(path).parent)


def sync_folder(folder: Path) -> None:
    """Waits until the names in a folder are on disk; renaming a file writes its folder, which fsync leaves alone."""
    opened = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):  # not every file system can
            os.fsync(opened)
    finally:
        os.close(opened)


def mark(path: Path) -> IO[str] | None:
    """Makes the file `path` and holds it until what is returned is closed or this process ends, however it ends.

    It tells others that something is going on, and stops nobody. None where there cannot be such a file.
    """
    file = None
    try:
        file = path.open("a", encoding="utf-8")
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        if file is not None:
            file.close()
        return None
    return file


def is_marked(path: Path) -> bool:
    """Whether another process holds `path`. The one that holds it must not ask: it would let go."""
    try:
        file = path.open("rb")
    except OSError:
        return False
    with file:
        try:
            fcntl.lockf(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError as error:
            return error.errno in (errno.EACCES, errno.EAGAIN)
    return False
