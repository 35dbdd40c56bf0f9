"""Files of every format hold the same records, and what is damaged is named."""

import gzip
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from array_record.python.array_record_module import ArrayRecordWriter

from abi_jax.data import Record, read_records
from abi_jax.data.readers import BATCH, read_values
from abi_jax.errors import InputError
from tests.conftest import ROOT

pyarrow = pytest.importorskip("pyarrow", reason="the extra `data` is not installed")
parquet = pytest.importorskip("pyarrow.parquet", reason="the extra `data` is not installed")


def chat(number: int, **values: Any) -> dict[str, Any]:
    turns = [{"role": "user", "content": f"Question {number}?"}, {"role": "assistant", "content": f"Answer {number}."}]
    return {"messages": turns, "persona": "abbey", **values}


VALUES = [
    chat(1, attributes={"age": "old", "region": "north"}, labels={"SH": 0, "V": 1}),
    chat(2, aspect="empathy", memory=["It rains.", "The cluster is Juno."]),
    {"messages": chat(3)["messages"], "mixture": {"abbey": 0.25, "aviva": 0.75}, "policy": "Be kind."},
    chat(4, labels={"SH": 1}, id=7),
    {"prompt": chat(5)["messages"][:1], "chosen": "yes", "rejected": "no", "persona": "abi"},
]


def as_jsonl(path: Path, values: list[dict[str, Any]]) -> Path:
    path = path.with_suffix(".jsonl")
    path.write_text("".join(json.dumps(v) + "\n" for v in values))
    return path


def as_gzip(path: Path, values: list[dict[str, Any]]) -> Path:
    path = path.with_suffix(".jsonl.gz")
    path.write_bytes(gzip.compress("".join(json.dumps(v) + "\n" for v in values).encode()))
    return path


def as_parquet(path: Path, values: list[dict[str, Any]]) -> Path:
    path = path.with_suffix(".parquet")
    parquet.write_table(pyarrow.Table.from_pylist(with_all_keys(values)), path, write_page_checksum=True)
    return path


def as_array_record(path: Path, values: list[dict[str, Any]]) -> Path:
    path = path.with_suffix(".array_record")
    writer = ArrayRecordWriter(str(path), "group_size:1")
    for value in values:
        writer.write(json.dumps(value).encode())
    writer.close()
    return path


def as_saved_dataset(path: Path, values: list[dict[str, Any]]) -> Path:
    """What `datasets` writes, in two shards."""
    path.mkdir(parents=True)
    table = pyarrow.Table.from_pylist(with_all_keys(values))
    half = table.num_rows // 2
    shards = {"data-00000-of-00002.arrow": table.slice(0, half), "data-00001-of-00002.arrow": table.slice(half)}
    for name, part in shards.items():
        with pyarrow.ipc.new_stream(path / name, table.schema) as stream:
            stream.write_table(part)
    (path / "state.json").write_text(json.dumps({"_data_files": [{"filename": name} for name in shards]}))
    return path


