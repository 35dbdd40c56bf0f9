"""The names by which data sets are found: files, directories, globs, and the dialogues that come with the package."""

import glob
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from abi_jax.data.readers import SUFFIXES, is_saved_dataset
from abi_jax.errors import InputError

DEMO = "demo"
FOLDER = Path(__file__).parent / "demo"
SETS = ("abbey", "aviva", "abi", "blend")  # the last is what Abbey and Aviva say together, half and half

Files = dict[str, tuple[Path, ...]]

_SHARD = re.compile(r"[-_.](\d+)-of-(\d+)$")


@dataclass(frozen=True)
class _Part:
    """What a file says of its data set: `number` of `of` shards, both None where it is all of it."""

    name: str
    number: int | None
    of: int | None
    family: tuple[str, ...]


def demo_files() -> Files:
    """Returns data-set name -> files, one each."""
    return {name: (FOLDER / f"{name}.jsonl",) for name in SETS}


def is_demo(source: str) -> bool:
    """True for `demo` and for the names of its sets, `demo/abbey`."""
    return source == DEMO or source in {f"{DEMO}/{name}" for name in SETS}


def resolve(sources: Sequence[str]) -> Files:
    """Returns data-set name -> files for what a configuration lists, in order.

    A source is a file, a directory (its data files, by name), a glob, a directory that `datasets` saved,
    `demo`, or one of its sets, `demo/abbey`. A data set is named by its file without suffixes and shard number:
    `chats-00000-of-00002.parquet` and its neighbour in one directory are both of `chats`. A glob that matches a
    file and its directory means the file once. Raises `InputError` for what does not exist or holds no data, for a
    file that two sources name, for two data sets of one name, and where a directory or a glob has some shards of a
    data set but not all; shards that are listed one by one may be a part.
    """
    found: dict[str, dict[Path, Path]] = {}
    parts: dict[str, list[_Part]] = {}
    whole: set[str] = set()
    for source in sources:
        for path in _listed(source):
            part = _part(path)
            held = found.setdefault(part.name, {})
            if path.resolve() in held:
                raise InputError(f"data file {str(path)!r} is listed twice; expected every file once")
            if held and (part.number is None or part.family != parts[part.name][0].family):
                one = next(iter(held.values()))
                raise InputError(f"data sets {str(one)!r} and {str(path)!r} are both named {part.name!r}; rename one")
            held[path.resolve()] = path
            parts.setdefault(part.name, []).append(part)
            if path != Path(source).expanduser():
                whole.add(part.name)
    for name in whole:
        numbers, of = {part.number for part in parts[name]}, parts[name][0].of
        if of is not None and len(numbers) != of:
            raise InputError(
                f"data set {name!r} has {len(numbers)} of its {of} shards ({next(iter(found[name].values()))}, ...); "
                "expected all, or the shards listed one by one"
            )
    return {name: tuple(held.values()) for name, held in found.items()}


def _listed(source: str) -> list[Path]:
    """The data files that a source stands for, each once, in order."""
    if not source.strip():
        raise InputError(f"data file {source!r} is no name; expected a file, a directory, a glob or '{DEMO}'")
    if is_demo(source):
        return [path for name, (path,) in demo_files().items() if source in (DEMO, f"{DEMO}/{name}")]
    path = Path(source).expanduser()
    if path.exists():
        inside = _inside(path)
        if not inside:
            raise InputError(f"directory {source!r} holds no data; expected files {', '.join(SUFFIXES)}")
        return inside
    if not glob.has_magic(source):
        raise InputError(
            f"data file {source!r} does not exist; expected a file, a directory, a glob, '{DEMO}' or '{DEMO}/abbey'"
        )
    matches = [Path(p) for p in sorted(glob.glob(str(path), recursive=True))]
    listed = [p for match in matches for p in _inside(match)]
    saved = {p for p in listed if p.is_dir()}
    once: dict[Path, Path] = {}
    for found in listed:
        if saved.isdisjoint(found.parents):  # `**` matches what lies in a saved data set, too
            once.setdefault(found.resolve(), found)
    if not once:
        raise InputError(f"nothing matches {source!r}; expected at least one data file")
    return list(once.values())


def _inside(path: Path) -> list[Path]:
    """The data files of a directory; a file, or a saved data set, itself."""
    if not path.is_dir() or is_saved_dataset(path):
        return [path]
    return [p for p in sorted(path.iterdir()) if p.name.endswith(SUFFIXES) or is_saved_dataset(p)]


def _part(path: Path) -> _Part:
    stem = path.name
    for suffix in SUFFIXES:
        stem = stem.removesuffix(suffix)
    ending = path.name.removeprefix(stem)
    stem = stem if ending or path.is_dir() else path.stem
    shard = _SHARD.search(stem)
    if shard is None:
        return _Part(stem, None, None, ())
    family = (str(path.parent.resolve()), shard[2], ending)
    return _Part(stem[: shard.start()], int(shard[1]), int(shard[2]), family)
