"""The names by which data sets are found: files, directories, globs, and the dialogues that come with the package."""

import glob
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from abi_jax.data.readers import SUFFIXES, is_saved_dataset
from abi_jax.errors import InputError

DEMO = "demo"
FOLDER = Path(__file__).parent / "demo"
SETS = ("abbey", "aviva", "abi", "blend")  # the last is what Abbey and Aviva say together, half and half

Files = dict[str, tuple[Path, ...]]

_SHARD = re.compile(r"[-_.]\d+-of-\d+$")


def demo_files() -> Files:
    """Returns data-set name -> files, one each."""
    return {name: (FOLDER / f"{name}.jsonl",) for name in SETS}


def resolve(sources: Sequence[str]) -> Files:
    """Returns data-set name -> files for what a configuration lists, in order.

    A source is a file, a directory (its data files, by name), a glob, a directory that `datasets` saved,
    `demo`, or one of its sets, `demo/abbey`. A data set is named by its file without suffixes and shard number:
    `chats-00000-of-00002.parquet` and its neighbour are both of `chats`. Raises `InputError` for what does not
    exist or holds no data, and for two files with one name.
    """
    found: Files = {}
    for source in sources:
        for name, paths in _named(source).items():
            if name in found:
                _clash(name, found[name][0], paths[0])
            found[name] = paths
    return found


def _named(source: str) -> Files:
    demo = demo_files()
    if source == DEMO:
        return demo
    if source.startswith(f"{DEMO}/") and source.removeprefix(f"{DEMO}/") in demo:
        name = source.removeprefix(f"{DEMO}/")
        return {name: demo[name]}
    path = Path(source).expanduser()
    if path.exists():
        return _grouped(_listed(path, source))
    if not glob.has_magic(source):
        raise InputError(
            f"data file {source!r} does not exist; expected a file, a directory, a glob, '{DEMO}' or '{DEMO}/abbey'"
        )
    matches = [Path(p) for p in sorted(glob.glob(str(path), recursive=True))]
    if not matches:
        raise InputError(f"nothing matches {source!r}; expected at least one data file")
    return _grouped(p for match in matches for p in _listed(match, source))


def _listed(path: Path, source: str) -> list[Path]:
    """The data files that a path stands for."""
    if not path.is_dir() or is_saved_dataset(path):
        return [path]
    inside = [p for p in sorted(path.iterdir()) if p.name.endswith(SUFFIXES) or is_saved_dataset(p)]
    if not inside:
        raise InputError(f"directory {str(path)!r} of {source!r} holds no data; expected files {', '.join(SUFFIXES)}")
    return inside


def _grouped(paths: Iterable[Path]) -> Files:
    """Shards of one data set come together."""
    found: Files = {}
    for path in paths:
        stem = path.name
        for suffix in SUFFIXES:
            stem = stem.removesuffix(suffix)
        stem = stem if stem != path.name or path.is_dir() else path.stem
        name = _SHARD.sub("", stem)
        if name in found and name == stem:
            _clash(name, found[name][0], path)
        found[name] = (*found.get(name, ()), path)
    return found


def _clash(name: str, one: Path, two: Path) -> None:
    raise InputError(f"data sets {str(one)!r} and {str(two)!r} are both named {name!r}; rename one")
