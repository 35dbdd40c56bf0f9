"""Master keys: what wraps data keys. 32 bytes of one's own, or a key service that never lets go of its key."""

import base64
import binascii
import contextlib
import os
import secrets
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from cryptography.hazmat.primitives.keywrap import InvalidUnwrap, aes_key_unwrap, aes_key_wrap

from abi_jax.errors import InputError
from abi_jax.files import write_secret
from abi_jax.wdbx.errors import NoKeyError

KEY_BYTES = 32
ENVIRONMENT = "env:"


class MasterKey(Protocol):
    """Wraps data keys of 32 bytes."""

    def wrap(self, key: bytes) -> bytes:
        """A data key as it is stored."""

    def unwrap(self, wrapped: bytes) -> bytes:
        """The data key. Raises `NoKeyError` where this is not the key that it was wrapped with."""


@dataclass(frozen=True)
class LocalKey:
    """A master key that this process has: AES key wrap (RFC 3394)."""

    key: bytes = field(repr=False)

    def wrap(self, key: bytes) -> bytes:
        """A data key as it is stored."""
        return aes_key_wrap(self.key, key)

    def unwrap(self, wrapped: bytes) -> bytes:
        """The data key."""
        try:
            return aes_key_unwrap(self.key, wrapped)
        except (InvalidUnwrap, ValueError):
            raise NoKeyError("the store is encrypted under another key than the one given") from None


@dataclass(frozen=True)
class KeyService:
    """A master key that another service has: its two functions. What they raise is told as `NoKeyError`."""

    wrap_key: Callable[[bytes], bytes]
    unwrap_key: Callable[[bytes], bytes]

    def wrap(self, key: bytes) -> bytes:
        """A data key as it is stored."""
        try:
            return bytes(self.wrap_key(key))
        except Exception as error:
            raise NoKeyError(f"the key service did not wrap a data key: {error}") from error

    def unwrap(self, wrapped: bytes) -> bytes:
        """The data key."""
        try:
            key = bytes(self.unwrap_key(wrapped))
        except Exception as error:
            raise NoKeyError(f"the key service did not unwrap a data key: {error}") from error
        if len(key) != KEY_BYTES:
            raise NoKeyError(f"the key service unwrapped {len(key)} bytes; expected a data key of {KEY_BYTES}")
        return key


KeySource = bytes | str | Path | MasterKey


def read_master(key: KeySource) -> MasterKey:
    """A master key: 32 bytes, the path of a file, `env:NAME`, or an object with `wrap` and `unwrap`.

    A file holds 32 bytes, or these as hexadecimal or base64 text; a variable holds text. Raises `InputError` where
    there is no key; no message shows any part of one.
    """
    if isinstance(key, bytes | bytearray | memoryview):
        return _local(bytes(key), "the key given")
    if isinstance(key, str) and key.startswith(ENVIRONMENT):
        name = key.removeprefix(ENVIRONMENT)
        value = os.environ.get(name)
        if value is None:
            raise InputError(f"environment variable {name!r} is not set; expected a key of {KEY_BYTES} bytes in it")
        return _local(_decoded(value.strip().encode()), f"environment variable {name!r}")
    if isinstance(key, str | Path):
        try:
            data = Path(key).read_bytes()
        except (OSError, ValueError) as error:
            said = error.strerror if isinstance(error, OSError) else error
            raise InputError(f"{key}: {said}; expected a file that holds a key of {KEY_BYTES} bytes") from None
        return _local(data if len(data) == KEY_BYTES else _decoded(data.strip()), str(key))
    if callable(getattr(key, "wrap", None)) and callable(getattr(key, "unwrap", None)):
        return key
    raise InputError(
        f"key of type {type(key).__name__}: expected {KEY_BYTES} bytes, the path of a file, 'env:NAME', "
        "or an object with wrap and unwrap"
    )


def new_master(path: str | Path) -> LocalKey:
    """Writes a new key to a file that its owner alone can read; refuses to write over one."""
    key = secrets.token_bytes(KEY_BYTES)
    try:
        write_secret(path, key.hex().encode() + b"\n")
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}; expected a new file for the key") from None
    return LocalKey(key)


def _decoded(text: bytes) -> bytes:
    """The key that a text stands for, as hexadecimal or base64; the text where it is neither."""
    with contextlib.suppress(binascii.Error, ValueError):
        return binascii.unhexlify(text)
    with contextlib.suppress(binascii.Error, ValueError):
        return base64.b64decode(text.translate(bytes.maketrans(b"-_", b"+/")), validate=True)
    return text


def _local(key: bytes, source: str) -> LocalKey:
    if len(key) != KEY_BYTES:
        raise InputError(f"{source} holds {len(key)} bytes; expected a key of {KEY_BYTES}")
    return LocalKey(key)
