"""`abi data inspect`: a report to read, one to parse, and no output where it fails."""

import json
from pathlib import Path

import pytest

from tests.cli.conftest import Abi
from tests.cli.test_bad_input import GOOD, refused


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def chats(folder: Path) -> Path:
    lines = [GOOD, GOOD, GOOD | {"persona": "aviva", "aspect": "factual"}, {"messages": []}]
    (folder / "chats.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n")
    return folder / "chats.jsonl"


def test_the_report(tmp_path: Path, abi: Abi) -> None:
    shown = abi("data", "inspect", chats(tmp_path), "--set", "data.held_out=0", "--set", "data.balance.by=persona")
    assert shown.status == 0, shown.err
    lines = [" ".join(line.split()) for line in shown.out.splitlines()]
    assert lines[0].endswith("chats.jsonl: 3 records, 3 examples, 0 records held out")
    assert "chats 3 3 0 0 1 1 0 0" in lines
    assert "abbey 2 2 66.7% █████████████" in lines and "factual 1 1 33.3% ███████" in lines
    assert "words in an example: min 2, median 2, p95 2, max 2, mean 2" in lines
    assert "persona=aviva 1 2 50.0% ██████████" in lines
    assert "duplicates: 1 exact (kept; data.duplicates=near leaves them out; leaked: as what is held out)" in lines
    assert f"{tmp_path}/chats.jsonl:4: messages is []; expected a list of messages" in lines
    assert "response Hello." in lines
    assert lines[-1] == "figure: runs/data.png" and (tmp_path / "runs/data.png").stat().st_size > 10_000


def test_the_terminal_obeys_nothing_in_the_data(tmp_path: Path, abi: Abi) -> None:
    odd = {"persona": "ab\x1b[31mbey", "aspect": "\x1b]0;title\x07", "attributes": {"\x1b[2J": "\u202e"}}
    turns = [{"role": "user", "content": "why?"}, {"role": "assistant", "content": "\x1b[1mbold\x9b"}]
    (tmp_path / "odd.jsonl").write_text(json.dumps({"messages": turns} | odd) + "\n")
    shown = abi("data", "inspect", "odd.jsonl", "--set", "data.held_out=0", "--figure", "none")
    assert shown.status == 0 and "response \ufffd[1mbold\ufffd" in " ".join(shown.out.split())
    assert all(c.isprintable() or c == "\n" for c in shown.out)


def test_one_object(tmp_path: Path, abi: Abi) -> None:
    for arguments in (("data", "--json", "inspect"), ("data", "inspect", "--json")):
        report = abi(*arguments, chats(tmp_path), "--figure", "none", "--samples", "1", "--personas", "abbey,aviva")
        assert report.status == 0 and report.err == ""
        told = report.json
        assert told["records"] == 3 and told["skipped"] == 1 and told["figure"] is None
        assert told["datasets"]["chats"]["read"] == 4 and len(told["samples"]) == 1
        assert told["counts"]["persona"] == {
            "abbey": {"records": 2, "examples": 2},
            "aviva": {"records": 1, "examples": 1},
        }
    assert not (tmp_path / "runs").exists()


def test_what_a_row_would_cut(trained: Path, tmp_path: Path, abi: Abi) -> None:
    for model in (trained / "personas", trained / "personas" / "tokenizer"):
        shown = abi("data", "inspect", "demo", "--tokenizer", model, "--length", "64", "--figure", "x/y.svg")
        assert shown.status == 0, shown.err
        assert "longer than a row of 64: " in shown.out and "packed rows are 100.0% full" in shown.out
        assert "<|assistant|>" in shown.out
    assert (tmp_path / "x" / "y.svg").read_text().startswith("<?xml")


def test_what_a_run_would_see(tmp_path: Path, abi: Abi) -> None:
    (tmp_path / "run.yaml").write_text(f"data: {{train: [{chats(tmp_path)}], held_out: 0, clean: true}}\n")
    told = abi("data", "inspect", "--config", "run.yaml", "--json", "--figure", "none").json
    assert told["records"] == 3
    (tmp_path / "run.yaml").write_text(f"personas: [abi]\ndata: {{train: [{chats(tmp_path)}], held_out: 0}}\n")
    refused(abi, ("data", "inspect", "--config", "run.yaml"), "unknown persona 'abbey'", tmp_path)


def test_a_run_has_the_personas_of_the_model_that_it_starts_from(trained: Path, tmp_path: Path, abi: Abi) -> None:
    model = f"model: {{init: {trained / 'personas'}}}\npersonas: [abi]\n"
    (tmp_path / "run.yaml").write_text(f"{model}data: {{train: [{chats(tmp_path)}], held_out: 0, bad_records: skip}}\n")
    result = abi("data", "inspect", "--config", "run.yaml", "--json", "--figure", "none")
    assert result.status == 0, result.err
    assert set(result.json["counts"]["persona"]) == {"abbey", "aviva"}


def test_bad_input(tmp_path: Path, abi: Abi) -> None:
    path = chats(tmp_path)
    (tmp_path / "cut.parquet").write_bytes(b"PAR1")
    (tmp_path / "empty").mkdir()
    for arguments, reason in (
        ((), "nothing to inspect; expected files, 'demo' or --config"),
        (("nowhere.jsonl",), r"'nowhere\.jsonl' does not exist"),
        (("empty",), "'empty' holds no data"),
        (("cut.parquet",), r"'cut\.parquet' cannot be read"),
        ((path, "--tokenizer", tmp_path / "none"), "none' does not exist"),
        ((path, "--personas", "abby"), "'abby'.*nearest: 'abbey'"),
        ((path, "--length", "3"), r"length = 3; expected"),
        ((path, "--samples", "-1"), "--samples -1; expected 0 or more"),
        ((path, "--figure", "data.txt"), r"'data\.txt'; expected a name that ends in \.png"),
        ((path, "--set", "data.balance.by=age"), "'age'; expected persona, aspect"),
        ((path, "--set", "data.balance.by=attributes.age"), "'attributes.age', but none of"),
        ((path, "--set", "data.cleen=true"), "unknown key 'data.cleen'.*'data.clean'"),
        ((path, "--set", "data.duplicates=some"), "data.duplicates.*'some'"),
    ):
        refused(abi, ("data", "inspect", *arguments), reason, tmp_path)
    assert abi("data").status == 2 and abi("data", "inspekt").status == 2
