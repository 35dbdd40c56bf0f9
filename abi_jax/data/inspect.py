"""What a data set holds, as training would see it: counts, lengths, duplicates, balance, and what is wrong with it."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any

import grain
import numpy as np

from abi_jax.data.balance import NONE, Balanced, group_names, value_of
from abi_jax.data.config import ATTRIBUTES, DataConfig
from abi_jax.data.duplicates import find_duplicates
from abi_jax.data.examples import Example, ExampleSource, answers
from abi_jax.data.hashing import mixed, permutation
from abi_jax.data.packing import RowPacker
from abi_jax.data.progress import watched
from abi_jax.data.records import KEPT_REASONS, Record, Tally
from abi_jax.data.splits import Splits
from abi_jax.errors import InputError
from abi_jax.persona import Persona
from abi_jax.text.roles import Role
from abi_jax.text.tokenizer import Tokenizer

STEPS = ("read", "skipped", "cleaned", "exact", "near", "leaked")
ENOUGH_ROWS, MOST_EPOCHS, MOST_PLACES = 200, 20, 1 << 16


@dataclass(frozen=True)
class Lengths:
    """Of E examples: `sizes` int32 `[E]`, before any was cut, in `unit`; `datasets`, which of `names` each is of.

    cut: what was lost by examples longer than a row; filled: the share of the rows' places that hold a token, None
    where nothing could be packed; rows: rows of an epoch, on average.
    """

    unit: str
    sizes: np.ndarray
    datasets: np.ndarray
    names: tuple[str, ...]
    cut: dict[str, int] = field(default_factory=dict)
    filled: float | None = None
    rows: float | None = None

    def summary(self) -> dict[str, float]:
        """Least, median, 95th percentile, greatest and mean length."""
        if not len(self.sizes):
            return {}
        low, median, p95, high = np.percentile(self.sizes, [0, 50, 95, 100]).tolist()
        return {"min": low, "median": median, "p95": p95, "max": high, "mean": round(float(self.sizes.mean()), 1)}


@dataclass(frozen=True)
class Inspection:
    """What was found. Of both sides of the split, but for `balance` and packing, which are of training.

    steps: data set -> step -> records, as in `Splits`, with "held_out", "records" and "examples" that are left.
    counts: `persona`, `aspect`, `attributes.NAME` -> value -> (records, examples). duplicates: data set -> reason ->
    records that are, or would be, left out. bad: why records are malformed, or examples cannot be rendered, of which
    there are `unrendered`. balance: group -> (examples, places in an epoch). samples: parts of
    some examples, (role, text).
    """

    config: DataConfig
    steps: dict[str, dict[str, int]]
    counts: dict[str, dict[str, tuple[int, int]]]
    lengths: Lengths
    duplicates: Tally
    bad: tuple[str, ...]
    unrendered: int
    balance: dict[str, tuple[int, int]]
    samples: list[dict[str, Any]]

    def total(self, step: str) -> int:
        """Sum over the data sets."""
        return sum(counts[step] for counts in self.steps.values())

    def to_dict(self) -> dict[str, Any]:
        """All of it as JSON values, but for the length of every example."""
        named = ("records", "examples")
        return {
            **{name: self.total(name) for name in (*named, "held_out", "skipped")},
            "datasets": self.steps,
            "counts": {k: {v: dict(zip(named, n, strict=True)) for v, n in c.items()} for k, c in self.counts.items()},
            "lengths": {"unit": self.lengths.unit, **self.lengths.summary()},
            "cut": self.lengths.cut,
            "filled": self.lengths.filled,
            "rows": self.lengths.rows,
            "duplicates": {name: dict(counts) for name, counts in self.duplicates.items()},
            "bad": list(self.bad),
            "unrendered": self.unrendered,
            "balance": {name: {"before": n, "after": m} for name, (n, m) in self.balance.items()},
            "samples": self.samples,
        }


def inspect(
    config: DataConfig,
    personas: Sequence[Persona] | None = None,
    tokenizer: Tokenizer | None = None,
    samples: int = 3,
) -> Inspection:
    """Reads what `config` names and looks at it; malformed records are counted, whatever `bad_records` says.

    personas: None leaves names unchecked, and a record needs none. Without a tokenizer lengths are in words, and
    nothing is said about rows. Raises `InputError` for what cannot be read, or holds no usable record.
    """
    config = replace(config, bad_records="skip")
    splits = Splits(config, personas)
    train = list(splits.train.records)
    records = [*train, *splits.held_out.records]
    pairs = [(record, answer) for record in records for answer in answers(record, config.mode)]
    of_train = sum(len(answers(record, config.mode)) for record in train)
    balanced = _balanced(config, [record for record, _ in pairs[:of_train]])
    bad: list[str] = []
    if tokenizer is None:
        lengths = _in_words(pairs)
        shown = [(record, _turns(record, answer)) for record, answer in _chosen(pairs, samples, config.seed)]
    else:
        source = ExampleSource(records, config, tokenizer, personas or ())
        lengths, bad = _in_tokens(config, source, _epoch(balanced, of_train), len(balanced or range(of_train)))
        chosen = _chosen([(record, at) for at, (record, _) in enumerate(pairs)], samples, config.seed)
        shown = [(record, _parts(source, at, tokenizer)) for record, at in chosen]
    reasons = [*splits.train.reasons, *(splits.held_out.reasons if config.evaluate else ()), *bad]
    return Inspection(
        config=config,
        steps=_steps(config, splits, pairs),
        counts=_counts(records, config.mode),
        lengths=lengths,
        duplicates=_duplicates(config, splits),
        bad=tuple(reasons[:KEPT_REASONS]),
        unrendered=len(bad),
        balance={} if balanced is None else {name: (n, balanced.after[name]) for name, n in balanced.before.items()},
        samples=[
            {"where": r.where, **{key: value_of(r, key) for key in ("persona", "aspect")}, "parts": parts}
            for r, parts in shown
        ],
    )


def _steps(config: DataConfig, splits: Splits, pairs: Sequence[tuple[Record, int]]) -> dict[str, dict[str, int]]:
    steps = {name: {s: counts[s] for s in STEPS} for name, counts in splits.train.tally.items()}
    for name, counts in splits.held_out.tally.items():
        # Without files of its own, the held-out side was read with the other.
        added = ("exact", "near") if not config.evaluate else STEPS
        mine = steps.setdefault(name, dict.fromkeys(STEPS, 0))
        for step in added:
            mine[step] += counts[step]
    held = Counter(r.dataset for r in splits.held_out.records)
    usable = held + Counter(r.dataset for r in splits.train.records)
    examples = Counter(record.dataset for record, _ in pairs)
    return {
        name: {**mine, "held_out": held[name], "records": usable[name], "examples": examples[name]}
        for name, mine in steps.items()
    }


def _counts(records: Sequence[Record], mode: str) -> dict[str, dict[str, tuple[int, int]]]:
    attributes = sorted({f"{ATTRIBUTES}{name}" for record in records for name in record.attributes})
    found = {}
    for key in ("persona", "aspect", *attributes):
        of_records: Counter[str] = Counter()
        of_examples: Counter[str] = Counter()
        for record in records:
            found_value = value_of(record, key)
            value = NONE if found_value is None else found_value
            of_records[value] += 1
            of_examples[value] += len(answers(record, mode))
        if key == "persona" or set(of_records) != {NONE}:
            found[key] = {value: (n, of_examples[value]) for value, n in of_records.most_common()}
    return found


def _duplicates(config: DataConfig, splits: Splits) -> Tally:
    """What was left out; where nothing was to be, what would have been."""
    found: Tally = {}
    sides = ((splits.train, splits.held_out.records), (splits.held_out, ()))
    for side, against in sides:
        for name, counts in side.tally.items():
            of = found.setdefault(name, Counter({"exact": 0, "near": 0, "leaked": 0}))
            of.update({reason: counts[reason] for reason in ("exact", "near", "leaked")})
        if config.duplicates == "keep":
            reasons = find_duplicates(side.records, against, config.similarity, config.mode == "persona")
            for record, reason in zip(side.records, reasons, strict=True):
                if reason is not None:
                    found[record.dataset][reason] += 1
    return found


def _balanced(config: DataConfig, records: Sequence[Record]) -> Balanced | None:
    """The balanced numbers of the records, one for every example; None where nothing is balanced."""
    if not config.balance.by or not records:
        return None
    names = group_names(records, config.balance.by)
    return Balanced(grain.MapDataset.range(len(records)), names, config.balance, config.seed)


def _epoch(balanced: Balanced | None, examples: int) -> np.ndarray:
    """The examples of an epoch, int64; of a large balanced one, `MOST_PLACES` drawn from it."""
    if balanced is None:
        return np.arange(examples)
    size = len(balanced)
    places = range(size) if size <= MOST_PLACES else mixed(np.arange(MOST_PLACES, dtype=np.uint64)) % np.uint64(size)
    return np.array([balanced[int(at)] for at in places])


def _in_words(pairs: Sequence[tuple[Record, int]]) -> Lengths:
    sizes = [sum(len(text.split()) for _, text in _turns(record, answer)) for record, answer in pairs]
    return Lengths("words", np.array(sizes, np.int32), *_datasets([record for record, _ in pairs]))


def _in_tokens(config: DataConfig, source: ExampleSource, order: np.ndarray, places: int) -> tuple[Lengths, list[str]]:
    """The lengths, and why some examples cannot be rendered; `order` stands for the `places` of an epoch."""
    sizes, full = np.zeros((2, len(source)), np.int32)
    bad: list[str] = []
    for at in watched(range(len(source)), "tokenising", len(source)):
        try:
            example = source[at]
        except InputError as error:
            bad.append(str(error))
            continue
        sizes[at] = len(example)
        full[at] = source.full_length(at) if example.cuts else sizes[at]
    usable = sizes > 0
    filled, rows = _packed(config, sizes, order[usable[order]], places / max(len(order), 1))
    cut = {name: n for name, n in source.counts.items() if name != "examples"}
    datasets, names = _datasets([source.record_of(at) for at in range(len(source))])
    return Lengths("tokens", full[usable], datasets[usable], names, cut, filled, rows), bad


def _packed(
    config: DataConfig, sizes: np.ndarray, order: np.ndarray, scale: float
) -> tuple[float | None, float | None]:
    """How full one stream's rows are, and how many of them an epoch makes that is `scale` times `order`."""
    packer = RowPacker(config.length, config.open_rows)
    closed = tokens = epochs = 0
    while len(order) and closed < ENOUGH_ROWS and epochs < MOST_EPOCHS:
        for place in permutation(len(order), config.seed, epochs):
            at = int(order[place])
            row = packer.add(at, int(sizes[at]))
            if row is not None:
                closed += 1
                tokens += int(sizes[row].sum())
        epochs += 1
    if not closed:
        return None, None
    filled = tokens / (closed * config.length)
    return round(filled, 4), round(scale * float(sizes[order].sum()) / (filled * config.length), 1)


