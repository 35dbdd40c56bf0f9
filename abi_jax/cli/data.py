"""Look at training data before it is trained on.

  abi data inspect chats.jsonl                                    counts, lengths in words, duplicates, bad records
  abi data inspect chats/ --tokenizer runs/base --length 1024     lengths in tokens, what a row cuts, how rows fill
  abi data inspect 'chats-*.parquet' --personas abbey,aviva       personas checked as abi train checks them
  abi data inspect chats.jsonl --set data.balance.by=persona,attributes.age --set data.duplicates=near
  abi data inspect --config configs/train/personas.yaml           what abi train would see

Every setting of `data` in a training configuration can be given with --set, and is obeyed. `abi data inspect --help`
lists all arguments.
"""

import argparse
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from abi_jax.errors import InputError

if TYPE_CHECKING:
    from abi_jax.data.inspect import Inspection
    from abi_jax.persona import Persona
    from abi_jax.train.config import TrainConfig

HELP = "look at training data: counts, lengths, duplicates, balance"
NO_FIGURE = "none"
SHOWN = 12
WIDTH = 32


def add_arguments(parser: argparse.ArgumentParser) -> Sequence[argparse.ArgumentParser]:
    """Declares the verb's arguments; returns the parsers of what it can do."""
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    inspect = actions.add_parser(
        "inspect",
        help="what a data set holds, as training would see it",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    inspect.add_argument(
        "files", nargs="*", metavar="FILES", help="files, directories, globs, saved data sets, demo or demo/abbey"
    )
    inspect.add_argument("--config", type=Path, metavar="YAML", help="training configuration with data and personas")
    inspect.add_argument("--personas", metavar="NAMES", help="names or files, e.g. abbey,aviva: others are errors")
    inspect.add_argument("--tokenizer", type=Path, metavar="MODEL", help="model or Hugging Face directory")
    inspect.add_argument("--length", type=int, metavar="T", help="tokens of a row (default: 512)")
    inspect.add_argument("--samples", type=int, default=3, metavar="N", help="examples to show (default: 3)")
    inspect.add_argument(
        "--figure",
        default="runs/data.png",
        metavar="FILE",
        help=f"where to draw lengths and balance (default: runs/data.png); {NO_FIGURE} for nowhere",
    )
    inspect.add_argument(
        "--set", action="append", default=[], dest="overrides", metavar="KEY=VALUE", help="e.g. data.clean=true"
    )
    return [inspect]


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Inspects, draws and prints; returns the numbers."""
    from dataclasses import replace

    from abi_jax.config import load
    from abi_jax.data.figure import draw
    from abi_jax.data.inspect import inspect
    from abi_jax.persona import load_personas
    from abi_jax.text import Tokenizer
    from abi_jax.train.config import TrainConfig

    if not options.files and options.config is None:
        raise InputError("nothing to inspect; expected files, 'demo' or --config")
    figure = None if options.figure == NO_FIGURE else Path(options.figure)
    if figure is not None and figure.suffix.lower() not in (".png", ".svg", ".pdf"):
        raise InputError(
            f"--figure {options.figure!r}; expected a name that ends in .png, .svg or .pdf, or {NO_FIGURE}"
        )
    if options.samples < 0:
        raise InputError(f"--samples {options.samples}; expected 0 or more")
    tokenizer = None
    if options.tokenizer is not None:
        inside = options.tokenizer / "tokenizer"
        tokenizer = Tokenizer.load(inside if inside.is_dir() else options.tokenizer)
    length = [] if options.length is None else [f"data.length={options.length}"]
    config = load(TrainConfig, options.config, [*length, *options.overrides])
    personas = None
    if options.personas:
        personas = load_personas(options.personas.split(","))
    elif options.config is not None:
        personas = _personas(config)
    data = replace(config.data, train=tuple(options.files)) if options.files else config.data
    found = inspect(data, personas, tokenizer, options.samples)
    if figure is not None:
        figure.parent.mkdir(parents=True, exist_ok=True)
        draw(found, figure)
    if not options.json:
        for line in report(found):
            print(line)
        if figure is not None:
            print(f"\nfigure: {figure}")
    return {**found.to_dict(), "figure": None if figure is None else str(figure)}


def _personas(config: "TrainConfig") -> "tuple[Persona, ...]":
    """The personas of a run: those of the model that it starts from, where that can be seen, and its own."""
    from abi_jax.model.directory import ModelDirectory
    from abi_jax.persona import load_personas

    init = config.model.init
    model = ModelDirectory(init) if init is not None and (init / "model.yaml").is_file() else None
    has = model.personas if model is not None and model.config.persona else ()
    known = {p.name for p in has}
    return (*has, *(p for p in load_personas(config.personas) if p.name not in known))


def report(found: "Inspection") -> Iterator[str]:
    """Yields the lines of the report."""
    left = f"{found.total('records'):,} records, {found.total('examples'):,} examples"
    yield f"{_shortened(', '.join(found.config.train))}: {left}, {found.total('held_out'):,} records held out"
    yield ""
    yield from _table("data set", _by_dataset(found))
    for key, counts in found.counts.items():
        rows = {value: {"records": n, "examples": m} for value, (n, m) in counts.items()}
        yield ""
        yield from _table(key, rows, bar="examples")
    yield ""
    yield from _about_lengths(found)
    if found.balance:
        config = found.config.balance
        yield ""
        sizes = {name: {"before": n, "after": m} for name, (n, m) in found.balance.items()}
        yield from _table(f"balance, alpha {config.alpha:g}", sizes, bar="after")
    yield from _about_trouble(found)
    for sample in found.samples:
        yield ""
        yield _shortened(" | ".join(str(v) for v in (sample["where"], sample["persona"], sample["aspect"]) if v))
        yield from (f"  {role:<9} {_shortened(text)}" for role, text in sample["parts"])


def _by_dataset(found: "Inspection") -> dict[str, dict[str, int]]:
    rows = {}
    for name, steps in found.steps.items():
        said = {k: steps[k] for k in ("records", "examples", "held_out", "cleaned", "skipped")}
        rows[name] = {**said, **found.duplicates.get(name, {})}
    return rows


def _about_lengths(found: "Inspection") -> Iterator[str]:
    of = found.lengths
    yield f"{of.unit} in an example: " + ", ".join(f"{name} {value:g}" for name, value in of.summary().items())
    if of.unit != "tokens":
        yield "(--tokenizer MODEL counts tokens, and tells what a row of --length tokens would cut)"
        return
    length = found.config.length
    over = int((of.sizes > length).sum())
    lost = ", ".join(f"{name.replace('_', ' ')} {n:,}" for name, n in sorted(of.cut.items()))
    yield f"longer than a row of {length:,}: {over:,} of {len(of.sizes):,}" + (f" ({lost})" if lost else "")
    if of.filled is not None and of.rows is not None:
        batches = of.rows / found.config.batch_size
        yield f"packed rows are {of.filled:.1%} full; an epoch is about {of.rows:,.0f} rows, {batches:,.1f} batches"


def _about_trouble(found: "Inspection") -> Iterator[str]:
    config = found.config
    sums = {reason: sum(c[reason] for c in found.duplicates.values()) for reason in ("exact", "near", "leaked")}
    if any(sums.values()):
        counted = ", ".join(f"{n:,} {reason}" for reason, n in sums.items() if n)
        kept = "kept; data.duplicates=near leaves them out" if config.duplicates == "keep" else "left out"
        yield ""
        yield f"duplicates: {counted} ({kept}; leaked: as what is held out)"
    if found.bad:
        yield ""
        unrendered = f", {found.unrendered:,} examples that cannot be rendered" if found.unrendered else ""
        yield f"bad records: {found.total('skipped'):,} malformed{unrendered}"
        yield from (f"  {_shortened(reason, 160)}" for reason in found.bad)


def _table(title: str, rows: Mapping[str, Mapping[str, int]], bar: str | None = None) -> Iterator[str]:
    """Columns of numbers, at most `SHOWN` rows, and a bar for the share that one column has."""
    shown = dict(list(rows.items())[:SHOWN])
    columns = list(next(iter(rows.values()), {}))
    first = max(min(len(title), WIDTH), *(min(len(name), WIDTH) for name in shown)) + 2
    widths = {c: max(len(c), *(len(f"{row[c]:,}") for row in shown.values())) + 2 for c in columns}
    yield _shortened(title, WIDTH).ljust(first) + "".join(c.replace("_", " ").rjust(w) for c, w in widths.items())
    total = sum(row[bar] for row in rows.values()) if bar else 0
    for name, row in shown.items():
        line = _shortened(name, WIDTH).ljust(first) + "".join(f"{row[c]:,}".rjust(w) for c, w in widths.items())
        if bar and total:
            share = row[bar] / total
            line += f"  {share:6.1%} {'█' * round(20 * share)}"
        yield line.rstrip()
    if len(rows) > len(shown):
        yield f"... and {len(rows) - len(shown):,} more"


def _shortened(text: str, width: int = 220) -> str:
    from abi_jax.data.clean import one_line

    return one_line(text, width)
