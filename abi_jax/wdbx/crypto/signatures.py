"""Signatures of links (Ed25519, RFC 8032): who wrote a version, and every one before it."""

from collections.abc import Iterable
from pathlib import Path

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from abi_jax.errors import InputError
from abi_jax.lineage_receipt import read_key
from abi_jax.wdbx.errors import NoKeyError

KEY_BYTES = 32
DOMAIN = b"abi-jax/wdbx signature\0"


def signing_key(key: Ed25519PrivateKey | str | Path) -> Ed25519PrivateKey:
    """A private key, or the one in a PEM file. Raises `InputError` where it is none."""
    if isinstance(key, Ed25519PrivateKey):
        return key
    if isinstance(key, str | Path):
        return read_key(Path(key))
    raise InputError(f"sign_with of type {type(key).__name__}: expected an Ed25519 private key, or the path of one")


def public_text(key: Ed25519PrivateKey) -> str:
    """The public key as `wdbx.json` lists it: hexadecimal."""
    return key.public_key().public_bytes_raw().hex()


def check_signer(storage: object, key: Ed25519PrivateKey | None, taken: Iterable[str]) -> None:
    """Raises `NoKeyError` where a store takes signatures of other keys alone, or none."""
    public = sorted(taken)
    if key is None and public:
        raise NoKeyError(f"{storage} takes signed versions only; expected sign_with, the key of one of {public}")
    if key is not None and public_text(key) not in public:
        said = f"one of {public}" if public else "no sign_with: a store takes signatures from its first version on"
        raise NoKeyError(f"{storage} does not take signatures of {public_text(key)}; expected {said}")


def sign_link(key: Ed25519PrivateKey, store: bytes, link: bytes) -> bytes:
    """What stands behind a signed record's payload: 32 bytes of public key and 64 of signature."""
    return key.public_key().public_bytes_raw() + key.sign(DOMAIN + store + link)


def wrong_signature(signature: bytes, store: bytes, link: bytes, taken: Iterable[str]) -> str:
    """What is wrong with what `sign_link` made; "" where nothing is. taken: public keys, hexadecimal."""
    public = signature[:KEY_BYTES]
    if not signature:
        return "is not signed, in a store that takes signed versions only"
    if public.hex() not in set(taken):
        return f"is signed with {public.hex()}, which the store does not take"
    try:
        Ed25519PublicKey.from_public_bytes(public).verify(signature[KEY_BYTES:], DOMAIN + store + link)
    except (InvalidSignature, ValueError):
        return "has a signature that does not hold"
    return ""
