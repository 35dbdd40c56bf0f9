"""Data keys: made for one file each, wrapped with the master key, and all in `keys.json`."""

import hashlib
import hmac
import secrets
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from abi_jax.wdbx.crypto.master import KEY_BYTES, MasterKey
from abi_jax.wdbx.errors import DamagedError, NoKeyError, WdbxError
from abi_jax.wdbx.witness import checked_json, read_checked

if TYPE_CHECKING:
    from abi_jax.wdbx.storage.base import Storage

KEYS_FILE = "keys.json"
DOMAIN = "wdbx keys"
NAMES = 1  # the number of the key that tenants' tokens are made with
TOKEN_BYTES = 16


@dataclass(frozen=True)
class Entry:
    """A data key as it is stored.

    of: what it encrypts, the beginning of a file's name in the store. tenant: a token, "" for the store's own.
    wrapped: hexadecimal.
    """

    of: str
    tenant: str
    wrapped: str


class Keyring:
    """The data keys of a store, by number. A number is never used again. Unwrapped when they are first needed.

    lease: raises `FencedError` where another process writes to the store by now; asked before `keys.json` is written.
    """

    def __init__(
        self, storage: "Storage", store: bytes, master: MasterKey, entries: Mapping[int, Entry], following: int
    ) -> None:
        self.storage = storage
        self.store = store
        self._master = master
        self._entries = dict(entries)
        self._following = following
        self._keys: dict[int, bytes] = {}
        self._opened: Entry | None = None  # the first key's, as the master key is known to unwrap it
        self._doomed: set[int] = set()  # keys that no later keys.json has
        self._fresh: set[int] = set()  # keys whose file may not be there yet
        self._changing = threading.RLock()
        self.lease: Callable[[], None] = lambda: None

    @classmethod
    def create(cls, storage: "Storage", store: bytes, master: MasterKey) -> "Keyring":
        """Makes `keys.json` of a new store."""
        made = cls(storage, store, master, {}, NAMES)
        made.new([("", "")])
        return made

    @classmethod
    def open(cls, storage: "Storage", store: bytes, master: MasterKey) -> "Keyring":
        """Reads `keys.json`. Raises `NoKeyError` where `master` is not the key it was written with."""
        entries, following = read_keys(storage, store)
        made = cls(storage, store, master, entries, following)
        made.key(NAMES)
        return made

    @property
    def entries(self) -> dict[int, Entry]:
        """All data keys by number, as they are stored."""
        with self._changing:
            return dict(self._entries)

    def new(self, wanted: Sequence[tuple[str, str]], there: bool = False) -> list[int]:
        """Makes data keys for what they encrypt and tenants' tokens; their numbers, when they are durable.

        there: whether what they encrypt is there already; otherwise this process is about to write it.
        """
        with self._changing:
            self.catch_up()
            keys = {self._following + i: secrets.token_bytes(KEY_BYTES) for i in range(len(wanted))}
            made = {
                number: Entry(of, tenant, self._master.wrap(keys[number]).hex())
                for number, (of, tenant) in zip(keys, wanted, strict=True)
            }
            self._put(self._entries | made, self._following + len(wanted))
            self._keys |= keys
            self._fresh |= set() if there else set(made)
            return list(made)

    def key(self, number: int) -> bytes:
        """A data key. Raises `DamagedError` where there is none of that number, `NoKeyError` where it does not open.

        Another process may have changed the master key since: then keys that were opened before stay as they are.
        """
        found = self._keys.get(number)
        if found is None:
            with self._changing:
                if number not in self._entries:  # another process may have made it since
                    self._entries, self._following = read_keys(self.storage, self.store)
                if number not in self._entries:
                    raise DamagedError(
                        f"{self.storage}/{KEYS_FILE} has no data key {number}; what it encrypted cannot be read"
                    )
                found = self._keys[number] = self._unwrapped(number)
                if number == NAMES:
                    self._opened = self._entries[NAMES]
        return found

    def _unwrapped(self, number: int) -> bytes:
        try:
            return self._master.unwrap(bytes.fromhex(self._entries[number].wrapped))
        except NoKeyError as error:
            if self._opened in (None, self._entries.get(NAMES)):
                raise
            raise NoKeyError(
                f"{self.storage}/{KEYS_FILE} was wrapped with another master key since the store was opened (rotated): "
                f"data key {number} needs that; open the store again with the new key"
            ) from error

    def cipher(self, number: int) -> AESGCM:
        """AES-256-GCM with a data key."""
        return AESGCM(self.key(number))

    def number(self, of: str) -> int:
        """The newest data key of a step. Raises `DamagedError` where there is none."""
        for _ in range(2):
            with self._changing:
                found = [number for number, entry in self._entries.items() if entry.of == of]
                if found:
                    return max(found)
                self._entries, self._following = read_keys(self.storage, self.store)
        raise DamagedError(f"{self.storage}/{KEYS_FILE} has no data key of {of}, which cannot be read")

    def token(self, tenant: str) -> str:
        """What `keys.json` calls a tenant: a code that says nothing to whoever has no key."""
        if not tenant:
            return ""
        return hmac.digest(self.key(NAMES), b"abi-jax/wdbx tenant\0" + tenant.encode(), "sha256")[:TOKEN_BYTES].hex()

    def of_tenant(self, tenant: str) -> list[int]:
        """Numbers of the data keys of a tenant's token."""
        return [number for number, entry in self.entries.items() if entry.tenant == tenant]

    def drop(self, numbers: Iterable[int]) -> None:
        """Takes data keys away for good: now, or, where that fails, whenever `keys.json` is next written."""
        with self._changing:
            self._doomed |= set(numbers)
            for number in self._doomed:
                self._keys.pop(number, None)
            self.catch_up()
            if self._doomed & set(self._entries):
                self._put(self._entries, self._following)

    def unused(self, there: Callable[[str], bool]) -> set[int]:
        """Numbers of the keys of what is no longer there; not those of what this process has yet to write."""
        with self._changing:
            entries = {number: entry for number, entry in self._entries.items() if entry.of}
            gone = {number for number, entry in entries.items() if not there(entry.of)}
            self._fresh &= gone
            return gone - self._fresh

    def rotate(self, master: MasterKey) -> None:
        """Wraps every data key with another master key, and from here on uses that.

        Raises `WdbxError` where `keys.json` could not be written, and says which of the two keys opens it then.
        """
        with self._changing:
            self.catch_up()
            wrapped = {
                number: Entry(entry.of, entry.tenant, master.wrap(self.key(number)).hex())
                for number, entry in self._entries.items()
                if number not in self._doomed
            }
            if any(master.unwrap(bytes.fromhex(entry.wrapped)) != self.key(n) for n, entry in wrapped.items()):
                raise WdbxError("the new key does not unwrap what it wrapped; nothing has changed")
            try:
                self._put(wrapped, self._following)
            except OSError as error:
                if not self._is_stored(wrapped):
                    raise WdbxError(f"nothing has changed: {KEYS_FILE} was not written: {error.strerror}") from error
                self._use(master, wrapped)
                raise WdbxError(
                    f"{KEYS_FILE} is wrapped with the new key, but a power cut may bring back what it was: "
                    f"{error.strerror}; keep both keys until rotating succeeds"
                ) from error
            except BaseException:
                if self._is_stored(wrapped):
                    self._use(master, wrapped)
                raise
            self._use(master, self._entries)

    def _use(self, master: MasterKey, entries: Mapping[int, Entry]) -> None:
        self._entries, self._master, self._opened = dict(entries), master, entries.get(NAMES)

    def _is_stored(self, entries: Mapping[int, Entry]) -> bool:
        """Whether `keys.json` holds `entries`, as far as can be read."""
        try:
            return read_keys(self.storage, self.store)[0] == entries
        except (OSError, WdbxError):
            return False

    def catch_up(self) -> None:
        """Reads what is stored: a writer that has been fenced and does not know it yet must not undo its successor.

        Raises `FencedError` where there is one, `WdbxError` where `keys.json` is wrapped with another master key by
        now: what is wrapped with this one must not come beside that.
        """
        if not self._entries:
            return
        self.lease()
        entries, following = read_keys(self.storage, self.store)
        if entries.get(NAMES) != self._entries.get(NAMES) and not self._opens(entries.get(NAMES)):
            raise WdbxError(
                f"{self.storage}/{KEYS_FILE} is wrapped with another master key than this process has; nothing was "
                "written: open the store again with that key"
            )
        self._entries, self._following = entries, max(self._following, following)

    def _opens(self, entry: Entry | None) -> bool:
        """Whether the master key unwraps the first data key from what `entry` says."""
        try:
            return entry is not None and self._master.unwrap(bytes.fromhex(entry.wrapped)) == self.key(NAMES)
        except NoKeyError:
            return False

    def _put(self, entries: Mapping[int, Entry], following: int) -> None:
        entries = {number: entry for number, entry in entries.items() if number not in self._doomed}
        said = {
            "store": self.store.hex(),
            "following": following,
            "keys": {str(number): asdict(entry) for number, entry in entries.items()},
        }
        self.storage.put(KEYS_FILE, checked_json(DOMAIN, said))
        self._entries, self._following = entries, following


def read_keys(storage: "Storage", store: bytes) -> tuple[dict[int, Entry], int]:
    """What `keys.json` holds: data keys by number, and the next number. Raises `DamagedError` where it is not whole."""
    data = storage.read(KEYS_FILE)
    name = f"{storage}/{KEYS_FILE}"
    if data is None:
        raise DamagedError(f"{name} is missing; without it nothing in the store can be read")
    said: dict[str, Any] = read_checked(DOMAIN, name, data)
    if said.get("store") != store.hex():
        raise DamagedError(f"{name} is of store {said.get('store')}; expected {store.hex()}")
    try:
        entries = {int(number): Entry(**entry) for number, entry in said["keys"].items()}
        return entries, int(said["following"])
    except (KeyError, TypeError, ValueError, AttributeError):
        raise DamagedError(f"{name} does not list data keys") from None


def derived(key: bytes, purpose: str) -> bytes:
    """A key of 32 bytes for another purpose than encrypting."""
    return hmac.new(key, b"abi-jax/" + purpose.encode() + b"\0", hashlib.sha256).digest()
