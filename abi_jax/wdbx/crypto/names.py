"""What a manifest says in words, sealed: names, schemas and tags, a string a tenant. The rest is bound to it."""

import json
from collections.abc import Callable, Iterator
from typing import Any

from cryptography.exceptions import InvalidTag

from abi_jax.lineage_digest import canonical, sha256
from abi_jax.wdbx.crypto.keyring import Keyring
from abi_jax.wdbx.errors import DamagedError

NONCE = (0xFFFFFFFE).to_bytes(4, "little")


def hide(ring: Keyring, said: dict[str, Any]) -> dict[str, Any]:
    """A manifest without its specs and tags, which are in `sealed`, by the number of the key that opens them."""
    secrets: dict[str, dict[str, Any]] = {"": {"collections": {}, "tags": said["tags"]}}
    for number, entry in said["collections"].items():
        if not entry["erased"]:
            token = ring.token(entry["spec"]["tenant"])
            secrets.setdefault(token, {"collections": {}})["collections"][number] = entry["spec"]
    collections = {number: entry | {"spec": None} for number, entry in said["collections"].items()}
    open_part = said | {"tags": {}, "collections": collections}
    of = f"manifests/{said['version']:020d}"
    numbers = ring.new([(of, token) for token in secrets])
    place = _place(ring.store, open_part, numbers)
    nonce = NONCE + said["version"].to_bytes(8, "little")
    sealed = {
        str(number): ring.cipher(number).encrypt(nonce, canonical(secret), place).hex()
        for number, secret in zip(numbers, secrets.values(), strict=True)
    }
    return open_part | {"sealed": sealed}


def show(
    ring: Keyring | None,
    name: str,
    said: dict[str, Any],
    erased: frozenset[int],
    unknown: Callable[[int], dict[str, Any]],
) -> dict[str, Any]:
    """What `hide` was given; of collections whose key is erased, or where there are no keys, what `unknown` says.

    Raises `DamagedError` where anything in the manifest was changed by somebody without the key.
    """
    open_part = {key: value for key, value in said.items() if key != "sealed"}
    tags: dict[str, int] = {}
    specs: dict[str, Any] = {}
    for secret in [] if ring is None else _opened(ring, name, open_part, said["sealed"], erased):
        tags |= secret.get("tags", {})
        specs |= secret["collections"]
    collections = {
        number: entry | {"spec": specs.get(number) or unknown(int(number))}
        for number, entry in said["collections"].items()
    }
    return open_part | {"tags": tags, "collections": collections}


def _opened(
    ring: Keyring, name: str, open_part: dict[str, Any], said: dict[str, str], erased: frozenset[int]
) -> Iterator[dict[str, Any]]:
    sealed = {int(number): bytes.fromhex(text) for number, text in said.items()}
    place = _place(ring.store, open_part, list(sealed))
    nonce = NONCE + open_part["version"].to_bytes(8, "little")
    for number, data in sealed.items():
        if number in erased:
            continue
        try:
            yield json.loads(ring.cipher(number).decrypt(nonce, data, place))
        except InvalidTag:
            raise DamagedError(f"{name} does not open: it was changed by somebody who has no key") from None


def _place(store: bytes, open_part: dict[str, Any], numbers: list[int]) -> bytes:
    bound = canonical(open_part | {"sealed": sorted(numbers)})
    return b"abi-jax/wdbx manifest\0" + store + sha256("wdbx manifest open part", bound)
