"""What `verify` finds."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from abi_jax.wdbx.errors import LACKING, StorageError

if TYPE_CHECKING:
    from abi_jax.wdbx.storage.base import Storage


@dataclass(frozen=True)
class Finding:
    """Something wrong: the file, what it holds, and what is wrong with it."""

    file: str
    holds: str
    wrong: str

    def __str__(self) -> str:
        return f"{self.file} ({self.holds}): {self.wrong}"


def wrong_file(storage: "Storage", name: str, digest: str) -> str | None:
    """What is wrong with a file that was sealed with a digest; None where it is whole.

    Raises `OSError` where it is not the file's fault that it cannot be read.
    """
    try:
        found = storage.digest(name)
    except OSError as error:
        if isinstance(error, StorageError) or error.errno in LACKING:
            raise
        return f"cannot be read: {error.strerror}"
    if found is None:
        return "is missing"
    return None if found == digest else "is not what was sealed"
