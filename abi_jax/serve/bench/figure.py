"""A sweep as a picture: throughput and latency against the load."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from abi_jax.errors import InputError

LATENCIES = {"ttft_ms": "TTFT", "tpot_ms": "TPOT", "itl_ms": "ITL"}


def check(path: Path) -> None:
    """Raises `InputError` for a figure that could not be written."""
    formats = Figure().canvas.get_supported_filetypes()
    if path.suffix.lstrip(".").lower() not in formats:
        raise InputError(f"figure {str(path)!r}; expected one of .{', .'.join(sorted(formats))} at its end")
    if not path.absolute().parent.is_dir():
        raise InputError(f"figure {str(path)!r}; expected a folder that exists")


def draw(points: Sequence[dict[str, Any]], path: Path) -> None:
    """Writes the figure of points as `summary.summarize` makes them."""
    figure = Figure(figsize=(11, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    by_rate = len({point["rate"] for point in points}) > 1
    label = "requests a second, asked for" if by_rate else "requests at a time"
    places = [_place(point, by_rate) for point in points]
    left.plot(places, [point["output_throughput"] for point in points], "o-", label="output tokens a second")
    left.set(xlabel=label, ylabel="output tokens a second", title="Throughput")
    left.set_ylim(bottom=0)
    for name, title in LATENCIES.items():
        _latency(right, places, [point[name] for point in points], title)
    right.set(xlabel=label, ylabel="milliseconds", title="Latency: median, and p99 dashed", yscale="log")
    for axes in (left, right):
        if len(set(places)) > 1:
            axes.set_xscale("log", base=2)
        axes.set_xticks(sorted(set(places)), [f"{place:g}" for place in sorted(set(places))])
        axes.minorticks_off()
        axes.grid(alpha=0.3)
    if right.lines:
        right.legend(fontsize=8)
    figure.savefig(path, dpi=120)


def _place(point: dict[str, Any], by_rate: bool) -> float:
    """Where a point stands; one without a limit stands at what it came to."""
    if by_rate:
        return float(point["rate"] or point["request_throughput"] or 1)
    return float(point["concurrency"] or point["requests"])


def _latency(axes: Axes, places: Sequence[float], found: Sequence[dict[str, float] | None], title: str) -> None:
    pairs = [(place, one) for place, one in zip(places, found, strict=True) if one is not None]
    if not pairs:
        return
    (line,) = axes.plot([place for place, _ in pairs], [one["median"] for _, one in pairs], "o-", label=title)
    axes.plot([place for place, _ in pairs], [one["p99"] for _, one in pairs], "--", color=line.get_color())
