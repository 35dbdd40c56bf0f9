"""A data set as a picture: how long its examples are, and how evenly its groups are seen."""

from pathlib import Path

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from abi_jax.data.clean import one_line
from abi_jax.data.inspect import Inspection

BINS, BARS, WIDTH = 40, 16, 32


def draw(found: Inspection, path: Path) -> None:
    """Writes the figure; the suffix of `path` says in which format."""
    with rc_context({"text.parse_math": False}):  # a name may hold two dollar signs
        figure = Figure(figsize=(12, 4.5), layout="constrained")
        lengths, groups = figure.subplots(1, 2)
        _lengths(lengths, found)
        _groups(groups, found)
        figure.savefig(path, dpi=120)


def _lengths(axes: Axes, found: Inspection) -> None:
    of = found.lengths
    parts = [of.sizes[of.datasets == at] for at in range(len(of.names))]
    if len(of.sizes):
        # A few long examples would leave all others in one bin.
        top = max(float(np.percentile(of.sizes, 99.5)), 1.0)
        axes.hist(
            [np.minimum(p, top) for p in parts], bins=BINS, stacked=True, label=[one_line(n, WIDTH) for n in of.names]
        )
        if of.unit == "tokens" and found.config.length <= top:
            axes.axvline(found.config.length, color="k", linestyle="--", linewidth=1, label="row")
        axes.legend(fontsize=8)
    axes.set(xlabel=f"{of.unit} in an example", ylabel="examples", title="Lengths")


def _groups(axes: Axes, found: Inspection) -> None:
    balance = found.balance
    by = one_line(", ".join(found.config.balance.by), 2 * WIDTH)
    title = f"Balance by {by}, alpha {found.config.balance.alpha:g}"
    if not balance:
        balance = {name: (examples, examples) for name, (_, examples) in found.counts["persona"].items()}
        title = "Examples by persona"
    shown = sorted(balance.items(), key=lambda item: -item[1][0])[:BARS][::-1]
    places = np.arange(len(shown))
    before, after = (np.array([sizes[side] for _, sizes in shown]) for side in (0, 1))
    if found.balance:
        axes.barh(places + 0.2, before, 0.4, label="before")
        axes.barh(places - 0.2, after, 0.4, label="after")
        axes.legend(fontsize=8)
    else:
        axes.barh(places, before, 0.6)
    axes.set_yticks(places, [one_line(name, WIDTH) for name, _ in shown], fontsize=8)
    axes.set(xlabel="examples in an epoch" if found.balance else "examples", title=title)
