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
    with pytest.raises(InputError, match=r"none' holds no data; expected files \.jsonl"):
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


def test_shards_may_be_listed_one_by_one(tmp_path: Path) -> None:
    shards = [f"chats-{i:05d}-of-00003.parquet" for i in range(3)]
    touch(tmp_path, *shards)
    assert found(*(tmp_path / s for s in shards)) == {"chats": shards}
    assert found(tmp_path / shards[2], tmp_path / shards[0]) == {"chats": [shards[2], shards[0]]}  # a part, as asked


def test_a_glob_that_matches_a_directory_and_its_files_reads_them_once(tmp_path: Path) -> None:
    shards = [f"chats-{i:05d}-of-00002.jsonl" for i in range(2)]
    touch(tmp_path, *shards, "sub/more.jsonl", "none/deep/other.jsonl", "saved/state.json", "saved/data.arrow")
    named = found(f"{tmp_path}/**")
    assert named == {"chats": shards, "more": ["more.jsonl"], "other": ["other.jsonl"], "saved": ["saved"]}
    touch(tmp_path, f"sub/{shards[0]}")
    with pytest.raises(InputError, match="both named 'chats'; rename one"):
        resolve([f"{tmp_path}/**"])


def test_a_directory_or_a_glob_has_every_shard(tmp_path: Path) -> None:
    touch(tmp_path, *(f"chats-{i}-of-4.jsonl" for i in (0, 1, 3)))
    for source in (tmp_path, f"{tmp_path}/*.jsonl"):
        with pytest.raises(InputError, match=r"'chats' has 3 of its 4 shards .*; expected all, or .* one by one"):
            resolve([str(source)])


def test_two_data_sets_of_one_name_are_refused(tmp_path: Path) -> None:
    touch(tmp_path, "a.jsonl", "a.parquet", "more/a.jsonl", "b-0-of-2.jsonl", "b-0-of-1.jsonl", "b.jsonl")
    lists = [["a.jsonl", "a.parquet"], ["a.jsonl", "more"], ["b-0-of-2.jsonl", "b-0-of-1.jsonl"]]
    lists += [["b.jsonl", "b-0-of-1.jsonl"], ["b-0-of-1.jsonl", "b.jsonl"]]
    for names in lists:
        with pytest.raises(InputError, match=r"both named '[ab]'; rename one"):
            resolve([str(tmp_path / name) for name in names])
    for again in ("a.jsonl", "more/../a.jsonl"):
        with pytest.raises(InputError, match=r"a\.jsonl' is listed twice; expected every file once"):
            resolve([str(tmp_path / "a.jsonl"), str(tmp_path / again)])


def test_no_name_is_not_this_directory() -> None:
    with pytest.raises(InputError, match="data file '' is no name"):
        resolve([""])
