"""Batches: read, shuffle, tokenise, pack. Deterministic, resumable, sharded by process.

Row r of every batch is a stream of its own: it takes examples r, r + B, r + 2B, ... of the shuffled,
repeated data set and packs them into rows. A process makes the rows it owns and tokenises nothing else,
and the global batches are the same however many processes share the work. A stream's state is the
number of examples it has taken and the examples in its open rows.

One pass over held-out data is a single stream that every process reads, taking its own rows, so that
all of them see the same number of batches.
"""

import hashlib
import json
import weakref
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any, Literal

import grain

from abi_jax.data.config import DataConfig
from abi_jax.data.demo import resolve
from abi_jax.data.examples import Example, ExampleSource
from abi_jax.data.packing import Batch, RowPacker, assemble
from abi_jax.data.records import Record, is_held_out, read_records
from abi_jax.errors import InputError
from abi_jax.persona import Persona, mixture_name
from abi_jax.text.tokenizer import Tokenizer

Split = Literal["train", "held_out"]
State = dict[str, Any]

# Settings that a saved position only makes sense with.
BINDING = ("mode", "length", "batch_size", "response_only", "held_out", "seed", "open_rows")


class _Stream:
    """Packs every `stride`-th example, from `first` on, into rows."""

    def __init__(self, examples: "grain.MapDataset[Example]", first: int, stride: int, config: DataConfig) -> None:
        self._examples = examples
        self._first = first
        self._stride = stride
        self._length = config.length
        self._limit = config.open_rows
        self.set_state({"taken": 0, "open": []})

    def row(self) -> list[Example] | None:
        """Returns the next row's examples; None when a finite data set is used up."""
        total = len(self._examples)
        while (at := self._first + self._taken * self._stride) < total:
            example = self._at(at)
            closed = self._packer.add(at, len(example))
            self._taken += 1
            if closed is not None:
                return [self._at(i) for i in closed]
        last = self._packer.finish()
        return None if last is None else [self._at(i) for i in last]

    def get_state(self) -> State:
        return {"taken": self._taken, "open": self._packer.open}

    def set_state(self, state: State) -> None:
        self._taken = int(state["taken"])
        rows = [[(int(i), len(self._at(int(i)))) for i in row] for row in state["open"]]
        self._packer = RowPacker(self._length, self._limit, rows)

    def _at(self, index: int) -> Example:
        example: Example = self._examples[index]
        return example


class _RowBatches(grain.IterDataset[Batch]):
    """The rows [first, last) of every batch, as a grain data set."""

    def __init__(
        self,
        examples: "grain.MapDataset[Example]",
        config: DataConfig,
        rows: range,
        single: bool,
        personas: int,
        pad: int,
    ) -> None:
        super().__init__()
        self.examples, self.config, self.rows, self.single = examples, config, rows, single
        self.personas, self.pad = personas, pad

    def __iter__(self) -> "_RowBatchesIterator":
        return _RowBatchesIterator(self)


class _RowBatchesIterator(grain.DatasetIterator[Batch]):
    def __init__(self, parent: _RowBatches) -> None:
        super().__init__()
        self._of = parent
        size = parent.config.batch_size
        owned, stride = ([0], 1) if parent.single else (list(parent.rows), size)
        self._streams = {r: _Stream(parent.examples, r, stride, parent.config) for r in owned}

    def __next__(self) -> Batch:
        of = self._of
        if of.single:
            every = [self._streams[0].row() for _ in range(of.config.batch_size)]
            if every[0] is None:
                raise StopIteration
            rows = [every[r] or [] for r in of.rows]
        else:
            rows = [stream.row() or [] for stream in self._streams.values()]
        return assemble(rows, of.config.length, of.personas, of.pad, of.config.response_only)

    def get_state(self) -> State:
        return {"streams": {str(r): s.get_state() for r, s in self._streams.items()}}

    def set_state(self, state: State) -> None:
        for r, stream in self._streams.items():
            if str(r) not in state["streams"]:
                raise InputError(
                    f"data position has rows {', '.join(state['streams'])} but not {r}; "
                    "expected the merged positions of all processes"
                )
            stream.set_state(state["streams"][str(r)])


