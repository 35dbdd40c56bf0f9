"""Small files of JSON that carry a hash of what they say: what a store is, and where its chain was."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from abi_jax.lineage_digest import canonical, sha256
from abi_jax.wdbx.errors import DamagedError

HEAD_FILE = "head"


def checked_json(domain: str, said: Mapping[str, Any]) -> bytes:
    """`said` as a line of JSON, with `check`, the hash of the rest."""
    return canonical({**said, "check": checked_hash(domain, said)}) + b"\n"


def read_checked(domain: str, name: str, data: bytes) -> dict[str, Any]:
    """What `checked_json` wrote. Raises `DamagedError` where it is anything else."""
    try:
        said: dict[str, Any] = json.loads(data)
        check = said.pop("check")
        whole = checked_json(domain, said) == data and check == checked_hash(domain, said)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        whole = False
    if not whole:
        raise DamagedError(f"{name} is damaged; expected a line of JSON with its hash")
    return said


def checked_hash(domain: str, said: Mapping[str, Any]) -> str:
    """The hash that `checked_json` adds."""
    return sha256(domain, canonical(said)).hex()


@dataclass(frozen=True)
class Witness:
    """Where the chain was when a log was begun, or, `closed`, when its writer closed the store.

    kept: files of manifests that readers stood on then, and that wait to be taken away with what only they name.
    """

    version: int
    link: str
    epoch: int
    closed: bool
    kept: Sequence[str] = ()

    def encode(self) -> bytes:
        """The bytes of the file `head`."""
        return checked_json("wdbx head", asdict(self))


def read_witness(name: str, data: bytes) -> Witness:
    """Reads the file `head`."""
    try:
        return Witness(**read_checked("wdbx head", name, data))
    except TypeError:
        raise DamagedError(f"{name} does not say where the chain was") from None
