"""Figures of a training run: what is planned, and what its log says."""

from typing import TYPE_CHECKING, Any

from vitq.plots import COLORS, grid
from vitq.train.remedies import build_remedy
from vitq.train.run_config import RunConfig

if TYPE_CHECKING:
    from matplotlib.figure import Figure

POINTS = 400
SERIES = {"loss": "training loss", "oscillating": "oscillating weights, %", "frozen": "frozen weights, %",
          "open": "open weights, %"}


def strength(config: RunConfig, steps: list[int], total: int) -> tuple[str, list[float]] | None:
    """Name and values, at some steps, of what a run's remedy anneals; None if it has no such remedy."""
    for entry in config.remedies:
        remedy = build_remedy(entry, config.variant)
        if hasattr(remedy, "threshold_at"):
            return r"threshold $f_{th}$", [remedy.threshold_at(max(1, step), total) for step in steps]
        if hasattr(remedy, "strength"):
            return r"strength $\lambda$", [remedy.strength(max(1, step), total) for step in steps]
    return None


def schedule(config: RunConfig, steps_per_epoch: int) -> "Figure":
    """Learning rate, and the strength or threshold of the remedy, over the epochs of a run."""
    settings, total = config.train, config.train.total_steps(steps_per_epoch)
    steps = [round(i * (total - 1) / (POINTS - 1)) for i in range(POINTS)]
    rates = [settings.rate(step, total, steps_per_epoch) for step in steps]
    annealed = strength(config, steps, total)
    figure, axes = grid(1, 2 if annealed else 1, height=2.8, squeeze=False)
    epochs = [step / steps_per_epoch for step in steps]
    axes[0, 0].plot(epochs, rates, color=COLORS["LSQ"], clip_on=False)
    axes[0, 0].set(xlabel="epoch", ylabel="learning rate", ylim=(0, None))
    if annealed:
        axes[0, 1].plot(epochs, annealed[1], color=COLORS["dampening"], linestyle="--", clip_on=False)
        axes[0, 1].set(xlabel="epoch", ylabel=annealed[0], ylim=(0, None))
    return figure


def stages(configs: dict[str, RunConfig], steps_per_epoch: int) -> "Figure":
    """Learning rate of runs that follow each other, on a logarithmic axis, over their epochs.

    Args:
        configs: by the name of the stage, in their order.
        steps_per_epoch: optimizer steps.
    """
    figure, axes = grid(1, 1, height=2.8, squeeze=False)
    begin, styles = 0.0, ("-", "--", ":")
    for number, (name, config) in enumerate(configs.items()):
        total = config.train.total_steps(steps_per_epoch)
        steps = [round(i * (total - 1) / (POINTS - 1)) for i in range(POINTS)]
        rates = [config.train.rate(step, total, steps_per_epoch) for step in steps]
        epochs = [begin + step / steps_per_epoch for step in steps]
        axes[0, 0].plot(epochs, rates, color=list(COLORS.values())[number], linestyle=styles[number % 3], label=name,
                        linewidth=2)
        begin += total / steps_per_epoch
    axes[0, 0].set(xlabel="epoch", ylabel="learning rate", yscale="log")
    axes[0, 0].legend()
    return figure


def curves(histories: dict[int, list[dict[str, Any]]], config: RunConfig, total: int) -> "Figure":
    """Loss, oscillating and frozen share, and the remedy's strength over the steps of finished or running seeds.

    Args:
        histories: lines of metrics.jsonl by seed.
        config: the run.
        total: its optimizer steps.
    """
    logs = {seed: [line for line in lines if line["event"] == "train"] for seed, lines in histories.items()}
    names = [name for name in SERIES if any(name in line for lines in logs.values() for line in lines)]
    steps = [line["step"] for line in next(iter(logs.values()))]
    annealed = strength(config, steps, total)
    count = len(names) + (annealed is not None)
    rows = -(-count // 2)
    figure, axes = grid(rows, min(2, max(1, count)), height=2.6, squeeze=False)
    for axis, name in zip(axes.flat, names, strict=False):
        factor = 1 if name == "loss" else 100
        for number, (seed, lines) in enumerate(logs.items()):
            values = [(line["step"], factor * line[name]) for line in lines if name in line]
            axis.plot(*zip(*values, strict=True), marker="o" if len(values) < 20 else None, markersize=4,
                      linestyle=("-", "--", ":", "-.")[number % 4], label=f"seed {seed}")
        axis.set(xlabel="optimizer step", ylabel=SERIES[name])
    if annealed:
        axes.flat[len(names)].plot(steps, annealed[1], color=COLORS["dampening"])
        axes.flat[len(names)].set(xlabel="optimizer step", ylabel=annealed[0])
    for axis in axes.flat[count:]:
        axis.set_visible(False)
    if len(logs) > 1:
        axes.flat[0].legend()
    return figure