class Batches(Iterator[Batch]):
    """This process's share of every batch: b = B / processes rows; see `packing.assemble` for the arrays.

    The train split is shuffled and repeated for ever; the held-out split is one pass in file order,
    its last batch filled up with empty rows. `groups` names the values of `group`; `mixtures` are the different
    ones of several personas; `counts` tells records, skipped records, examples made and examples cut.
    """

    def __init__(
        self,
        config: DataConfig,
        tokenizer: Tokenizer,
        personas: Sequence[Persona] = (),
        split: Split = "train",
        process_index: int = 0,
        process_count: int = 1,
    ) -> None:
        """Raises `InputError` for bad records, an empty split, and a batch the processes do not divide."""
        if config.batch_size % process_count:
            raise InputError(
                f"batch_size = {config.batch_size} does not divide by {process_count} processes; expected a multiple"
            )
        records, self._skipped = load_split(config, split, personas)
        self.config, self.split = config, split
        self._source = ExampleSource(records, config, tokenizer, personas)
        self._records = len(records)
        self.groups = tuple(self._source.groups)
        self.mixtures = tuple({mixture_name(r.mixture): r.mixture for r in records if len(r.mixture) > 1}.values())
        self._settings = {k: v for k, v in asdict(config).items() if k in BINDING} | {"split": split}
        self._digest = _digest(records, tokenizer, personas)
        examples: grain.MapDataset[Example] = grain.MapDataset.source(self._source)
        if split == "train":
            examples = examples.shuffle(seed=config.seed).repeat()
        share = config.batch_size // process_count
        rows = range(process_index * share, (process_index + 1) * share)
        batches = _RowBatches(examples, config, rows, split != "train", len(personas), tokenizer.pad_id)
        prefetched = grain.experimental.ThreadPrefetchIterDataset(batches, prefetch_buffer_size=config.prefetch)
        self._held = [iter(prefetched)]
        self._start = self._iterator.get_state()
        # A grain iterator that outlives its own modules complains when the interpreter exits.
        self._close = weakref.finalize(self, _close, self._held)

    @property
    def _iterator(self) -> Any:
        if not self._held:
            raise ValueError("these batches are closed")
        return self._held[0]

    def __next__(self) -> Batch:
        batch: Batch = next(self._iterator)
        return batch

    @property
    def examples(self) -> int:
        """Examples in one epoch, over all processes."""
        return len(self._source)

    @property
    def epoch(self) -> float:
        """Passes over the data so far, as far as this process can tell."""
        streams = self._iterator.get_state()["streams"].values()
        stride = 1 if self.split != "train" else self.config.batch_size
        taken: int = sum(s["taken"] for s in streams)
        return taken / len(streams) * stride / len(self._source)

    @property
    def counts(self) -> dict[str, int]:
        """Records read and skipped, examples made so far, and examples that lost something to the row length."""
        return {"records": self._records, "skipped": self._skipped, **self._source.counts}

    def get_state(self) -> State:
        """Returns the position after the last batch handed out, as JSON values."""
        return {"settings": self._settings, "data": self._digest, **self._iterator.get_state()}

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Continues from `get_state`'s value: the same batches follow, bit for bit.

        Takes `merge_states` of any number of processes. Raises `InputError` naming the setting, or
        saying that the data, tokenizer or personas changed.
        """
        for name, value in self._settings.items():
            if state["settings"].get(name) != value:
                raise InputError(
                    f"{name} is {value!r}, but this data position was saved with {state['settings'].get(name)!r}; "
                    "expected the same, or start the data afresh"
                )
        if state["data"] != self._digest:
            raise InputError(
                "the records, tokenizer or personas are not those this data position was saved with "
                f"(digest {self._digest[:12]}, saved {state['data'][:12]}); expected the same, or start the data afresh"
            )
        self._iterator.set_state({"streams": dict(state["streams"])})

    def restart(self) -> None:
        """Goes back to the first batch."""
        self._iterator.set_state(self._start)

    def close(self) -> None:
        """Stops the prefetch thread; asking for more batches is a `ValueError` from then on."""
        self._close()

    def __enter__(self) -> "Batches":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def load_split(config: DataConfig, split: Split, personas: Sequence[Persona] = ()) -> tuple[list[Record], int]:
    """Returns the records of a split and how many lines were skipped. Raises `InputError` if it is empty."""
    own = split == "held_out" and bool(config.evaluate)
    files = resolve(config.evaluate if own else config.train)
    names = [p.name for p in personas] if config.mode == "persona" else None
    read = read_records(files, names, config.bad_records, require_persona=config.mode == "persona")
    if config.evaluate:
        return list(read.records), read.skipped
    records = [r for r in read.records if is_held_out(r, config.held_out) == (split == "held_out")]
    if not records:
        raise InputError(
            f"the {split} split of {', '.join(config.train)} is empty: {len(read.records)} records, "
            f"one in held_out = {config.held_out} kept apart; expected more records or another held_out"
        )
    return records, read.skipped


def merge_states(states: Sequence[Mapping[str, Any]]) -> State:
    """Returns the positions of all processes as one, which any number of processes can continue from."""
    merged: State = {**states[0], "streams": {}}
    for state in states:
        merged["streams"].update(state["streams"])
    return merged


def _close(held: list[Any]) -> None:
    while held:
        held.pop().close()


def _digest(records: Sequence[Record], tokenizer: Tokenizer, personas: Sequence[Persona]) -> str:
    """SHA-256 over everything that decides what an example's arrays hold, where it was read aside."""
    digest = hashlib.sha256(tokenizer.digest.encode())
    rules = [{p.name: [p.loss_weights, p.reads, p.strict_reading]} for p in personas]
    for values in [*(vars(r) for r in records), *rules]:
        values = {k: v for k, v in values.items() if k != "where"}
        digest.update(json.dumps(values, sort_keys=True, ensure_ascii=False, default=str).encode() + b"\n")
    return digest.hexdigest()
