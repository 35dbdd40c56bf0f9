"""The verbs that say what a model was made from, and whether it still is."""

import hashlib
import shutil
from pathlib import Path

import pytest

from tests.cli.conftest import Abi


@pytest.fixture
def model(trained: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(trained / "personas", tmp_path / "personas"))


def test_log_says_what_a_model_was_made_from(trained: Path, abi: Abi) -> None:
    base, personas = (abi("log", trained / name, "--json").json["links"] for name in ("base", "personas"))
    assert [link["step"] for link in personas] == [40] and personas[0]["here"]
    assert personas[0]["parents"] == [base[-1]["hash"]]
    shown = abi("log", trained / "personas").out
    assert personas[0]["hash"][:16] in shown and f"made from {base[-1]['hash'][:16]}" in shown


def test_log_says_what_an_import_was_read_from(trained: Path, tmp_path: Path, abi: Abi) -> None:
    assert abi("export", trained / "base", tmp_path / "hf").status == 0
    assert abi("import", tmp_path / "hf", tmp_path / "base").status == 0
    (link,) = abi("log", tmp_path / "base", "--json").json["links"]
    files = {name: hashlib.sha256((tmp_path / "hf" / name).read_bytes()).hexdigest() for name in link["made_from"]}
    assert link["made_from"] == files and sorted(files) == ["config.json", "model.safetensors"]
    assert f"made from model.safetensors  sha256 {files['model.safetensors'][:16]}" in abi("log", tmp_path / "base").out
    (tmp_path / "base" / "lineage" / "1.json").unlink()
    assert abi("log", tmp_path / "base", "--json").json["links"][0]["made_from"] == {}


def test_verify_names_damage_and_exits_1(model: Path, abi: Abi) -> None:
    assert abi("verify", model).status == 0
    (model / "personas.yaml").write_text("personas: []\n")
    report = abi("verify", model, "--quick")
    assert report.status == 1 and "personas.yaml: changed\n" in report.out and "1 damage" in report.out
    result = abi("verify", model, "--json")
    assert result.status == 1 and not result.json["ok"]
    assert result.json["findings"] == [{"where": "personas.yaml", "reason": "changed", "tensors": []}]


def test_diff_between_a_base_and_its_personas(trained: Path, abi: Abi) -> None:
    result = abi("diff", trained / "base", trained / "personas", "--json").json
    assert {change["kind"] for change in result["changes"]} == {"added"} and result["same"] > 10
    assert "the same" in abi("diff", trained / "base", trained / "base").out
    refused = abi("diff", trained / "base@3", trained / "personas")
    assert refused.status == 2 and "its steps: 40" in refused.err


def test_a_receipt_that_cannot_be_written_leaves_no_key(model: Path, tmp_path: Path, abi: Abi) -> None:
    refused = abi("receipt", model, tmp_path / "none" / "receipt.json", "--new-key", tmp_path / "key.pem")
    assert refused.status == 2 and "cannot be written" in refused.err
    assert not (tmp_path / "key.pem").exists()


def test_receipts_are_written_signed_and_checked(model: Path, tmp_path: Path, abi: Abi) -> None:
    receipt, key = tmp_path / "receipt.json", tmp_path / "key.pem"
    made = abi("receipt", model, receipt, "--new-key", key, "--json").json
    copied = shutil.copy(model / "lineage" / "chain.jsonl", tmp_path / "chain.jsonl")
    shutil.rmtree(model / "checkpoints")
    held = abi("check-receipt", receipt, copied, "--public-key", made["public_key"])
    assert held.status == 0 and "holds" in held.out
    assert abi("check-receipt", receipt, model, "--public-key", "0" * 64).status == 1
    receipt.write_text(receipt.read_text().replace('"step": 40', '"step": 41'))
    changed = abi("check-receipt", receipt, copied, "--json")
    assert changed.status == 1 and len(changed.json["wrong"]) == 2
    again = abi("receipt", model, receipt, "--key", key)
    assert again.status == 2 and "exists already" in again.err


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (("log", "{}/none"), "does not exist"),
        (("verify", "{}"), "is not a model directory"),
        (("receipt", "{}/personas", "{}/r.json", "--link", "9"), "has links 1 to 1"),
        (("receipt", "{}/personas", "{}/r.json", "--key", "{}/none.pem"), "expected a private key"),
        (("check-receipt", "{}/r.json", "{}/personas", "--public-key", ""), "expected 64 hexadecimal digits"),
        (("check-receipt", "{}/r.json", "{}/none"), "expected a model directory, or a chain.jsonl"),
    ],
)
def test_bad_input(model: Path, abi: Abi, arguments: tuple[str, ...], reason: str) -> None:
    result = abi(*(a.format(model.parent) for a in arguments))
    assert result.status == 2 and reason in result.err and "Traceback" not in result.err
    assert not (model.parent / "r.json").exists()
