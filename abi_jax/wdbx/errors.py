"""What can go wrong with a store that is nobody's bad input."""

import errno

from abi_jax.errors import InputError

LACKING = (errno.EMFILE, errno.ENFILE, errno.ENOMEM)  # descriptors, memory: what says nothing of a file


class WdbxError(InputError):
    """A store cannot do what it was asked; the message says why, and nothing has changed."""


class NoCollectionError(WdbxError):
    """A store has no collection of that name, or no more.

    Those that it has are a note of the exception, since whoever its message is told may not know of them.
    """


class ColumnsChangedError(WdbxError):
    """A collection has other columns by now than rows that were to be written; they are written with those."""


class LockedError(WdbxError):
    """Another process writes to the store."""


class FencedError(WdbxError):
    """Another process has taken the store over; what this one had not yet acknowledged may be in it or not."""


class StorageError(WdbxError, OSError):
    """An object store did not do what it was asked, or did not answer; the message names its URL, and why.

    uncertain: whether what was to be written may be there all the same, or may yet come to be.
    """

    def __init__(self, message: str, uncertain: bool = True) -> None:
        super().__init__(errno.EIO, message)
        self.errno, self.strerror, self.uncertain = errno.EIO, message, uncertain

    def __str__(self) -> str:
        return str(self.strerror)


class DamagedError(WdbxError):
    """What is stored is not what was written; see `abi wdbx verify`."""


class ProofError(WdbxError):
    """A proof does not show what it says, or not for the receipt or link it was checked with."""


class NoKeyError(WdbxError):
    """The store is encrypted, and the key that was given, if any, does not open it."""


class ForbiddenError(WdbxError):
    """A policy does not allow what was asked."""
