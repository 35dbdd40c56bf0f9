"""A receipt is checked against a copy of the chain, and finds who rewrote it."""

import shutil
import stat
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from abi_jax.errors import InputError
from abi_jax.lineage import Chain
from abi_jax.lineage_receipt import Receipt, check_receipt, make_receipt, new_key, read_key, read_receipt
from tests.test_lineage import link


@pytest.fixture
def chain(tmp_path: Path) -> Chain:
    made = Chain(tmp_path / "chain.jsonl")
    for step in (0, 100, 200):
        made.append(link(step))
    return made


def test_a_receipt_holds_for_a_copy_that_has_grown(chain: Chain, tmp_path: Path) -> None:
    (tmp_path / "receipt.json").write_text(make_receipt(chain).text())
    receipt = read_receipt(tmp_path / "receipt.json")
    copy = Chain(tmp_path / "copy.jsonl")
    shutil.copy(chain.path, copy.path)
    copy.append(link(300))
    assert receipt.number == 3 and check_receipt(receipt, copy) == []


def test_a_chain_rewritten_whole_is_found(chain: Chain, tmp_path: Path) -> None:
    receipt = make_receipt(chain)
    other = Chain(tmp_path / "other.jsonl")
    for step in (0, 100, 200, 300):
        other.append(link(step, config="9" * 64))
    assert not other.breaks()
    assert "it was rewritten" in check_receipt(receipt, other)[0]


def test_a_chain_cut_short_is_found(chain: Chain) -> None:
    receipt = make_receipt(chain)
    lines = chain.path.read_text().splitlines(keepends=True)
    chain.path.write_text("".join(lines[:2]))
    assert check_receipt(receipt, chain) == [f"{chain.path} has 2 links, and no link 3: its end was cut off"]


def test_signatures(chain: Chain, tmp_path: Path) -> None:
    key = new_key(tmp_path / "key.pem")
    assert stat.S_IMODE((tmp_path / "key.pem").stat().st_mode) == 0o600
    receipt = make_receipt(chain, 2, read_key(tmp_path / "key.pem"))
    public = key.public_key().public_bytes_raw().hex()
    assert receipt.public_key == public and receipt.step == 100
    assert check_receipt(receipt, chain, public) == []
    stranger = make_receipt(chain, 2, new_key(tmp_path / "other.pem"))
    assert check_receipt(stranger, chain) == [] and check_receipt(stranger, chain, public)
    assert check_receipt(make_receipt(chain, 2), chain, public) == [f"signed with no key; expected {public[:12]}"]
    with pytest.raises(InputError, match="expected a new file"):
        new_key(tmp_path / "key.pem")


@pytest.mark.parametrize("name", [n for n in Receipt.__dataclass_fields__ if n != "version"])
def test_a_changed_receipt_is_found(chain: Chain, tmp_path: Path, name: str) -> None:
    receipt = make_receipt(chain, 2, new_key(tmp_path / "key.pem"))
    value = asdict(receipt)[name]
    other: Any = value + 1 if isinstance(value, int) else ("0" if value[:1] != "0" else "1") + value[1:]
    assert check_receipt(replace(receipt, **{name: other}), chain)


@pytest.mark.parametrize("text", ["", "[]", '{"version": 1}', "\x00"])
def test_what_is_no_receipt(tmp_path: Path, text: str) -> None:
    (tmp_path / "r.json").write_text(text)
    with pytest.raises(InputError, match="is not a receipt"):
        read_receipt(tmp_path / "r.json")


def test_clear_errors(chain: Chain, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="No such file"):
        read_receipt(tmp_path / "none.json")
    with pytest.raises(InputError, match="links 1 to 3"):
        make_receipt(chain, 4)
    with pytest.raises(InputError, match="has no links"):
        make_receipt(Chain(tmp_path / "empty.jsonl"))
    (tmp_path / "bad.pem").write_text("no key")
    with pytest.raises(InputError, match="not an Ed25519 private key"):
        read_key(tmp_path / "bad.pem")