def _datasets(records: Sequence[Record]) -> tuple[np.ndarray, tuple[str, ...]]:
    names = tuple(dict.fromkeys(record.dataset for record in records))
    number = {name: at for at, name in enumerate(names)}
    return np.array([number[record.dataset] for record in records], np.int32), names


def _chosen(pairs: Sequence[tuple[Record, int]], count: int, seed: int) -> list[tuple[Record, int]]:
    """Some of the pairs, of every persona before a second of any."""
    mixed = [pairs[int(at)] for at in permutation(len(pairs), seed)]
    seen: Counter[str | None] = Counter()
    rounds = []
    for at, (record, _) in enumerate(mixed):
        persona = value_of(record, "persona")
        rounds.append((seen[persona], at))
        seen[persona] += 1
    return [mixed[at] for _, at in sorted(rounds)[:count]]


def _turns(record: Record, answer: int) -> list[tuple[str, str]]:
    """An example as (role, text), as it was written."""
    before = [("policy", record.policy)] if record.policy else []
    before += [("memory", text) for text in record.memory]
    turns = record.turns[: answer + 1]
    roles = ["history"] * (len(turns) - 2) + ["input", "response"]
    return before + [(role, turn["content"]) for role, turn in zip(roles, turns, strict=True)]


def _parts(source: ExampleSource, at: int, tokenizer: Tokenizer) -> list[tuple[str, str]]:
    """An example as (role, text), as the model reads it: runs of tokens of one role."""
    try:
        example: Example = source[at]
    except InputError as error:
        return [("cannot be rendered", str(error))]
    ids = np.append(example.tokens, example.targets[-1:])
    roles = np.append(example.roles, Role.RESPONSE)
    edges = [0, *(np.flatnonzero(np.diff(roles)) + 1).tolist(), len(ids)]
    return [
        (Role(int(roles[lo])).name.lower(), tokenizer.decode(ids[lo:hi], skip_special=False))
        for lo, hi in pairwise(edges)
    ]
