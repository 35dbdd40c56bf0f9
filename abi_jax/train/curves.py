"""The figure of a run: losses by step, of training and of held-out answers."""

from pathlib import Path

from abi_jax.train.report import read_metrics

FIGURE = "curves.png"


def draw_curves(metrics: Path, figure: Path, best: int | None = None) -> None:
    """Draws what `metrics.jsonl` holds: the loss, its parts by group, and what evaluations found; marks a step."""
    from matplotlib.figure import Figure

    records = read_metrics(metrics)
    steps = [r for r in records if "loss" in r]
    measured = [(r["step"], r["evaluation"]) for r in records if "evaluation" in r]
    drawn = Figure(figsize=(11, 4), layout="constrained")
    whole, parts = drawn.subplots(1, 2)
    whole.plot([r["step"] for r in steps], [r["loss"] for r in steps], label="training")
    if measured:
        whole.plot([s for s, _ in measured], [m["loss"] for _, m in measured], "o-", label="held out")
    for step, found in measured:
        if step == best:
            place = (step, found["loss"])
            whole.annotate(f"best: {found['loss']:.3f}", place, xytext=(4, 6), textcoords="offset points")
    of = [(s, m["loss_by_group"]) for s, m in measured] or [(r["step"], r["loss_by_group"]) for r in steps]
    for group in dict.fromkeys(name for _, by_group in of for name in by_group):
        line = [(s, by_group[group]) for s, by_group in of if group in by_group]
        parts.plot(*zip(*line, strict=True), label=group)
    whole.set(xlabel="step", ylabel="loss (nats a token)", title="Loss")
    parts.set(xlabel="step", title=f"{'Held-out' if measured else 'Training'} loss by group")
    for axes in (whole, parts):
        if axes.lines:
            axes.legend()
        axes.grid(alpha=0.3)
    drawn.savefig(figure, dpi=110)
