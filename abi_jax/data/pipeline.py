"""Batches: read, balance, shuffle, tokenise, pack. Deterministic, resumable, sharded by process.

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
from typing import Any

import grain

from abi_jax.data.balance import Balanced, group_names
from abi_jax.data.config import DataConfig
from abi_jax.data.examples import Example, ExampleSource, attribute_values
from abi_jax.data.packing import Batch, RowPacker, assemble
from abi_jax.data.records import Record
from abi_jax.data.splits import Split, Splits
from abi_jax.errors import InputError
from abi_jax.persona import Persona, mixture_name
from abi_jax.text.tokenizer import Tokenizer

State = dict[str, Any]

# Settings that a saved position only makes sense with.
BINDING = (
    *("mode", "length", "batch_size", "response_only", "held_out", "folds", "fold"),
    *("balance", "group_by", "bias_by", "seed", "open_rows"),
)
# A batch, and where the records in it were read.
Item = tuple[Batch, tuple[str, ...]]


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


class _RowBatches(grain.IterDataset[Item]):
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


class _RowBatchesIterator(grain.DatasetIterator[Item]):
    def __init__(self, parent: _RowBatches) -> None:
        super().__init__()
        self._of = parent
        size = parent.config.batch_size
        owned, stride = ([0], 1) if parent.single else (list(parent.rows), size)
        self._streams = {r: _Stream(parent.examples, r, stride, parent.config) for r in owned}

    def __next__(self) -> Item:
        of = self._of
        if of.single:
            every = [self._streams[0].row() for _ in range(of.config.batch_size)]
            if every[0] is None:
                raise StopIteration
            rows = [every[r] or [] for r in of.rows]
        else:
            rows = [stream.row() or [] for stream in self._streams.values()]
        config = of.config
        batch = assemble(rows, config.length, of.personas, of.pad, config.response_only, bool(config.bias_by))
        return batch, tuple(example.where for row in rows for example in row)

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

    The train split is shuffled, balanced and repeated for ever; the held-out split is one pass, shuffled,
    its last batch filled up with empty rows. `groups` names the values of `group`, `attributes` those of `attribute`
    from 1 on; `mixtures` are the different ones of several personas; `balance` tells for every group how many
    examples it has and how many places in an epoch; `tally` tells by data set what became of its records.
    `last_records` names the record of every example in the batch that was handed out last, in order.
    """

    def __init__(
        self,
        config: DataConfig,
        tokenizer: Tokenizer,
        personas: Sequence[Persona] = (),
        split: Split = "train",
        process_index: int = 0,
        process_count: int = 1,
        splits: Splits | None = None,
    ) -> None:
        """splits: the data, if something has read them already; of a configuration that reads the same.

        Raises `InputError` for bad records, an empty split, and a batch the processes do not divide.
        """
        if config.batch_size % process_count:
            raise InputError(
                f"batch_size = {config.batch_size} does not divide by {process_count} processes; expected a multiple"
            )
        splits = splits or Splits(config, personas)
        side = splits.side(split)
        records = side.records
        # A value of an attribute has one number on both sides.
        everyone = [*splits.train.records, *splits.held_out.records] if config.bias_by else []
        self.attributes = tuple(attribute_values(everyone, config.bias_by))
        if config.bias_by and not self.attributes:
            raise InputError(f"bias_by = {config.bias_by!r}, but no record has that attribute; expected at least one")
        self.config, self.split = config, split
        self._source = ExampleSource(records, config, tokenizer, personas, self.attributes)
        self._records, self._skipped, self.tally = len(records), side.skipped, side.tally
        self.last_records: tuple[str, ...] = ()
        self.groups = tuple(self._source.groups)
        self.mixtures = tuple({mixture_name(r.mixture): r.mixture for r in records if len(r.mixture) > 1}.values())
        self._settings = _binding(config) | {"split": split}
        self._digest = _digest(records, tokenizer, personas, self.attributes)
        self.balance: dict[str, tuple[int, int]] = {}
        examples: grain.MapDataset[Example] = grain.MapDataset.source(self._source)
        self.examples = len(self._source)
        if split == "train":
            examples = self._balanced(examples).shuffle(seed=config.seed).repeat()
        else:  # so that the first batches speak for all data sets
            examples = examples.shuffle(seed=0)
        share = config.batch_size // process_count
        rows = range(process_index * share, (process_index + 1) * share)
        batches = _RowBatches(examples, config, rows, split != "train", len(personas), tokenizer.pad_id)
        prefetched = grain.experimental.ThreadPrefetchIterDataset(batches, prefetch_buffer_size=config.prefetch)
        self._held = [iter(prefetched)]
        self._start = self._iterator.get_state()
        # A grain iterator that outlives its own modules complains when the interpreter exits.
        self._close = weakref.finalize(self, _close, self._held)

    def _balanced(self, examples: "grain.MapDataset[Example]") -> "grain.MapDataset[Example]":
        config = self.config.balance
        if not config.by or not config.alpha:
            return examples
        of = [self._source.record_of(at) for at in range(len(self._source))]
        balanced = Balanced(examples, group_names(of, config.by), config, self.config.seed)
        self.balance = {name: (count, balanced.after[name]) for name, count in balanced.before.items()}
        self.examples = len(balanced)
        return balanced

    @property
    def _iterator(self) -> Any:
        if not self._held:
            raise ValueError("these batches are closed")
        return self._held[0]

    def __next__(self) -> Batch:
        batch: Batch
        batch, self.last_records = next(self._iterator)
        return batch

    @property
    def epoch(self) -> float:
        """Passes over the data so far, as far as this process can tell."""
        streams = self._iterator.get_state()["streams"].values()
        stride = 1 if self.split != "train" else self.config.batch_size
        taken: int = sum(s["taken"] for s in streams)
        return taken / len(streams) * stride / self.examples

    @property
    def counts(self) -> dict[str, int]:
        """Records of the split and skipped ones, different examples made so far, and examples that lost something
        to the row length.
        """
        return {"records": self._records, "skipped": self._skipped, **self._source.counts}

    def get_state(self) -> State:
        """Returns the position after the last batch handed out, as JSON values."""
        return {"settings": self._settings, "data": self._digest, **self._iterator.get_state()}

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Continues from `get_state`'s value: the same batches follow, bit for bit.

        Takes `merge_states` of any number of processes. Raises `InputError` naming the setting, or
        saying that the data, tokenizer or personas changed.
        """
        saved = _binding(DataConfig()) | state["settings"]  # a setting that is younger was at its default
        for name, value in self._settings.items():
            if saved[name] != value:
                raise InputError(
                    f"{name} is {value!r}, but this data position was saved with {saved[name]!r}; "
                    "expected the same, or start the data afresh"
                )
        if state["data"] != self._digest:
            raise InputError(
                "the records, tokenizer or personas are not those this data position was saved with "
                f"(digest {self._digest[:12]}, saved {state['data'][:12]}); expected the same, or start the data afresh"
            )
        self._iterator.set_state({"streams": dict(state["streams"])})
        self.last_records = ()

    def restart(self) -> None:
        """Goes back to the first batch."""
        self._iterator.set_state(self._start)
        self.last_records = ()

    def close(self) -> None:
        """Stops the prefetch thread; asking for more batches is a `ValueError` from then on."""
        self._close()

    def __enter__(self) -> "Batches":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def merge_states(states: Sequence[Mapping[str, Any]]) -> State:
    """Returns the positions of all processes as one, which any number of processes can continue from."""
    merged: State = {**states[0], "streams": {}}
    for state in states:
        merged["streams"].update(state["streams"])
    return merged


def _binding(config: DataConfig) -> State:
    """The settings named `BINDING`, as JSON gives them back."""
    settings: State = json.loads(json.dumps({k: v for k, v in asdict(config).items() if k in BINDING}))
    return settings


def _close(held: list[Any]) -> None:
    while held:
        held.pop().close()


def _digest(
    records: Sequence[Record], tokenizer: Tokenizer, personas: Sequence[Persona], attributes: Sequence[str]
) -> str:
    """SHA-256 over everything that decides what an example's arrays hold, where it was read aside."""
    digest = hashlib.sha256(tokenizer.digest.encode())
    rules = [{p.name: [p.loss_weights, p.reads, p.strict_reading]} for p in personas]
    for values in [*(vars(r) for r in records), *rules]:
        values = {k: v for k, v in values.items() if k != "where"}
        digest.update(json.dumps(values, sort_keys=True, ensure_ascii=False, default=str).encode() + b"\n")
    digest.update("".join(f"{value}\n" for value in attributes).encode())
    return digest.hexdigest()
