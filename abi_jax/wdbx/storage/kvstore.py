"""Objects by their keys in a key-value store of tensorstore: read, written under conditions, listed, deleted.

docs/wdbx-format.md, "Where a store may live", says what each kind of store does with conditions.
"""

import re
from collections.abc import Iterable, Mapping
from typing import Any

import tensorstore as ts

from abi_jax.wdbx.errors import StorageError

MISSING = b"\x02"  # what tensorstore calls the generation of an object that is not there
SECONDS = 60.0  # that a request may take, and
BYTES_A_SECOND = 1 << 20  # besides, what is written
WHOLE_SECONDS = 3600.0  # that reading many objects may take, of which nobody knows how large they are
LEASE_SECONDS = 8.0  # that a request about a lease may take, which must be renewed in time
LEASES = ("lock", "pins/")
REFUSED = ("NOT_FOUND", "INVALID_ARGUMENT")  # before anything was done; credentials may end before a repetition


class Objects:
    """Objects whose keys begin with one prefix, which is left out here.

    url: what errors name. sentinel: a key that is read after every listing; see `names`.
    """

    def __init__(self, url: str, store: ts.KvStore, sentinel: str = "") -> None:
        self.url = url
        self._store = store
        self._sentinel = sentinel

    def get(self, key: str) -> tuple[bytes | None, bytes]:
        """An object and its generation; None where there is none."""
        found = self._wait(self._store.read(key), key)
        return (found.value if found.state == "value" else None), found.stamp.generation

    def get_all(self, keys: Iterable[str]) -> dict[str, bytes]:
        """Objects by their keys, read at the same time; those that are not there are missing."""
        reads = {key: self._store.read(key) for key in keys}
        found = {key: self._wait(read, key, whole=True) for key, read in reads.items()}
        return {key: each.value for key, each in found.items() if each.state == "value"}

    def is_still(self, key: str, generation: bytes) -> bool:
        """Whether an object is of that generation; a server may say so, or send it once more."""
        found = self._wait(self._store.read(key, if_not_equal=generation), key)
        return bool(found.state == "unspecified" or (found.state == "value" and found.stamp.generation == generation))

    def put(self, key: str, data: bytes) -> bytes:
        """Writes an object, or replaces it; its generation."""
        return self._generation(self._wait(self._store.write(key, data), key, len(data)))

    def replace(self, key: str, data: bytes, generation: bytes) -> bytes | None:
        """Writes an object in the place of that of `generation` (`MISSING`: of none); its own.

        None where another is there. An object that says the same is this one: a request whose answer was lost is
        repeated, and then finds what it had written itself.
        """
        made = self._generation(self._wait(self._store.write(key, data, if_equal=generation), key, len(data)))
        return made or self._found_again(key, data)

    def create(self, key: str, data: bytes) -> bytes | None:
        """Writes an object that is not there; its generation. None where another one is."""
        return self.replace(key, data, MISSING)

    def create_all(self, objects: Mapping[str, bytes]) -> list[str]:
        """Writes objects that are not there, at the same time; the keys at which there are others."""
        going = {key: self._store.write(key, data, if_equal=MISSING) for key, data in objects.items()}
        size = sum(map(len, objects.values()))
        made = {key: self._generation(self._wait(each, key, size)) for key, each in going.items()}
        return [key for key in objects if not made[key] and self._found_again(key, objects[key]) is None]

    def names(self, prefix: str = "") -> list[str]:
        """Keys that begin with `prefix`, sorted.

        tensorstore takes a listing that Google refuses for one that has come to its end: whether this process may still
        read there is asked behind it.
        """
        wanted = (
            ts.KvStore.KeyRange(prefix, prefix[:-1] + chr(ord(prefix[-1]) + 1)) if prefix else ts.KvStore.KeyRange()
        )
        found = sorted(key.decode() for key in self._wait(self._store.list(wanted), prefix))
        if self._sentinel:
            self.get(self._sentinel)
        return found

    def delete(self, keys: Iterable[str]) -> None:
        """Takes objects away at the same time, if they are there."""
        for key, going in {key: self._store.write(key, None) for key in keys}.items():
            self._wait(going, key)

    def _generation(self, stamp: Any) -> bytes:
        generation: bytes = stamp.generation
        return generation

    def _found_again(self, key: str, data: bytes) -> bytes | None:
        there, generation = self.get(key)
        if there is None:
            raise StorageError(f"{self.url}/{key} was not written, and is not there; expected a bucket that takes it")
        return generation if there == data else None

    def _wait(self, going: Any, key: str, size: int = 0, whole: bool = False) -> Any:
        limit = LEASE_SECONDS if key.startswith(LEASES) else SECONDS + size / BYTES_A_SECOND
        limit = WHOLE_SECONDS if whole else limit
        try:
            return going.result(timeout=limit)
        except TimeoutError:
            raise StorageError(f"{self.url}/{key}: no answer for {limit:.0f} seconds") from None
        except Exception as error:  # tensorstore has no types of its own
            raise self._said(key, str(error)) from None

    def _said(self, key: str, error: str) -> StorageError:
        status, _, rest = error.partition(": ")
        detail = re.split(r" \[(?:http_|curl_|source)", rest)[0].strip() or status
        where = f"{self.url}/{key}".rstrip("/")
        if status in ("PERMISSION_DENIED", "UNAUTHENTICATED"):
            why = f"{where}: access is denied ({detail}); expected credentials that may read and write there"
        elif status == "NOT_FOUND":
            why = f"{where}: {detail}; expected a bucket that is there"
        else:
            why = f"{where}: {detail}; expected an object store that answers"
        return StorageError(why, uncertain=status not in REFUSED)
