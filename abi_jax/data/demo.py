"""The dialogues that come with the package, and the names by which data sets are found."""

from collections.abc import Sequence
from pathlib import Path

from abi_jax.errors import InputError

DEMO = "demo"
FOLDER = Path(__file__).parent / "demo"
SETS = ("abbey", "aviva", "abi", "blend")  # the last is what Abbey and Aviva say together, half and half


def demo_files() -> dict[str, Path]:
    """Returns data-set name -> JSONL file."""
    return {name: FOLDER / f"{name}.jsonl" for name in SETS}


def resolve(sources: Sequence[str]) -> dict[str, Path]:
    """Returns data-set name -> file for what a configuration lists: paths, `demo`, or one of its sets, `demo/abbey`.

    A data set is named by its file's stem. Raises `InputError` for a file that does not exist and
    for two files with one name.
    """
    found: dict[str, Path] = {}
    for source in sources:
        demo = demo_files()
        if source == DEMO:
            files = demo
        elif source.startswith(f"{DEMO}/") and source.removeprefix(f"{DEMO}/") in demo:
            name = source.removeprefix(f"{DEMO}/")
            files = {name: demo[name]}
        else:
            path = Path(source).expanduser()
            if not path.is_file():
                raise InputError(
                    f"data file {source!r} does not exist; expected a JSONL file, '{DEMO}' or '{DEMO}/abbey'"
                )
            files = {path.stem: path}
        for name, path in files.items():
            if name in found:
                raise InputError(
                    f"data sets {str(found[name])!r} and {str(path)!r} are both named {name!r}; rename one"
                )
            found[name] = path
    return found
