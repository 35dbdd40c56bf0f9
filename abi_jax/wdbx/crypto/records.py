"""Payloads of records, encrypted: each opens at its own version and under its own head alone. And signed links."""

from collections.abc import Callable
from dataclasses import replace

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from abi_jax.errors import InputError
from abi_jax.wdbx.crypto.keyring import KEYS_FILE, Keyring
from abi_jax.wdbx.crypto.seal_codes import with_code
from abi_jax.wdbx.crypto.signatures import sign_link
from abi_jax.wdbx.errors import ColumnsChangedError, DamagedError, WdbxError
from abi_jax.wdbx.log.commit import Draft
from abi_jax.wdbx.log.record import Flag, Head, Kind, Record

TAG = 16
LONGEST = (1 << 31) - 1  # bytes that are encrypted at once
NONCE = (0xFFFFFFFF).to_bytes(4, "little")
TO_COLLECTIONS = frozenset({Kind.UPSERT, Kind.DELETE, Kind.DROP, Kind.SETTINGS, Kind.COLUMNS})  # that are there
PLAIN = frozenset({Kind.SEAL})  # says what whoever has no key needs to verify


class RecordSeals:
    """What becomes of records of a log file before they are written; see `log.commit.Seals`.

    Every tenant has a data key in every file, made when it is first needed.
    """

    def __init__(
        self,
        store: bytes,
        ring: Keyring | None,
        signer: Ed25519PrivateKey | None,
        log: str,
        dropped: Callable[[int], bool] = lambda _: False,
        columns: Callable[[int], int | None] = lambda _: None,
    ) -> None:
        """log: the file's name. ring, signer: None where records are not encrypted, or not signed.

        dropped: whether a collection was. columns: how many it has, None where that is not known.
        """
        self._store = store
        self._ring = ring
        self._signer = signer
        self._log = log
        self._keys: dict[str, int] = {}
        self._dropped = dropped
        self._columns = columns
        self._dropping: set[int] = set()  # by drafts that may be written together with the next
        self.erased: set[int] = set()  # collections to which nothing is written any more

    def refused(self, draft: Draft) -> Exception | None:
        """Why a draft can no longer be written, None where it can."""
        number = draft.collection
        if number in self.erased:
            return WdbxError(f"collection {number} was erased")
        if draft.kind in TO_COLLECTIONS and (number in self._dropping or self._dropped(number)):
            return WdbxError(f"collection {number} was dropped; expected one that is there")
        if draft.columns is not None and self._columns(number) not in (None, draft.columns):
            return ColumnsChangedError(f"collection {number} has got columns; expected rows that have them")
        if draft.kind is Kind.DROP:
            self._dropping.add(number)
        return None

    def begin(self, log: str) -> None:
        """Goes on in another log file."""
        self._log, self._keys = log, {}

    def failed(self) -> None:
        """What was sealed last was not written: its version will be another one, which needs another key."""
        self._keys = {}
        self._dropping = set()

    def forget(self, tenant: str) -> None:
        """Uses a tenant's key no more: it was taken away."""
        self._keys.pop(tenant, None)

    def seal(self, head: Head, draft: Draft, previous: bytes) -> tuple[Head, bytes]:
        """A head with flags, data key and length, and the payload as it is stored. previous: the link before."""
        if self._signer is not None:
            head = replace(head, flags=head.flags | Flag.SIGNED)
        if self._ring is None:
            return replace(head, length=len(draft.payload)), draft.payload
        if draft.kind in PLAIN:
            return with_code(self._ring, head, draft.payload, previous)
        if len(draft.payload) > LONGEST:
            raise InputError(f"{len(draft.payload)} bytes in one write; expected at most {LONGEST}: write it in parts")
        if draft.tenant not in self._keys:
            self._keys[draft.tenant] = self._new_key(self._ring, draft.tenant)
        key, length = self._keys[draft.tenant], len(draft.payload) + TAG
        head = replace(head, flags=head.flags | Flag.ENCRYPTED, data_key=key, length=length)
        return head, self._ring.cipher(key).encrypt(_nonce(head), draft.payload, _place(self._store, head))

    def _new_key(self, ring: Keyring, tenant: str) -> int:
        try:
            return ring.new([(self._log, ring.token(tenant))], there=True)[0]
        except OSError as error:
            raise WdbxError(f"nothing was written: {KEYS_FILE}: {error.strerror}") from error

    def sign(self, head: Head) -> bytes:
        """What stands behind the payload."""
        return b"" if self._signer is None else sign_link(self._signer, self._store, head.link)


def open_record(ring: Keyring | None, record: Record) -> Record:
    """A record with what it holds. ring: the data keys of an encrypted store, None for a plain one.

    Raises `DamagedError` where it is not as somebody with the key wrote it.
    """
    head = record.head
    encrypted = bool(head.flags & Flag.ENCRYPTED)
    if encrypted != (ring is not None and head.kind not in PLAIN):
        said = "is" if encrypted else "is not"
        raise DamagedError(f"version {head.version} {said} encrypted; expected it as its store is")
    if ring is None or not encrypted:
        return record
    try:
        payload = ring.cipher(head.data_key).decrypt(_nonce(head), record.payload, _place(ring.store, head))
    except InvalidTag:
        raise DamagedError(f"version {head.version} does not open: it was changed, or is of another store") from None
    return Record(head, payload, record.signature)


def _nonce(head: Head) -> bytes:
    return NONCE + head.version.to_bytes(8, "little")


def _place(store: bytes, head: Head) -> bytes:
    return b"abi-jax/wdbx record\0" + store + head.encode()[4:64]
