"""Checks a model directory against its lineage: links, records, files and, tensor by tensor, what the files hold."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from abi_jax.errors import InputError
from abi_jax.files import is_marked
from abi_jax.lineage import Break, Link
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
    """What was checked, in numbers, and what was found. writing: steps that a run is about to finish."""

    links: int
    steps: int
    files: int
    tensors: int
    findings: tuple[Finding, ...]
    writing: tuple[int, ...] = ()


def verify(path: Path, contents: bool = True, track: Track = lambda names, total: names) -> Verified:
    """Checks all of a directory. Without `contents`, tensors are read only where a file is damaged.

    A run may go on meanwhile: what it drops, or has not linked yet, is no damage. track: wraps the names of the
    tensors that are about to be read, e.g. in a progress bar.
    """
    directory, provenance = ModelDirectory.open(path), Provenance(path)
    if not provenance.chain.path.is_file():
        why = "; its first checkpoint is being written" if is_marked(provenance.writing) else ""
        raise InputError(f"{str(path)!r} has no lineage/chain.jsonl{why}; expected a model's lineage")
    entries = list(provenance.chain.entries())
    findings, records = _check_links(provenance, entries)
    whole, numbers = directory.steps(), _numbers(entries)
    files = tensors = 0
    of_step: dict[int, list[Finding]] = {}
    for step in whole:
        if step in records:
            of_step[step], read = _check_step(provenance, records[step], step == whole[-1], contents, track)
            files += len(records[step].files)
            tensors += read

    going_on, now = is_marked(provenance.writing), _numbers(provenance.chain.entries())
    there = directory.steps()
    newest = max(now, key=lambda step: now[step], default=-1)
    if now and newest not in there:
        findings.append(Finding(f"checkpoints/{newest}", "missing: the newest link stands for it"))
    settled, unlinked = now.get(newest) == numbers.get(newest), []
    for step in there:
        found = of_step.get(step, []) if numbers.get(step) == now.get(step) else []
        if step not in now or found == [_unlinked(step)]:
            unlinked.append(step)
        else:
            findings += [f for f in found if settled or f.where.startswith("checkpoints/")]
    if not going_on:
        findings += map(_unlinked, unlinked)
    return Verified(len(entries), len(whole), files, tensors, tuple(findings), tuple(unlinked if going_on else ()))


def _unlinked(step: int) -> Finding:
    return Finding(f"checkpoints/{step}", "no link stands for it")


def _numbers(entries: Iterable[Link | Break]) -> dict[int, int]:
    """The number of the last link of every step."""
    return {link.step: number for number, link in enumerate(entries, 1) if not isinstance(link, Break)}


def _check_links(provenance: Provenance, entries: Sequence[Link | Break]) -> tuple[list[Finding], dict[int, Record]]:
    """What is wrong with links and records, and the record of every step's last link that has one."""
    chain = provenance.chain.path.relative_to(provenance.path).as_posix()
    findings: list[Finding] = []
    records: dict[int, Record] = {}
    for number, link in enumerate(entries, 1):
        place = provenance.record_path(number).relative_to(provenance.path).as_posix()
        if isinstance(link, Break):
            findings.append(Finding(chain, str(link)))
            continue
        records.pop(link.step, None)
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
    return findings, records


def _check_step(
    provenance: Provenance, record: Record, newest: bool, contents: bool, track: Track
) -> tuple[list[Finding], int]:
    """Checks one step's files and tensors; those that all steps share may have changed since an older one."""
    own = f"checkpoints/{record.step}/"
    broken = broken_seals(provenance.path, record.files, provenance.files(record.step))
    broken = {name: why for name, why in broken.items() if newest or name.startswith(own)}
    if {"missing", "not sealed"} <= set(broken.values()) and broken.get(f"{own}_CHECKPOINT_METADATA") == "changed":
        return [_unlinked(record.step)], 0  # all of it is another's: the step was saved again
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