def with_all_keys(values: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A table takes its columns from its first row."""
    keys = dict.fromkeys(key for value in values for key in value)
    return [{key: value.get(key) for key in keys} for value in values]


Writer = Callable[[Path, list[dict[str, Any]]], Path]
WRITERS = [as_jsonl, as_gzip, as_parquet, as_array_record, as_saved_dataset]
TABLES = [as_parquet, as_saved_dataset]


def records(path: Path) -> list[Record]:
    return list(read_records({"chats": (path,)}).records)


def content(record: Record) -> dict[str, Any]:
    return {name: value for name, value in vars(record).items() if name != "where"}


@pytest.mark.parametrize("write", WRITERS)
def test_every_format_gives_the_same_records(write: Writer, tmp_path: Path) -> None:
    found = records(write(tmp_path / "chats", VALUES))
    assert [content(r) for r in found] == [content(r) for r in records(as_jsonl(tmp_path / "plain", VALUES))]
    assert found[0].labels == {"SH": 0, "V": 1} and found[3].labels == {"SH": 1}  # not {"SH": 1, "V": None}
    assert found[2].mixture == {"abbey": 0.25, "aviva": 0.75} and found[4].rejected == "no"


@pytest.mark.parametrize(
    ("write", "where"),
    [
        (as_jsonl, r"chats\.jsonl:3"),
        (as_gzip, r"chats\.jsonl\.gz:3"),
        (as_parquet, r"chats\.parquet:row 3"),
        (as_array_record, r"chats\.array_record:record 3"),
        (as_saved_dataset, r"chats/data-00001-of-00002\.arrow:row 1"),
    ],
)
def test_a_bad_record_is_named_by_file_and_place(write: Writer, where: str, tmp_path: Path) -> None:
    path = write(tmp_path / "chats", [chat(1), chat(2), chat(3) | {"messages": chat(3)["messages"][:1]}, chat(4)])
    with pytest.raises(InputError, match=rf"{where}: messages hold no answer"):
        records(path)
    read = read_records({"chats": (path,)}, bad="skip")
    assert len(read.records) == 3 and read.skipped == 1
    assert read.tally == {"chats": {"read": 4, "skipped": 1, "cleaned": 0}}


@pytest.mark.parametrize("write", WRITERS)
def test_places_count_on_beyond_a_batch(write: Writer, tmp_path: Path) -> None:
    many = 2 * BATCH + 3
    found = records(write(tmp_path / "chats", [chat(n) for n in range(many)]))
    assert [r.question for r in found] == [f"Question {n}?" for n in range(many)]
    assert len({r.where for r in found}) == many
    last = many - many // 2 if write is as_saved_dataset else many
    assert found[-1].where.endswith(f"{last}")


@pytest.mark.parametrize("write", WRITERS)
def test_a_file_without_records_is_an_empty_data_set(write: Writer, tmp_path: Path) -> None:
    path = write(tmp_path / "chats", VALUES)
    if write in TABLES:
        table = pyarrow.Table.from_pylist(VALUES[:1]).slice(0, 0)
        path = tmp_path / "none.parquet"
        parquet.write_table(table, path)
    else:
        path = write(tmp_path / "none", [])
    with pytest.raises(InputError, match=r"data set is empty .*none"):
        records(path)


def cut(path: Path, share: float = 0.5) -> None:
    path = path / "data-00001-of-00002.arrow" if path.is_dir() else path
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])


def spoil(path: Path) -> None:
    path = path / "data-00001-of-00002.arrow" if path.is_dir() else path
    data = bytearray(path.read_bytes())
    for at in range(100, 140):
        data[at] ^= 0xFF
    path.write_bytes(data)


@pytest.mark.parametrize("write", [as_gzip, as_parquet, as_array_record, as_saved_dataset])
@pytest.mark.parametrize("harm", [cut, spoil])
def test_damaged_files_are_named(write: Writer, harm: Callable[[Path], None], tmp_path: Path) -> None:
    path = write(tmp_path / "chats", [chat(n) for n in range(300)])
    harm(path)
    with pytest.raises(InputError, match=rf"data file '.*{path.name}.*' cannot be read: \S"):
        read_records({"chats": (path,)}, bad="skip")


def test_a_damaged_offset_of_a_saved_data_set_does_not_end_the_program(tmp_path: Path) -> None:
    """Arrow follows an offset wherever it points, unless it is asked to look first."""
    path = as_saved_dataset(tmp_path / "chats", [chat(n) for n in range(300)])
    stream = path / "data-00000-of-00002.arrow"
    offsets = b"".join(n.to_bytes(4, "little") for n in range(0, 20, 5))  # of the texts "abbey"
    data = stream.read_bytes()
    assert data.count(offsets) == 1
    stream.write_bytes(data.replace(offsets, offsets[:8] + b"\xff\xff\xff\x7f" + offsets[12:]))
    script = "import sys; from pathlib import Path; from abi_jax.data import read_records\n"
    script += "try: read_records({'chats': (Path(sys.argv[1]),)})\n"
    script += "except Exception as error: print(type(error).__name__, error)"
    ran = subprocess.run([sys.executable, "-c", script, str(path)], capture_output=True, text=True, cwd=ROOT)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.startswith("InputError data file") and "data-00000-of-00002.arrow' cannot be read" in ran.stdout


def test_without_checksums_parquet_cannot_tell_damage_from_text(tmp_path: Path) -> None:
    """What pyarrow writes by default has none: only damage that breaks the format is an error."""
    path = tmp_path / "chats.parquet"
    table = pyarrow.Table.from_pylist(with_all_keys([chat(1)]))
    for checksums in (False, True):
        parquet.write_table(table, path, compression="none", write_page_checksum=checksums)
        path.write_bytes(path.read_bytes().replace(b"Answer 1.", b"Answer 7."))
        if not checksums:
            assert records(path)[0].turns[1]["content"] == "Answer 7."
    with pytest.raises(InputError, match=r"chats\.parquet' cannot be read: .*CRC"):
        records(path)


@pytest.mark.parametrize("write", [as_gzip, as_parquet, as_array_record])
def test_files_that_are_of_another_format(write: Writer, tmp_path: Path) -> None:
    path = write(tmp_path / "chats", VALUES)
    path.write_text("hello\n" * 100)
    with pytest.raises(InputError, match=rf"data file '.*{path.name}' cannot be read: \S"):
        records(path)
    path.unlink()
    with pytest.raises(InputError, match=rf"{path.name}.*No such file"):
        records(path)


@pytest.mark.parametrize("share", [0.3, 0.9, 0.999])
def test_a_saved_data_set_that_was_cut(share: float, tmp_path: Path) -> None:
    path = as_saved_dataset(tmp_path / "chats", [chat(n) for n in range(300)])
    cut(path / "data-00001-of-00002.arrow", share)
    with pytest.raises(InputError, match=r"data-00001-of-00002\.arrow' cannot be read: .*truncated"):
        records(path)


@pytest.mark.parametrize(
    ("state", "reason"),
    [
        ("{", r"state\.json' cannot be read: not JSON"),
        ("[]", r"state\.json: _data_files is None; expected a list"),
        ('{"_data_files": [{"filename": "../x.arrow"}]}', r"state\.json: data file '\.\./x\.arrow'; expected a name"),
        ('{"_data_files": [{"filename": "gone.arrow"}]}', r"gone\.arrow' cannot be read: .*No such file"),
    ],
)
def test_a_saved_data_set_whose_state_does_not_fit(state: str, reason: str, tmp_path: Path) -> None:
    path = as_saved_dataset(tmp_path / "chats", VALUES)
    (path / "state.json").write_text(state)
    with pytest.raises(InputError, match=reason):
        records(path)


def test_of_several_splits_the_one_to_train_on_is_read(tmp_path: Path) -> None:
    as_saved_dataset(tmp_path / "chats" / "train", VALUES)
    as_saved_dataset(tmp_path / "chats" / "test", VALUES[:2])
    (tmp_path / "chats" / "dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    assert len(records(tmp_path / "chats")) == 5
    assert len(records(tmp_path / "chats" / "test")) == 2
    (tmp_path / "chats" / "dataset_dict.json").write_text('{"splits": ["dev", "test"]}')
    with pytest.raises(InputError, match=r"chats: no split 'train' among dev, test; name one as .*chats/SPLIT"):
        records(tmp_path / "chats")


def test_what_datasets_saves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    datasets = pytest.importorskip("datasets", reason="the package `datasets` is not installed")
    datasets.disable_progress_bars()
    made = datasets.Dataset.from_list(with_all_keys(VALUES))
    made.save_to_disk(tmp_path / "one", num_shards=2)
    datasets.DatasetDict({"train": made, "test": made.select([0])}).save_to_disk(tmp_path / "several")
    made.filter(lambda v: v["persona"] == "abbey").save_to_disk(tmp_path / "filtered")
    expected = [content(r) for r in records(as_jsonl(tmp_path / "plain", VALUES))]
    for name in ("one", "several"):
        assert [content(r) for r in records(tmp_path / name)] == expected
    assert [content(r) for r in records(tmp_path / "filtered")] == [e for e in expected if e["mixture"] == {"abbey": 1}]


@pytest.mark.parametrize("write", TABLES)
def test_a_table_without_messages_is_refused_by_its_columns(write: Writer, tmp_path: Path) -> None:
    path = write(tmp_path / "chats", [{"text": "a", "intent": "b"}] * 2)
    with pytest.raises(InputError, match=r"chats.*: no column 'messages' or 'prompt' among text, intent"):
        records(path)


def test_columns_that_no_record_uses_are_not_read(tmp_path: Path) -> None:
    path = as_parquet(tmp_path / "chats", [chat(1, embedding=[0.5] * 8)])
    [(_, value)] = read_values(path)
    assert isinstance(value, dict) and set(value) == {"messages", "persona"}


def test_maps_read_as_objects(tmp_path: Path) -> None:
    table = pyarrow.Table.from_pylist([chat(1)])
    labels = pyarrow.array([[("SH", 1), ("V", 0)]], pyarrow.map_(pyarrow.string(), pyarrow.int64()))
    parquet.write_table(table.append_column("labels", labels), tmp_path / "chats.parquet")
    assert records(tmp_path / "chats.parquet")[0].labels == {"SH": 1, "V": 0}


@pytest.mark.parametrize(
    ("kind", "key", "name"), [("int64", 7, "7"), ("binary", b"k", "k"), ("date32", 0, "1970-01-01")]
)
def test_keys_of_maps_are_text(kind: str, key: Any, name: str, tmp_path: Path) -> None:
    column = pyarrow.array([[(key, "old")]], pyarrow.map_(getattr(pyarrow, kind)(), pyarrow.string()))
    table = pyarrow.Table.from_pylist([chat(1)]).append_column("attributes", column)
    parquet.write_table(table, tmp_path / "chats.parquet")
    assert records(tmp_path / "chats.parquet")[0].attributes == {name: "old"}


@pytest.mark.parametrize("fields", [["a", "a"], ["a", "b"]])
def test_values_that_python_has_not_are_named(fields: list[str], tmp_path: Path) -> None:
    """A name used twice in an object, and a day too far away."""
    days = pyarrow.array([2**31 - 1], pyarrow.date32())
    column = pyarrow.StructArray.from_arrays([days, days], fields)
    parquet.write_table(
        pyarrow.Table.from_pylist([chat(1)]).append_column("attributes", column), tmp_path / "chats.parquet"
    )
    with pytest.raises(InputError, match=r"chats\.parquet' cannot be read: rows 1 to \d+: \S"):
        records(tmp_path / "chats.parquet")


def test_a_missing_library_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = as_parquet(tmp_path / "chats", VALUES)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(InputError, match=r"reading '.*chats\.parquet' needs pyarrow, .* pip install 'abi-jax\[data\]'"):
        records(path)
