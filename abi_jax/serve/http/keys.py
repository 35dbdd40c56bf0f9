"""Keys that open the server: a file of their hashes, with a role, a tenant and an end each.

    keys:
      - {name: laptop, sha256: 9f86d0..., role: writer, tenant: acme, expires: 2027-01-01T00:00:00Z}

A key is 32 random bytes, so its SHA-256 needs no salt and no stretching: there is nothing to guess.
"""

import hashlib
import hmac
import logging
import re
import secrets
import time
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from abi_jax.config import dump_yaml, load
from abi_jax.errors import InputError
from abi_jax.files import write_atomically
from abi_jax.wdbx.policy import Role

LOG = logging.getLogger("abi_jax.serve.http")
PREFIX = "abi-"
_DIGEST = re.compile("[0-9a-f]{64}")
TENANT = re.compile(r"[A-Za-z0-9_-]{1,64}")  # no dot, which ends it in names of collections
_NAME = re.compile(r"[A-Za-z0-9._@-]{1,128}")
_GONE = (0, 0)
LOOK = 1.0  # seconds between two looks at whether the file has changed


@dataclass(frozen=True)
class Key:
    """One key, without the secret. expires: ISO 8601, empty for never.

    requests_per_minute, tokens_per_minute: 0 is no limit; tokens are those of prompts and answers.
    """

    name: str
    sha256: str
    role: str = "reader"
    tenant: str = ""
    expires: str = ""
    requests_per_minute: float = 0.0
    tokens_per_minute: float = 0.0

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name):
            raise InputError(f"name = {self.name!r}; expected letters, digits and . _ @ -")
        if not _DIGEST.fullmatch(self.sha256):
            raise InputError(f"sha256 of key {self.name!r} is not 64 hexadecimal digits")
        if self.role.upper() not in Role.__members__:
            names = ", ".join(each.name.lower() for each in Role)
            raise InputError(f"role = {self.role!r} of key {self.name!r}; expected one of {names}")
        if self.tenant and not TENANT.fullmatch(self.tenant):
            raise InputError(f"tenant = {self.tenant!r} of key {self.name!r}; expected letters, digits, _ and -")
        if min(self.requests_per_minute, self.tokens_per_minute) < 0:
            raise InputError(f"limits of key {self.name!r}: expected numbers from 0")
        self.ends()

    def ends(self) -> float | None:
        """When it expires, in seconds of `time.time`."""
        if not self.expires:
            return None
        try:
            when = datetime.fromisoformat(self.expires)
        except ValueError:
            raise InputError(
                f"expires = {self.expires!r} of key {self.name!r}; expected e.g. 2027-01-01T00:00:00Z"
            ) from None
        return (when if when.tzinfo else when.replace(tzinfo=UTC)).timestamp()


@dataclass(frozen=True)
class KeyFile:
    """What a file of keys holds."""

    keys: tuple[Key, ...] = ()

    def __post_init__(self) -> None:
        for what in ("name", "sha256"):
            values = [getattr(key, what) for key in self.keys]
            if twice := sorted({value for value in values if values.count(value) > 1}):
                raise InputError(f"{what} {twice[0]!r} stands for two keys; expected each once")


@dataclass(frozen=True)
class Principal:
    """Who asks, and what he may: a key's, or a token's."""

    name: str
    role: Role
    tenant: str = ""
    requests_per_minute: float = 0.0
    tokens_per_minute: float = 0.0

    @property
    def share(self) -> str:
        """With whom it shares what everybody gets a part of: all of a tenant, else nobody."""
        return f"tenant {self.tenant}" if self.tenant else f"key {self.name}"


class KeyRing:
    """The keys of a file, which may change while it is used. A file that is gone opens nothing."""

    def __init__(self, path: Path) -> None:
        """Raises `InputError` for a file that cannot be read."""
        self.path = path
        self._stamp = self._look()
        self._keys = load(KeyFile, path, env={}).keys
        self._looked = time.monotonic()

    def find(self, secret: str) -> tuple[Key, bool] | None:
        """The key with this secret, and whether it is still good; None for none. Takes as long for every secret."""
        self._refresh()
        digest = digest_of(secret)
        found = None
        for key in self._keys:
            if hmac.compare_digest(key.sha256, digest):
                found = key
        if found is None:
            return None
        ends = found.ends()
        return found, ends is None or time.time() < ends

    def _refresh(self) -> None:
        now = time.monotonic()
        if now - self._looked < LOOK:
            return
        self._looked = now
        stamp = self._look()
        if stamp == self._stamp:
            return
        self._stamp = stamp
        if stamp == _GONE:
            self._keys = ()
            LOG.error("the file of keys %s is gone: every key is refused until there is one", self.path)
            return
        try:
            self._keys = load(KeyFile, self.path, env={}).keys
        except InputError as error:  # half a file opens nothing more and closes nothing
            LOG.error("the keys stay as they were: %s", error)

    def _look(self) -> tuple[int, int]:
        try:
            about = self.path.stat()
        except OSError:
            return _GONE
        return (about.st_mtime_ns, about.st_size)


def digest_of(secret: str) -> str:
    """What is kept of a key."""
    return hashlib.sha256(secret.encode()).hexdigest()


def add_key(path: Path, key: Key) -> str:
    """Adds a key to a file, which is made if need be, and returns its secret, which is kept nowhere.

    `key.sha256` is replaced. Raises `InputError` for a name that is there already.
    """
    secret = PREFIX + secrets.token_urlsafe(32)
    known = load(KeyFile, path, env={}) if path.exists() else KeyFile()
    changed = KeyFile((*known.keys, replace(key, sha256=digest_of(secret))))
    write_atomically(path, dump_yaml(changed))
    path.chmod(0o600)
    return secret
