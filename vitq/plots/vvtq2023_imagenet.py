"""Figures of VVTQ's full runs: what is planned for each pass, and the accuracy after each beside the published log."""

from typing import TYPE_CHECKING, Any

from vitq.plots import COLORS, grid
from vitq.train.remedies import build_remedy
from vitq.train.run_config import RunConfig

if TYPE_CHECKING:
    import pandas
    from matplotlib.figure import Figure


def passes(config: RunConfig, images: int) -> list[int]:
    """Epoch at the start of each pass over so many training images."""
    from vitq.papers.vvtq2023.mckd import epoch_plan

    train, labels = config.train, config.soft_labels
    if labels is None:
        return list(range(train.epochs))
    return [part.epoch for part in
            epoch_plan(images, train.batch_size, train.epochs, labels.crops, train.warmup_epochs)]


def plan(config: RunConfig, images: int) -> "Figure":
    """Learning rate and strength of bin regularization in each pass, over the epochs as the paper counts them."""
    starts, epochs = passes(config, images), config.train.epochs
    edges = [*starts, epochs]
    remedies = [build_remedy(entry) for entry in config.remedies if entry["name"] == "bin_regularization"]
    figure, axes = grid(1, 1 + len(remedies), height=2.8, squeeze=False)
    rates = [config.train.rate(start, epochs, 1) for start in starts]
    axes[0, 0].stairs(rates, edges, baseline=None, color=COLORS["LSQ"], linewidth=2, clip_on=False)
    axes[0, 0].set(xlabel="epoch", ylabel="learning rate", ylim=(0, None))
    for axis, remedy in zip(axes[0, 1:], remedies, strict=True):
        strengths = [remedy.strength(start, epochs) for start in starts]
        axis.stairs(strengths, edges, baseline=None, color=COLORS["dampening"], linewidth=2, clip_on=False)
        axis.set(xlabel="epoch", ylabel=r"strength $\lambda$", ylim=(0, None))
    return figure


def accuracy(histories: dict[int, list[dict[str, Any]]], published: "pandas.DataFrame", starts: list[int]) -> "Figure":
    """Top-1 after each pass of the seeds that were run, beside that of the released log.

    Args:
        histories: lines of metrics.jsonl by seed; none shows the published curve alone, if there is one.
        published: rows of the table of published curves, whose settings are ``epoch N``.
        starts: epoch at the start of each pass.
    """
    figure, axes = grid(1, 1, height=2.8, squeeze=False)
    axis = axes[0, 0]
    if len(published):
        epochs = [int(setting.split()[1]) for setting in published["setting"]]
        axis.plot(epochs, published["value"], color="#949494", linestyle="--", marker="o", markersize=4,
                  label="published log")
    for number, (seed, lines) in enumerate(histories.items()):
        after = [line["top1"] for line in lines if line["event"] == "evaluation" and "top1" in line]
        at = [*starts[: len(after) - 1], starts[-1]] if after else []
        axis.plot(at, after, color=list(COLORS.values())[number % len(COLORS)], label=f"seed {seed}")
    axis.set(xlabel="epoch at the start of the pass", ylabel="test top-1 (%)")
    if axis.get_legend_handles_labels()[0]:
        axis.legend()
    else:
        axis.text(0.5, 0.5, "not run, and no log was published", transform=axis.transAxes, ha="center", va="center")
    return figure
