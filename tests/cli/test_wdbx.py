"""`abi wdbx`: each action on good input, and what it says of bad input."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from abi_jax import wdbx
from abi_jax.cli.wdbx import ACTIONS
from abi_jax.serve.embedder import SentenceEncoder
from tests.cli.conftest import Abi

ENCODER = Path(__file__).parents[1] / "model" / "golden" / "bge_tiny"


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """Three notes; `b` was changed and `c` deleted. Version 2 has all as they were, and is tagged `first`."""
    path = tmp_path / "memory.wdbx"
    with wdbx.open(path) as db:
        notes = db.create_collection("notes", 2, schema={"lang": str, "year": int})
        about = [{"lang": "en", "year": 2019}, {"lang": "de"}, {"lang": "en", "year": 2023}]
        version = notes.upsert(["a", "b", "c"], [[1, 0], [0, 1], [0.6, 0.8]], about)
        db.tag("first", version)
        notes.upsert(["b"], [[0, -1]], [{"lang": "fr"}])
        notes.delete(["c"])
    return path


def test_create_makes_the_store(tmp_path: Path, abi: Abi) -> None:
    path = tmp_path / "new.wdbx"
    made = abi("wdbx", "create", path, "notes", "--dim", "4", "--metric", "l2", "--field", "tags=list[str]", "--json")
    assert made.status == 0
    assert made.json["version"] == 1
    with wdbx.open(path) as db:
        spec = db.collection("notes").spec
        assert (spec.dim, spec.metric, spec.schema) == (4, "l2", (("tags", "list[str]"),))
    again = abi("wdbx", "create", path, "notes", "--dim", "4")
    assert again.status == 2 and "collection 'notes' is there already" in again.err


def test_query_takes_a_vector_as_json_or_as_a_file(store: Path, abi: Abi, tmp_path: Path) -> None:
    found = abi("wdbx", "query", store, "[0.0, -2.0]", "--json").json
    assert [(hit["id"], hit["score"]) for hit in found["hits"]] == [("b", 1.0), ("a", 0.0)]
    assert found["hits"][0]["metadata"] == {"lang": "fr"}
    np.save(tmp_path / "q.npy", np.array([[1, 0], [0, -1]], np.float32))
    several = abi("wdbx", "query", store, tmp_path / "q.npy", "--top-k", "1", "--json").json
    assert [[hit["id"] for hit in hits] for hits in several["queries"]] == [["a"], ["b"]]
    shown = abi("wdbx", "query", store, "[1, 0]", "-k", "1")
    assert shown.status == 0
    assert [line.split() for line in shown.out.splitlines()] == [
        ["score", "id", "metadata"],
        ["1.0000", "a", "lang=en", "year=2019"],
    ]


def test_query_filters_and_looks_back(store: Path, abi: Abi) -> None:
    where = json.dumps({"year": {"$gte": 2020}})
    assert abi("wdbx", "query", store, "[1, 0]", "--where", where, "--json").json["hits"] == []
    past = abi("wdbx", "query", store, "[1, 0]", "--where", where, "--at", "first", "--json").json
    assert (past["version"], [hit["id"] for hit in past["hits"]]) == (2, ["c"])
    wrong = abi("wdbx", "query", store, "[1, 0]", "--where", '{"yaer": 1}', "--json")
    assert wrong.status == 2 and "filter on 'yaer'" in wrong.json["error"]


def test_query_explains_itself(store: Path, abi: Abi) -> None:
    said = abi("wdbx", "query", store, "[1, 0]", "--explain", "--recall", "0.9", "--json").json
    assert [hit["id"] for hit in said["hits"]] == ["a", "b"] and said["explain"]
    assert len(abi("wdbx", "query", store, "[1, 0]", "--explain").out.splitlines()) > 3
    wrong = abi("wdbx", "query", store, "[1, 0]", "--recall", "2")
    assert wrong.status == 2 and "recall 2.0" in wrong.err


def test_a_text_without_an_encoder(store: Path, abi: Abi) -> None:
    asked = abi("wdbx", "query", store, "how do I reset the cluster")
    assert asked.status == 2
    assert "'how do I reset the cluster' is a text" in asked.err and "no encoder" in asked.err


def test_get_and_delete(store: Path, abi: Abi) -> None:
    got = abi("wdbx", "get", store, "a", "c", "--vectors", "--json")
    assert got.status == 1 and got.json["missing"] == ["c"]
    assert got.json["rows"] == [{"id": "a", "born": 2, "metadata": {"lang": "en", "year": 2019}, "vector": [1.0, 0.0]}]
    then = abi("wdbx", "get", store, "c", "--at", "2")
    assert then.status == 0 and "year=2023" in then.out
    assert abi("wdbx", "delete", store, "a", "c", "--json").json["deleted"] == 1
    assert abi("wdbx", "get", store, "a").status == 1


def test_log_and_at(store: Path, abi: Abi) -> None:
    told = abi("wdbx", "log", store, "--last", "3", "--json").json
    assert [(each["kind"], each["rows"]) for each in told["versions"]] == [("delete", 1), ("upsert", 1), ("tag", 0)]
    assert "older; --last 0 shows all" in abi("wdbx", "log", store, "--last", "2").out
    assert abi("wdbx", "at", store, "first", "--json").json["collections"] == {"notes": 3}
    tagged = abi("wdbx", "at", store, "4", "--tag", "second", "--json").json
    assert (tagged["version"], tagged["collections"]) == (4, {"notes": 3})
    assert abi("wdbx", "at", store, "second", "--json").json["version"] == 4
    assert abi("wdbx", "at", store, "second", "--untag").out.startswith(
        f"{store} at version 4, no longer tagged second"
    )
    wrong = abi("wdbx", "at", store, "4", "--untag")
    assert wrong.status == 2 and "there is no tag '4'" in wrong.err and "it has first" in wrong.err
    abi("wdbx", "at", store, "4", "--tag", "second")
    wrong = abi("wdbx", "at", store, "third")
    assert wrong.status == 2 and "first, second" in wrong.err
    nobody = abi("wdbx", "get", store, "a", "--collection", "nots")
    assert nobody.status == 2 and "there is no collection 'nots'" in nobody.err and "has notes" in nobody.err


def test_verify_names_damage(store: Path, abi: Abi) -> None:
    assert abi("wdbx", "verify", store, "--json").json == {"ok": True, "findings": []}
    log = max((store / "log").iterdir(), key=lambda each: each.stat().st_size)
    data = bytearray(log.read_bytes())
    data[300] ^= 1
    log.write_bytes(data)
    found = abi("wdbx", "verify", store)
    assert found.status == 1 and log.name in found.out


def test_what_is_whole_of_a_damaged_store(store: Path, abi: Abi, tmp_path: Path) -> None:
    assert abi("wdbx", "get", store, "a", "--damaged", "ignore", "--json").json["left_out"] == []
    assert abi("wdbx", "compact", store).status == 0
    abi("wdbx", "create", store, "whole", "--dim", "2")
    np.save(tmp_path / "v.npy", np.ones((3, 2), np.float32))
    abi("wdbx", "import", store, tmp_path / "v.npy", "--collection", "whole")
    file = next(store.glob("segments/*/vectors/0.0"))
    file.unlink()
    name = file.relative_to(store).as_posix()
    commands: list[list[object]] = [["get", store, "0"], ["export", store, tmp_path / "out.jsonl"]]
    for command in [*commands, ["query", store, "[1, 1]"]]:
        asked = ["wdbx", *command, "-c", "whole"]
        refused = abi(*asked)
        assert refused.status == 2 and name.split("/")[1] in refused.err
        shown = abi(*asked, "--damaged", "ignore", "--json")
        assert shown.status == 0 and f"left out: {name}" in shown.err
        assert any(name in each for each in shown.json["left_out"])
    assert len((tmp_path / "out.jsonl").read_text().splitlines()) == 3
    for command in (["log", store], ["stats", store], ["at", store, "1"]):
        assert abi("wdbx", *command, "--damaged", "ignore", "--json").json["left_out"]
    refused = abi("wdbx", "at", store, "1", "--tag", "one", "--damaged", "ignore")
    assert refused.status == 2 and "mode 'r'" in refused.err


def test_more_columns(store: Path, abi: Abi) -> None:
    made = abi("wdbx", "add-column", store, "rating=float", "tags=list[str]", "--json").json
    assert [name for name, _ in made["collection"]["schema"]] == ["lang", "year", "rating", "tags"]
    assert made["version"] == abi("wdbx", "stats", store, "--json").json["version"]
    assert abi("wdbx", "get", store, "a", "--json").json["rows"][0]["metadata"] == {"lang": "en", "year": 2019}
    for field, said in (("year=int", "has a field 'year' already"), ("rating", "expected NAME=TYPE"), ("x=y", "'y'")):
        refused = abi("wdbx", "add-column", store, field)
        assert refused.status == 2 and said in refused.err


def test_compact_and_stats(store: Path, abi: Abi) -> None:
    assert abi("wdbx", "compact", store).status == 0
    said = abi("wdbx", "stats", store, "--json").json["collections"]["notes"]
    assert (said["rows"], said["dim"], said["segments"]) == (2, 2, 1)
    assert "lang=str, year=int" in abi("wdbx", "stats", store).out


def test_export_backup_restore(store: Path, abi: Abi, tmp_path: Path) -> None:
    out = tmp_path / "notes.jsonl"
    assert abi("wdbx", "export", store, out, "--at", "first", "--json").json["rows"] == 3
    assert {json.loads(line)["id"] for line in out.read_text().splitlines()} == {"a", "b", "c"}
    first = abi("wdbx", "backup", store, tmp_path / "backup", "--json").json
    assert (first["version"], first["kept"]) == (5, 0)
    assert abi("wdbx", "backup", store, tmp_path / "backup", "--json").json["copied"] == 0
    assert abi("wdbx", "restore", tmp_path / "backup", tmp_path / "again").status == 0
    assert abi("wdbx", "get", tmp_path / "again", "a").status == 0
    assert abi("wdbx", "verify", tmp_path / "again").status == 0
    refused = abi("wdbx", "restore", tmp_path / "backup", tmp_path / "again")
    assert refused.status == 2 and "is not empty" in refused.err


def test_receipts_and_proofs(store: Path, abi: Abi, tmp_path: Path) -> None:
    receipt, proof, absent = tmp_path / "receipt.json", tmp_path / "proof.json", tmp_path / "absent.json"
    assert abi("wdbx", "receipt", store, receipt, "--json").json["number"] == 5
    assert abi("wdbx", "prove", store, "a", proof, "--json").json["there"] is True
    shown = abi("wdbx", "prove", store, "c", absent)
    assert "has no row of 'c'" in shown.out and "--link" in shown.out
    held = abi("wdbx", "prove", "--check", proof, "--receipt", receipt, "--json")
    assert held.status == 0 and held.json["row"]["metadata"] == {"lang": "en", "year": 2019}
    assert abi("wdbx", "prove", "--check", absent, "--receipt", receipt, "--json").json["row"] is None
    assert "'lang': 'en'" in abi("wdbx", "prove", "--check", proof, "--receipt", receipt).out
    wrong = abi("wdbx", "prove", "--check", proof, "--link", "0" * 64)
    assert wrong.status == 1 and "does not hold" in wrong.out
    assert abi("wdbx", "prove", "--check", proof).status == 2
    assert abi("wdbx", "prove", store).status == 2
    assert abi("wdbx", "verify", store, "--receipt", receipt).status == 0
    shutil.rmtree(store)
    abi("wdbx", "create", store, "notes", "--dim", "2")
    assert abi("wdbx", "verify", store, "--receipt", receipt).status == 1


def test_an_encrypted_store(tmp_path: Path, abi: Abi, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("THE_KEY", "k" * 43 + "=")
    path = tmp_path / "memory.wdbx"
    assert abi("wdbx", "create", path, "notes", "--dim", "2", "--key", "env:THE_KEY").status == 0
    assert abi("wdbx", "stats", path, "--key", "env:THE_KEY").status == 0
    without = abi("wdbx", "stats", path)
    assert without.status == 2 and "key" in without.err
    assert abi("wdbx", "verify", path).status == 0


def test_another_master_key(tmp_path: Path, abi: Abi) -> None:
    path, old, new = tmp_path / "memory.wdbx", tmp_path / "old.key", tmp_path / "new.key"
    old.write_bytes(bytes(range(32)))
    new.write_bytes(bytes(range(1, 33)))
    assert abi("wdbx", "create", path, "notes", "--dim", "2", "--key", old).status == 0
    rotate = ("wdbx", "rotate", path, "--new-key", new)
    assert abi(*rotate).status == 2
    missing = abi("wdbx", "rotate", path, "--key", old, "--new-key", tmp_path / "none.key")
    assert missing.status == 2 and "none.key: No such file" in missing.err
    done = abi(*rotate, "--key", old, "--json")
    assert done.status == 0 and done.json["data_keys"] >= 2
    refused = abi("wdbx", "stats", path, "--key", old)
    assert refused.status == 2 and "under another key than the one given" in refused.err
    again = abi("wdbx", "rotate", path, "--key", new, "--new-key", old)
    assert again.status == 0 and f"opens with {old}" in again.out
    assert abi("wdbx", "stats", path, "--key", old).status == 0


def test_a_tenant_is_erased(tmp_path: Path, abi: Abi) -> None:
    path, key = tmp_path / "memory.wdbx", tmp_path / "key"
    key.write_bytes(bytes(range(32)))
    theirs = ["--tenant", "customer-17"]
    for name, more in (("theirs", theirs), ("ours", []), ("photos", [*theirs, "--ids", "int"])):
        assert abi("wdbx", "create", path, name, "--dim", "2", "--key", key, *more).status == 0
    np.save(tmp_path / "v.npy", np.ones((3, 2), np.float32))
    assert abi("wdbx", "import", path, tmp_path / "v.npy", "--collection", "photos", "--key", key).status == 0
    asked = ("wdbx", "erase", path, "customer-17", "--key", key)
    warned = abi(*asked)
    assert warned.status == 2 and "'customer-17' has photos, theirs, 3 rows; nothing brings back" in warned.err
    assert set(abi("wdbx", "stats", path, "--key", key, "--json").json["collections"]) == {"ours", "photos", "theirs"}
    done = abi(*asked, "--yes", "--json").json
    assert (done["collections"], done["rows"]) == (["photos", "theirs"], 3)
    assert list(abi("wdbx", "stats", path, "--key", key, "--json").json["collections"]) == ["ours"]
    nobody = abi("wdbx", "erase", path, "nobody", "--key", key, "--yes")
    assert nobody.status == 2 and "tenant 'nobody' has no collection" in nobody.err
    plain = tmp_path / "plain.wdbx"
    assert abi("wdbx", "create", plain, "notes", "--dim", "2").status == 0
    refused = abi("wdbx", "erase", plain, "customer-17", "--yes")
    assert refused.status == 2 and "is not encrypted" in refused.err
    assert abi("wdbx", "verify", path, "--key", key).status == 0


def test_which_collection(store: Path, abi: Abi) -> None:
    abi("wdbx", "create", store, "other", "--dim", "2")
    asked = abi("wdbx", "get", store, "a")
    assert asked.status == 2 and "notes, other" in asked.err
    assert abi("wdbx", "get", store, "a", "--collection", "notes").status == 0


# --- import, and texts ----------------------------------------------------------------------------


def test_import_makes_the_collection_that_a_file_needs(tmp_path: Path, abi: Abi) -> None:
    table = pa.table(
        {
            "id": ["a", "b"],
            "vector": pa.array([[1.0, 0.0], [0.0, 1.0]], pa.list_(pa.float32())),
            "year": [2019, 2023],
            "tags": [["x"], ["x", "y"]],
        }
    )
    pq.write_table(table, tmp_path / "my notes.parquet")
    path = tmp_path / "memory.wdbx"
    done = abi("wdbx", "import", path, tmp_path / "my notes.parquet", "--json")
    assert done.status == 0
    assert done.json == {"collection": "my_notes", "version": done.json["version"], "imported": 2, "rows": 2}
    found = abi("wdbx", "query", path, "[0, 1]", "--where", '{"tags": {"$contains": "x"}}', "--json").json["hits"]
    assert [hit["id"] for hit in found] == ["b", "a"]
    again = abi("wdbx", "import", path, tmp_path / "my notes.parquet")
    assert again.status == 0 and "2 rows imported, collection my_notes has 2" in again.out


def test_import_of_arrays(tmp_path: Path, abi: Abi) -> None:
    np.save(tmp_path / "v.npy", np.eye(3, dtype=np.float32))
    path = tmp_path / "memory.wdbx"
    assert abi("wdbx", "import", path, tmp_path / "v.npy", "--metric", "l2", "--collection", "photos").status == 0
    assert abi("wdbx", "query", path, "[0, 0, 1]", "-k", "1", "--json").json["hits"][0]["id"] == 2


def test_texts_are_imported_and_found(tmp_path: Path, abi: Abi) -> None:
    lines = [{"text": "reset the cluster", "lang": "en"}, {"text": "bake a cake"}, {"text": "the cluster is down"}]
    (tmp_path / "faq.jsonl").write_text("".join(json.dumps(each) + "\n" for each in lines))
    path = tmp_path / "memory.wdbx"
    made = ("wdbx", "import", path, tmp_path / "faq.jsonl", "--document", "text")
    bare = abi(*made)
    assert bare.status == 2 and "no column 'vector'; expected vectors, or --encoder" in bare.err
    assert not path.exists()
    assert abi(*made, "--encoder", ENCODER).status == 0
    encoder = SentenceEncoder(ENCODER)
    scores = encoder([each["text"] for each in lines]) @ encoder.queries(["a cake"])[0]
    best = int(np.argmax(scores))
    hits = abi("wdbx", "query", path, "a cake", "--top-k", "1", "--json").json["hits"]
    assert [(hit["id"], hit["document"]) for hit in hits] == [(best, lines[best]["text"])]
    assert hits[0]["score"] == pytest.approx(float(scores[best]), abs=1e-5)
    for mode, expected in (("keyword", {0, 2}), ("hybrid", {0, 1, 2})):
        hits = abi("wdbx", "query", path, "cluster", "--mode", mode, "--json").json["hits"]
        assert {hit["id"] for hit in hits} == expected
    shown = abi("wdbx", "get", path, "0")
    assert shown.out.split() == ["id", "since", "document", "metadata", "0", "3", "reset", "the", "cluster", "lang=en"]
    with wdbx.open(path) as db:
        assert db.collection("faq").spec.schema == (("lang", "str"), ("document", "str"))


def test_an_encoder_that_went_away(tmp_path: Path, abi: Abi) -> None:
    path, encoder = tmp_path / "memory.wdbx", tmp_path / "encoder"
    shutil.copytree(ENCODER, encoder)
    assert abi("wdbx", "create", path, "notes", "--encoder", encoder).status == 0
    shutil.rmtree(encoder)
    asked = abi("wdbx", "query", path, "cake")
    assert asked.status == 2 and "was made with it, --encoder names another" in asked.err
    assert abi("wdbx", "query", path, "cake", "--encoder", ENCODER).status == 0


def test_a_text_that_is_missing(tmp_path: Path, abi: Abi) -> None:
    (tmp_path / "faq.jsonl").write_text('{"text": "a"}\n{"text": null}\n')
    path = tmp_path / "memory.wdbx"
    done = abi("wdbx", "import", path, tmp_path / "faq.jsonl", "--document", "text", "--encoder", ENCODER)
    assert done.status == 2 and "'text' of row 1 is None" in done.err
    assert abi("wdbx", "stats", path, "--json").json["collections"] == {}


# --- bad input ------------------------------------------------------------------------------------


@pytest.mark.parametrize("action", [each for each in ACTIONS if each not in ("create", "import")])
def test_what_is_no_store(action: str, tmp_path: Path, abi: Abi) -> None:
    more: dict[str, list[str | Path]] = {
        "query": ["[1, 0]"],
        "get": ["a"],
        "delete": ["a"],
        "at": ["1"],
        "export": [tmp_path / "x.jsonl"],
    }
    more |= {"receipt": [tmp_path / "x.json"], "prove": ["a", tmp_path / "x.json"], "backup": [tmp_path / "x"]}
    more |= {"restore": [tmp_path / "x"], "rotate": ["--new-key", tmp_path / "x"], "erase": ["tenant"]}
    more |= {"add-column": ["year=int"]}
    asked = abi("wdbx", action, tmp_path / "nothing", *more.get(action, []))
    assert asked.status == 2 and "is not a WDBX store" in asked.err
    assert not (tmp_path / "nothing").exists()


@pytest.mark.parametrize("action", ACTIONS)
def test_help_teaches_each_action(action: str, abi: Abi) -> None:
    shown = abi("wdbx", action, "--help")
    assert shown.status == 0 and "--json" in shown.out
    assert re.search(rf"^ *abi wdbx {action} ", shown.out, re.M)


def test_a_url_is_a_store(tmp_path: Path, abi: Abi) -> None:
    """It reaches the store as it was typed, and a folder of its name is not made."""
    url = "memory://typed/store"
    rows = tmp_path / "notes.jsonl"
    rows.write_text('{"id": "a", "vector": [1, 0]}\n{"id": "b", "vector": [0, 1]}\n')
    assert "is not a WDBX store" in abi("wdbx", "stats", url).err
    assert abi("wdbx", "verify", url).status == 2
    assert abi("wdbx", "create", url, "notes", "--dim", "2").status == 0
    assert abi("wdbx", "import", url, rows, "--json").json["rows"] == 2
    assert abi("wdbx", "compact", url, "--json").json["bytes_after"] > 0
    assert abi("wdbx", "delete", url, "b", "--json").status == 0
    assert abi("wdbx", "stats", url, "--json").json["collections"]["notes"]["rows"] == 1
    assert abi("wdbx", "prove", url, "a", tmp_path / "proof.json").status == 0
    (tmp_path / "proof.json").unlink()
    assert abi("wdbx", "verify", url).out == f"{url}: no findings\n"
    assert abi("wdbx", "backup", url, tmp_path / "backup").status == 0
    assert abi("wdbx", "restore", tmp_path / "backup", tmp_path / "back").status == 0
    assert abi("wdbx", "stats", tmp_path / "back", "--json").json["collections"]["notes"]["rows"] == 1
    assert abi("wdbx", "restore", tmp_path / "backup", url).status == 2  # there is one
    refused = abi("wdbx", "stats", "ftp://host/store")
    assert refused.status == 2 and "scheme 'ftp' is not known" in refused.err
    assert {each.name for each in tmp_path.iterdir()} == {rows.name, "backup", "back"}
    assert not Path("memory:").exists() and not Path("s3:").exists()
