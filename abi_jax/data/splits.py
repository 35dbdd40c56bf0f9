"""The two sides of the data: what is trained on, and what is kept apart to measure on."""

from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from typing import Literal

from abi_jax.data.config import DataConfig
from abi_jax.data.duplicates import find_duplicates
from abi_jax.data.records import Record, Records, is_held_out, read_records
from abi_jax.data.sources import resolve
from abi_jax.errors import InputError
from abi_jax.persona import Persona

Split = Literal["train", "held_out"]


class Splits:
    """Both sides of the data as `config` says: read, cleaned, parted, without duplicates; each once, when asked for.

    A side's tally counts, by data set, the "read", "skipped" and "cleaned" records of the files it was read from, and
    those of its own left out as "exact", "near" or "leaked" duplicates.
    """

    def __init__(self, config: DataConfig, personas: Sequence[Persona] | None = ()) -> None:
        """personas: None leaves names unchecked, and a record needs none."""
        self.config, self.personas = config, personas

    @cached_property
    def train(self) -> Records:
        """What is trained on."""
        against_leaks = self.config.duplicates != "keep"
        train = self._read_train if self.config.evaluate else self._parted[0]
        return _distinct(self.config, train, self._read_held_out.records if against_leaks else ())

    @cached_property
    def held_out(self) -> Records:
        """What is measured on."""
        return _distinct(self.config, self._read_held_out)

    def side(self, split: Split) -> Records:
        """One of the two. Raises `InputError` saying where its records went, if it has none."""
        side = self.train if split == "train" else self.held_out
        if not side.records:
            raise InputError(_why_empty(self.config, split, side))
        return side

    @cached_property
    def _read_train(self) -> Records:
        return self._read(self.config.train)

    @cached_property
    def _read_held_out(self) -> Records:
        return self._read(self.config.evaluate) if self.config.evaluate else self._parted[1]

    @cached_property
    def _parted(self) -> tuple[Records, Records]:
        """The training files' records without those that are kept apart by their content, and those."""
        read, one_in = self._read_train, self.config.folds or self.config.held_out
        sides: tuple[list[Record], list[Record]] = ([], [])
        for record in read.records:
            sides[is_held_out(record, one_in, self.config.fold)].append(record)
        train, held_out = (replace(read, records=tuple(side)) for side in sides)
        return train, held_out

    def _read(self, sources: Sequence[str]) -> Records:
        config = self.config
        checked = config.mode == "persona" and self.personas is not None
        names = [p.name for p in self.personas] if checked and self.personas is not None else None
        return read_records(resolve(sources), names, config.bad_records, checked, config.clean)


def _why_empty(config: DataConfig, split: Split, side: Records) -> str:
    sources = config.evaluate if split == "held_out" and config.evaluate else config.train
    read = sum(counts["read"] - counts["skipped"] for counts in side.tally.values())
    dropped = sum(counts[reason] for counts in side.tally.values() for reason in ("exact", "near", "leaked"))
    apart = f"fold {config.fold} of {config.folds}" if config.folds else f"one in held_out = {config.held_out}"
    why = "" if config.evaluate else f", {apart} kept apart"
    why += f", {dropped} duplicates left out" if dropped else ""
    return (
        f"the {split} split of {', '.join(sources)} is empty: {read} records{why}; "
        "expected more records or another held_out"
    )


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
