"""The two sides of the data: what is trained on, and what is kept apart to measure on."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from abi_jax.data.config import DataConfig
from abi_jax.data.duplicates import find_duplicates
from abi_jax.data.records import Record, Records, is_held_out, read_records
from abi_jax.data.sources import resolve
from abi_jax.errors import InputError
from abi_jax.persona import Persona

Split = Literal["train", "held_out"]


@dataclass(frozen=True)
class Splits:
    """Both sides, each with the tally of the files that it was read from: "read", "skipped" and "cleaned" records,
    and, of this side, those left out as "exact", "near" or "leaked" duplicates. A side not asked for is empty.
    """

    train: Records
    held_out: Records


def load_splits(
    config: DataConfig, personas: Sequence[Persona] | None = (), sides: Sequence[Split] = ("train", "held_out")
) -> Splits:
    """Reads, cleans, splits, and leaves out duplicates, as `config` says.

    personas: None leaves names unchecked, and a record needs none.
    """
    train = held_out = Records(())
    against_leaks = "train" in sides and config.duplicates != "keep"
    if not config.evaluate:
        read = _read(config, config.train, personas)
        one_in = config.folds or config.held_out
        apart = [is_held_out(r, one_in, config.fold) for r in read.records]
        train, held_out = (
            replace(
                read,
                records=tuple(r for r, a in zip(read.records, apart, strict=True) if a == side),
                tally={name: counts.copy() for name, counts in read.tally.items()},
            )
            for side in (False, True)
        )
    else:
        if "train" in sides:
            train = _read(config, config.train, personas)
        if "held_out" in sides or against_leaks:
            held_out = _read(config, config.evaluate, personas)
    return Splits(
        _distinct(config, train, held_out.records) if "train" in sides else Records(()),
        _distinct(config, held_out) if "held_out" in sides else Records(()),
    )


def load_split(config: DataConfig, split: Split, personas: Sequence[Persona] = ()) -> tuple[list[Record], int]:
    """Returns the records of a split and how many records were skipped. Raises `InputError` if it is empty."""
    side = getattr(load_splits(config, personas, (split,)), split)
    check_not_empty(config, split, side)
    return list(side.records), side.skipped


def check_not_empty(config: DataConfig, split: Split, side: Records) -> None:
    """Raises `InputError` saying where the records of a split went, if it has none."""
    if side.records:
        return
    sources = config.evaluate if split == "held_out" and config.evaluate else config.train
    read = sum(counts["read"] - counts["skipped"] for counts in side.tally.values())
    dropped = sum(counts[reason] for counts in side.tally.values() for reason in ("exact", "near", "leaked"))
    apart = f"fold {config.fold} of {config.folds}" if config.folds else f"one in held_out = {config.held_out}"
    why = "" if config.evaluate else f", {apart} kept apart"
    why += f", {dropped} duplicates left out" if dropped else ""
    raise InputError(
        f"the {split} split of {', '.join(sources)} is empty: {read} records{why}; "
        "expected more records or another held_out"
    )


def _read(config: DataConfig, sources: Sequence[str], personas: Sequence[Persona] | None) -> Records:
    checked = config.mode == "persona" and personas is not None
    names = [p.name for p in personas] if checked and personas is not None else None
    return read_records(resolve(sources), names, config.bad_records, checked, config.clean)


def _distinct(config: DataConfig, side: Records, held_out: Sequence[Record] = ()) -> Records:
    """The side without its duplicates, which are counted."""
    if config.duplicates == "keep":
        return side
    similarity = config.similarity if config.duplicates == "near" else None
    reasons = find_duplicates(side.records, held_out, similarity, by_voice=config.mode == "persona")
    tally = {name: counts.copy() for name, counts in side.tally.items()}
    for record, reason in zip(side.records, reasons, strict=True):
        if reason is not None:
            tally[record.dataset][reason] += 1
    kept = tuple(r for r, reason in zip(side.records, reasons, strict=True) if reason is None)
    return replace(side, records=kept, tally=tally)
