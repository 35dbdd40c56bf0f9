"""The names of data sets: files, directories, globs, shards."""

from pathlib import Path

import pytest

from abi_jax.data import resolve
from abi_jax.errors import InputError


def touch(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()


def found(*sources: Path | str) -> dict[str, list[str]]:
    return {name: [p.name for p in paths] for name, paths in resolve([str(s) for s in sources]).items()}


def test_a_file_names_its_data_set(tmp_path: Path) -> None:
    touch(tmp_path, "a.jsonl", "b.jsonl.gz", "c.parquet", "d.array_record", "e.v2.txt")
    named = found(*(tmp_path / n for n in ("a.jsonl", "b.jsonl.gz", "c.parquet", "d.array_record", "e.v2.txt")))
    assert list(named) == ["a", "b", "c", "d", "e.v2"]


def test_a_directory_is_its_data_files_by_name(tmp_path: Path) -> None:
    touch(tmp_path, "b.jsonl", "a.parquet", "README.md", "saved/state.json", "other/x.jsonl")
    assert found(tmp_path) == {"a": ["a.parquet"], "b": ["b.jsonl"], "saved": ["saved"]}
    touch(tmp_path, "none/README.md")
    with pytest.raises(InputError, match=r"none' .* holds no data; expected files \.jsonl"):
        resolve([str(tmp_path / "none")])


def test_a_directory_of_datasets_is_one_data_set(tmp_path: Path) -> None:
    touch(tmp_path, "one.v1/state.json", "two/dataset_dict.json")
    assert found(tmp_path / "one.v1", tmp_path / "two") == {"one.v1": ["one.v1"], "two": ["two"]}


def test_globs_and_shards(tmp_path: Path) -> None:
    shards = [f"chats-{i:05d}-of-00003.parquet" for i in range(3)]
    touch(tmp_path, *reversed(shards), "chats-extra.jsonl", "other.jsonl", "[odd].jsonl")
    assert found(f"{tmp_path}/chats-*") == {"chats": shards, "chats-extra": ["chats-extra.jsonl"]}
    assert found(tmp_path / shards[1]) == {"chats": [shards[1]]}
    assert found(f"{tmp_path}/[[]odd].jsonl") == found(tmp_path / "[odd].jsonl") == {"[odd]": ["[odd].jsonl"]}
    with pytest.raises(InputError, match=r"nothing matches '.*/none-\*'; expected at least one data file"):
        resolve([f"{tmp_path}/none-*"])


def test_two_data_sets_of_one_name_are_refused(tmp_path: Path) -> None:
    touch(tmp_path, "a.jsonl", "a.parquet", "more/a.jsonl")
    for sources in ([tmp_path], [tmp_path / "a.jsonl", tmp_path / "more"], [tmp_path / "a.jsonl"] * 2):
        with pytest.raises(InputError, match="both named 'a'; rename one"):
            resolve([str(s) for s in sources])
