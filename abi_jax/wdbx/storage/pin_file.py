"""What readers of a store in a folder stand on: a file of each, locked by it, that means nothing when it is gone.

docs/wdbx-format.md, "Readers".
"""

import contextlib
import fcntl
import os
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from abi_jax.wdbx.storage.lock import flocked


@dataclass(frozen=True)
class PinFile:
    """A pin that is held: its file, locked. process: whose it is; a fork has it, too, and it is not the fork's."""

    path: Path
    file: IO[bytes]
    process: int

    def release(self) -> None:
        """Lets go of it; in a fork, of the fork's hold on it alone."""
        if self.process == os.getpid():
            with contextlib.suppress(OSError):
                self.path.unlink(missing_ok=True)
        self.file.close()


def write_pin(path: Path, partial: Path, data: bytes) -> PinFile | None:
    """Writes and locks a pin as `partial`, and names it `path` then. None where it cannot be written.

    Raises `FileNotFoundError` where it was taken away meanwhile, for what a crash left.
    """
    try:
        file = partial.open("xb")
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        file.write(data)
        file.flush()
        partial.rename(path)
        return PinFile(path, file, os.getpid())
    except FileNotFoundError:
        raise
    except OSError:
        return None


def read_pin(path: Path) -> bytes | None:
    """What a pin says; None, and it goes, where nobody holds it any more."""
    with contextlib.suppress(OSError), path.open("rb") as file:
        if not flocked(file, fcntl.LOCK_EX):
            return file.read()
        path.unlink()
    return None
