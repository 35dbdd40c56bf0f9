"""Receipts: a chain's head, handed out and perhaps signed, so that whoever rewrites the chain is found out."""

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from abi_jax.errors import InputError
from abi_jax.files import write_secret
from abi_jax.lineage import Chain
from abi_jax.lineage_digest import canonical

VERSION = 1


@dataclass(frozen=True)
class Receipt:
    """States that link `number` (from 1) of a chain has the hash `head`; `content` is what that link holds.

    public_key and signature (Ed25519, RFC 8032, over the canonical JSON of the rest) are hexadecimal, or empty.
    """

    version: int
    kind: str
    step: int
    number: int
    head: str
    content: str
    time: str
    public_key: str = ""
    signature: str = ""

    def signed_part(self) -> bytes:
        """The bytes that the signature is over: everything but the signature."""
        return b"abi-jax/receipt\0" + canonical({k: v for k, v in asdict(self).items() if k != "signature"})

    def text(self) -> str:
        """The receipt as a JSON file."""
        return json.dumps(asdict(self), indent=2) + "\n"


def make_receipt(chain: Chain, number: int | None = None, key: Ed25519PrivateKey | None = None) -> Receipt:
    """A receipt for link `number` (the last), signed where there is a key."""
    links = chain.links()
    if not links:
        raise InputError(f"{chain.path} has no links; expected a chain to write a receipt for")
    at = len(links) if number is None else number
    if not 1 <= at <= len(links):
        raise InputError(f"link {at}: the chain {chain.path} has links 1 to {len(links)}")
    link = links[at - 1]
    return signed(Receipt(VERSION, link.kind, link.step, at, link.hash, link.content, link.time), key)


def signed(receipt: Receipt, key: Ed25519PrivateKey | None) -> Receipt:
    """The receipt with a signature, where there is a key."""
    if key is None:
        return receipt
    named = replace(receipt, public_key=key.public_key().public_bytes_raw().hex())
    return replace(named, signature=key.sign(named.signed_part()).hex())


def read_receipt(path: Path) -> Receipt:
    """Reads what `Receipt.text` wrote. Raises `InputError` where it is anything else."""
    try:
        value: Any = json.loads(path.read_text(encoding="utf-8"))
        receipt = Receipt(**value)
        expected = Receipt.__dataclass_fields__
        wrong = [name for name, f in expected.items() if not isinstance(getattr(receipt, name), f.type)]  # type: ignore[arg-type]
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}; expected a receipt") from None
    except (ValueError, TypeError, RecursionError):
        raise InputError(f"{path} is not a receipt; expected the JSON that abi receipt writes") from None
    if wrong or receipt.version != VERSION:
        raise InputError(f"{path} is not a receipt of version {VERSION}: {', '.join(wrong) or receipt.version}")
    return receipt


def check_receipt(receipt: Receipt, chain: Chain, public_key: str = "") -> list[str]:
    """What is wrong: nothing, where the receipt's link stands in the chain and its signature holds.

    `public_key`, hexadecimal: whose signature it must be. The weights are not needed.
    """
    wrong = [f"{chain.path}: {found}" for found in chain.breaks()]
    if not wrong:
        links = chain.links()
        if receipt.number > len(links) or receipt.number < 1:
            wrong.append(f"{chain.path} has {len(links)} links, and no link {receipt.number}: its end was cut off")
        elif links[receipt.number - 1].hash != receipt.head:
            has = links[receipt.number - 1].hash
            wrong.append(f"link {receipt.number} is {has[:12]}, the receipt's is {receipt.head[:12]}: it was rewritten")
        elif (link := links[receipt.number - 1]) and (link.content, link.step, link.kind, link.time) != (
            receipt.content,
            receipt.step,
            receipt.kind,
            receipt.time,
        ):
            wrong.append(f"the receipt does not say of link {receipt.number} what the chain says of it")
    return wrong + signature_findings(receipt, public_key)


def signature_findings(receipt: Receipt, public_key: str = "") -> list[str]:
    """What is wrong with a receipt's signature; nothing where it has none, unless `public_key` must have signed it."""
    if public_key and receipt.public_key != public_key:
        return [f"signed with {receipt.public_key[:12] or 'no key'}; expected {public_key[:12]}"]
    if not receipt.signature and not receipt.public_key:
        return []
    try:
        key = Ed25519PublicKey.from_public_bytes(bytes.fromhex(receipt.public_key))
        key.verify(bytes.fromhex(receipt.signature), receipt.signed_part())
    except (InvalidSignature, ValueError):
        return ["the signature does not hold: the receipt was changed after it was signed"]
    return []


def new_key(path: Path) -> Ed25519PrivateKey:
    """Writes a new private key (PKCS 8, PEM), readable by its owner alone; refuses to write over a file."""
    key = Ed25519PrivateKey.generate()
    pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    try:
        write_secret(path, pem)
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}; expected a new file for the key") from None
    return key


def read_key(path: Path) -> Ed25519PrivateKey:
    """Reads an Ed25519 private key in PEM."""
    try:
        key = serialization.load_pem_private_key(path.read_bytes(), None)
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}; expected a private key, which --new-key makes") from None
    except (ValueError, TypeError):
        key = None
    if not isinstance(key, Ed25519PrivateKey):
        raise InputError(f"{path} is not an Ed25519 private key in PEM without a password")
    return key
