"""Checks a model directory against its lineage: links, records, files and, tensor by tensor, what the files hold."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from abi_jax.errors import InputError
from abi_jax.lineage import Break
from abi_jax.lineage_digest import digest_tree
from abi_jax.lineage_seal import broken_seals
from abi_jax.model.directory import ModelDirectory
from abi_jax.model.provenance import Provenance, Record

Track = Callable[[Iterable[str], int], Iterable[str]]


@dataclass(frozen=True)
class Finding:
    """Something that is not as it was made. tensors: those that no longer hold what they held."""

    where: str
    reason: str
    tensors: tuple[str, ...] = ()

    def __str__(self) -> str:
        some = ", ".join(self.tensors[:3]) + (f" and {len(self.tensors) - 3} more" if len(self.tensors) > 3 else "")
        return f"{self.where}: {self.reason}" + (f"; damaged: {some}" if some else "")


@dataclass(frozen=True)
class Verified:
    """What was checked, in numbers, and what was found."""

    links: int
    steps: int
    files: int
    tensors: int
    findings: tuple[Finding, ...]


def verify(path: Path, contents: bool = True, track: Track = lambda names, total: names) -> Verified:
    """Checks all of a directory. Without `contents`, tensors are read only where a file is damaged.

    track: wraps the names of the tensors that are about to be read, e.g. in a progress bar.
    """
    directory, provenance = ModelDirectory.open(path), Provenance(path)
    if not provenance.chain.path.is_file():
        raise InputError(f"{str(path)!r} has no lineage/chain.jsonl; expected a model's lineage")
    chain = provenance.chain.path.relative_to(provenance.path).as_posix()
    findings, records = [], {}
    entries = list(provenance.chain.entries())
    for number, link in enumerate(entries, 1):
        place = provenance.record_path(number).relative_to(provenance.path).as_posix()
        if isinstance(link, Break):
            findings.append(Finding(chain, str(link)))
            continue
        try:
            record = Record.parse(provenance.record_path(number).read_bytes())
        except OSError as error:
            findings.append(Finding(place, f"{error.strerror}"))
        except (ValueError, KeyError, TypeError, AttributeError):
            findings.append(Finding(place, "changed: not a record"))
        else:
            if record.answers(link):
                records[link.step] = record
            else:
                findings.append(Finding(place, f"changed: not what link {number} stands for"))
    whole, linked = directory.steps(), {e.step for e in entries if not isinstance(e, Break)}
    findings += [Finding(f"checkpoints/{step}", "no link stands for it") for step in whole if step not in linked]
    last = entries[-1] if entries else None
    if last is not None and not isinstance(last, Break) and last.step not in whole:
        findings.append(Finding(f"checkpoints/{last.step}", "missing: the newest link stands for it"))
    files = tensors = 0
    for step in whole:
        if step in records:
            more, read = _check_step(provenance, records[step], step == whole[-1], contents, track)
            findings += more
            files += len(records[step].files)
            tensors += read
    return Verified(len(entries), len(whole), files, tensors, tuple(findings))


def _check_step(
    provenance: Provenance, record: Record, newest: bool, contents: bool, track: Track
) -> tuple[list[Finding], int]:
    """Checks one step's files and tensors; those that all steps share may have changed since an older one."""
    own = f"checkpoints/{record.step}/"
    broken = broken_seals(provenance.path, record.files, provenance.files(record.step))
    broken = {name: why for name, why in broken.items() if newest or name.startswith(own)}
    items = sorted({name.split("/")[0] for name in record.tensors})
    suspects = [item for item in items if any(name.startswith(f"{own}{item}/") for name in broken)]
    wanted = [name for name in record.tensors if contents or name.split("/")[0] in suspects]
    damaged = [name for name in track(wanted, len(wanted)) if not _holds(provenance, record, name)]
    found = []
    for name, why in sorted(broken.items()):
        item = name.removeprefix(own).split("/")[0]
        found.append(Finding(name, why, tuple(t for t in damaged if t.split("/")[0] == item)))
    unseen = [name for name in damaged if name.split("/")[0] not in suspects]
    found += [Finding(f"{own}{name}", "its digest is not the one it was saved with", (name,)) for name in unseen]
    return found, len(wanted)


def _holds(provenance: Provenance, record: Record, name: str) -> bool:
    try:
        stored: Any = ModelDirectory(provenance.path).read_tensor(record.step, name, record.tensors[name].shape)
    except (ValueError, OSError):
        return False
    return digest_tree({name: stored})[name] == record.tensors[name]
