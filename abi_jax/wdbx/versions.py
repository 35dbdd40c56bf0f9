"""Finding versions: by number, by tag, by time."""

from bisect import bisect_right
from collections.abc import Iterable
from datetime import UTC, datetime

from abi_jax.errors import InputError
from abi_jax.wdbx.contents import Contents
from abi_jax.wdbx.given import whole
from abi_jax.wdbx.history import parse_history
from abi_jax.wdbx.manifest import Manifest
from abi_jax.wdbx.storage.base import Storage

At = int | str | datetime | None


def resolve(at: At, contents: Contents, storage: Storage, manifest: Manifest | None) -> int:
    """The version that `at` means: itself, a tag's, the last at a time (ISO 8601; without a zone: UTC), or the last.

    Raises `InputError` for anything else; the tags that there are are a note of it, as in `NoCollectionError`.
    """
    if at is None:
        return contents.version
    if isinstance(at, str) and at in contents.tags:
        return contents.tags[at]
    if isinstance(at, str):
        try:
            at = datetime.fromisoformat(at)
        except ValueError:
            error = InputError(f"version {at!r} is neither a tag nor a time in ISO 8601")
            error.add_note(f"tags: {', '.join(sorted(contents.tags)) or 'none'}")
            raise error from None
    if isinstance(at, datetime):
        aware = at if at.tzinfo else at.replace(tzinfo=UTC)
        return version_at(int(aware.timestamp() * 1e6), contents, storage, manifest)
    version = whole(at)
    if version is None or not 0 <= version <= contents.version:
        raise InputError(f"version {at!r}: expected a whole number from 0 to {contents.version}, a tag or a time")
    return version


def version_at(time: int, contents: Contents, storage: Storage, manifest: Manifest | None) -> int:
    """The last version that is not later than `time`, microseconds since 1970; 0 where there is none."""
    heads = contents.heads
    if heads and heads[0].time <= time:
        return heads[bisect_right([head.time for head in heads], time) - 1].version
    for name, entry in sorted(manifest.history.items() if manifest else (), reverse=True):
        found = parse_history(f"{storage}/history/{name}", storage.read(f"history/{name}"), entry)
        if found and found[0].time <= time:
            return found[bisect_right([head.time for head in found], time) - 1].version
    return 0


def oldest_needed(horizon: int, created: int, pins: Iterable[int], tags: Iterable[int]) -> int:
    """The first version of a collection that must stay readable: `horizon`, or earlier where one needs it.

    created: in which version the collection was; who reads, or tagged, an earlier one has nothing of it.
    """
    return min([horizon, *(version for version in (*pins, *tags) if version >= created)])
