"""Receipts for a store: what version it was at, and the link that stands for all before. docs/wdbx-audit.md.

A receipt is one of `abi_jax/lineage_receipt.py`: kind "memory", `step` and `number` the version, `head` its link,
`content` the hash that the file `wdbx.json` carries, which names the store and the keys that may sign for it.
"""

from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from abi_jax.errors import InputError
from abi_jax.lineage_receipt import VERSION, Receipt, read_key, signature_findings, signed
from abi_jax.wdbx.findings import Finding

KIND = "memory"


def make_receipt(
    about: str, version: int, link: str, time: int, sign_with: Ed25519PrivateKey | Path | str | None = None
) -> Receipt:
    """A receipt for `version`, whose link is `link`, signed where there is a key.

    about: the hash that `wdbx.json` carries. time: of the version, microseconds since 1970.
    """
    key = read_key(Path(sign_with)) if isinstance(sign_with, str | Path) else sign_with
    at = datetime.fromtimestamp(time / 1e6, UTC).isoformat()
    return signed(Receipt(VERSION, KIND, version, version, link, about, at), key)


def receipt_findings(
    receipt: Receipt, about: str, links: Mapping[int, str], version: int, public_key: str = ""
) -> list[Finding]:
    """What is wrong: nothing, where the store is the receipt's, or has grown since, and the signature holds.

    links: of versions, as hexadecimal; version: the last. public_key, hexadecimal: whose signature it must be.
    """
    holds = f"version {receipt.number}"
    if receipt.kind != KIND or receipt.step != receipt.number:
        return [Finding("the receipt", holds, f"is not of a WDBX store, but of a {receipt.kind}")]
    found = [Finding("the receipt", holds, wrong) for wrong in signature_findings(receipt, public_key)]
    if receipt.content != about:
        found.append(Finding("wdbx.json", "what the store is", "is not what it was when the receipt was made"))
    if receipt.number > version:
        said = f"the receipt is of it, but the chain ends at version {version}: the store was set back, or cut off"
        found.append(Finding("log", holds, said))
    elif links.get(receipt.number) != receipt.head:
        has = (links.get(receipt.number) or "none")[:12]
        said = f"its link is {has}, the receipt's is {receipt.head[:12]}: it was rewritten, or is another store's"
        found.append(Finding("log", holds, said))
    return found


def check_kind(receipt: Receipt | str) -> tuple[str, int | None]:
    """The link that a receipt or a link's hash stands for, and the receipt's version."""
    if isinstance(receipt, Receipt):
        if receipt.kind != KIND:
            raise InputError(f"the receipt is of a {receipt.kind}; expected one of a WDBX store")
        return receipt.head, receipt.number
    if not isinstance(receipt, str) or len(receipt) != 64:
        raise InputError(f"link {receipt!r}: expected a receipt, or 64 hexadecimal digits")
    return receipt, None
