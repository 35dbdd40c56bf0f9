"""Seals: hashes of files, which protect them in transit. What files mean is in the tensors' digests, not here."""

import hashlib
import os
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

from abi_jax.lineage_digest import canonical, merkle_root, sha256


def seal_files(folder: Path, files: Iterable[Path], strict: bool = True) -> dict[str, str]:
    """SHA-256 of each file, hexadecimal, by its path below `folder`; unless `strict`, why one cannot be read."""
    found = sorted(files)
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        return dict(
            zip((f.relative_to(folder).as_posix() for f in found), pool.map(partial(_hash, strict), found), strict=True)
        )


def seal_root(seals: Mapping[str, str]) -> str:
    """One hash for all files, as hexadecimal."""
    return merkle_root([sha256("file", canonical([name, seals[name]])) for name in sorted(seals)]).hex()


def broken_seals(folder: Path, seals: Mapping[str, str], files: Iterable[Path]) -> dict[str, str]:
    """What is wrong by file: "missing", "changed", or "not sealed" for one of `files` that has no seal."""
    there = {f.relative_to(folder).as_posix(): f for f in files}
    now = seal_files(folder, (there[name] for name in seals if name in there), strict=False)
    wrong = {name: "missing" for name in seals if name not in there}
    wrong |= {name: value if " " in value else "changed" for name, value in now.items() if value != seals[name]}
    return wrong | {name: "not sealed" for name in there if name not in seals}


def _hash(strict: bool, path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        if strict:
            raise
        return f"cannot be read: {error.strerror}"
