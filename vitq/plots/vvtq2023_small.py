"""Figures of the small-scale study of VVTQ 2023."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from torch import Tensor

from vitq.plots import DASHES, MARKERS, grid

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_BLIND = ("#0173b2", "#de8f05", "#029e73", "#d55e00", "#cc78bc", "#949494")


def ridges(columns: dict[str, dict[str, Tensor]], bins: int = 80) -> "Figure":
    """Ridge plot of weights: a column a network, a row a group, on one axis of weights.

    Args:
        columns: Weights of each group by its name, by the title of the column.
        bins: Of the histograms.
    """
    limit = max(float(w.abs().quantile(0.999)) for groups in columns.values() for w in groups.values())
    figure, axes = grid(1, len(columns), height=3.6, sharex=True)
    edges = np.linspace(-limit, limit, bins + 1)
    centres = (edges[1:] + edges[:-1]) / 2
    for ax, (title, groups) in zip(np.atleast_1d(axes), columns.items(), strict=True):
        ax.locator_params(axis="x", nbins=5)
        heights = {name: np.histogram(w.flatten().numpy(), edges, density=True)[0] for name, w in groups.items()}
        lift = 0.6 * max(h.max() for h in heights.values())
        for i, height in enumerate(heights.values()):
            base = lift * (len(heights) - 1 - i)
            ax.fill_between(centres, base, base + height, color=_BLIND[i % 5], alpha=0.5, linewidth=0)
            ax.plot(centres, base + height, color=_BLIND[i % 5], linewidth=1)
        ax.set(title=title, xlabel="weight", yticks=[lift * i for i in range(len(heights))],
               yticklabels=list(heights)[::-1])  # fmt: skip
    return figure


def by_layer(table: pd.DataFrame, columns: dict[str, str], log: tuple[str, ...] = ()) -> "Figure":
    """Statistics of layers in the order of the networks, a panel a statistic, a marker a network.

    Args:
        table: Columns ``network``, ``depth`` (0 to 1) and the statistics.
        columns: Axis label of each statistic to show.
        log: Statistics with a logarithmic axis.
    """
    from matplotlib.ticker import LogLocator

    figure, axes = grid(1, len(columns), height=3.2)
    for ax, (column, label) in zip(np.atleast_1d(axes), columns.items(), strict=True):
        for i, (network, part) in enumerate(table.groupby("network", sort=False)):
            ax.scatter(part["depth"], part[column], color=_BLIND[i], marker=MARKERS[i], s=16, alpha=0.8, label=network)
        ax.set(xlabel="relative depth", ylabel=label)
        if column in log:
            ax.set_yscale("log")
            ax.yaxis.set_major_locator(LogLocator(subs=(1.0, 3.0)))
            ax.yaxis.set_major_formatter("{x:g}")
            ax.yaxis.set_minor_formatter("")
    return _with_legend(figure, axes)


def by_setting(table: pd.DataFrame, panels: dict[str, str], by: str = "series", log: tuple[str, ...] = (),
               zero: bool = False) -> "Figure":
    """A row a setting, a panel a metric, one marker a seed, a bar for the mean; series in colours.

    Args:
        table: Columns ``setting``, the metrics and that named in ``by``.
        panels: Axis label of each metric.
        by: Column of the series.
        log: Metrics with a logarithmic axis.
        zero: Draw a line at 0.
    """
    settings, series = list(dict.fromkeys(table["setting"])), list(dict.fromkeys(table[by]))
    figure, axes = grid(1, len(panels), height=0.36 * len(settings) + 1.3, sharey=True)
    for ax, (column, label) in zip(np.atleast_1d(axes), panels.items(), strict=True):
        for i, name in enumerate(series):
            shift = 0.22 * (i - (len(series) - 1) / 2)
            part = table[(table[by] == name) & table[column].notna()]
            place = part["setting"].map(settings.index).to_numpy(float) + shift
            ax.scatter(part[column], place, color=_BLIND[i], marker=MARKERS[i], s=22, alpha=0.75, label=name)
            for at, mean in part.groupby("setting")[column].mean().items():
                y = settings.index(at) + shift
                ax.plot([mean] * 2, [y - 0.14, y + 0.14], color=_BLIND[i], linewidth=2)
        if zero:
            ax.axvline(0, color="black", linewidth=0.8)
        ax.set(xlabel=label)
        if column in log:
            ax.set_xscale("log")
    first = np.atleast_1d(axes)[0]
    first.set(yticks=range(len(settings)), yticklabels=settings, ylim=(len(settings) - 0.5, -0.5))
    return _with_legend(figure, axes) if len(series) > 1 else figure


def distances(shares: dict[str, Sequence[float]]) -> "Figure":
    """Latent weights by their distance to the centre of their bin, one line a method.

    Args:
        shares: Shares of equal parts of [-0.5, 0.5] steps, by method.
    """
    figure, ax = grid(height=3.2)
    for i, (name, values) in enumerate(shares.items()):
        edges = np.linspace(-0.5, 0.5, len(values) + 1)
        density = np.asarray(values) * len(values)
        ax.stairs(density, edges, baseline=None, color=_BLIND[i], linestyle=DASHES[i % len(DASHES)], linewidth=1.8,
                  label=name)  # fmt: skip
    ax.axhline(1, color="black", linewidth=0.8)  # evenly spread
    ax.set(xlabel="centre of the bin minus latent weight (steps)", ylabel="density", xlim=(-0.5, 0.5))
    ax.legend(fontsize=9)
    return figure


def by_bits(table: pd.DataFrame, label: str = "test top-1 (%)") -> "Figure":
    """Accuracy against bit width, a panel a network, one marker a seed, a line for the mean; methods in colours.

    Args:
        table: Columns ``model``, ``method``, ``n`` (bits), ``top1``.
        label: Of the accuracy axis.
    """
    models, methods = list(dict.fromkeys(table["model"])), list(dict.fromkeys(table["method"]))
    figure, axes = grid(1, len(models), height=3.2, sharey=True)
    for ax, model in zip(np.atleast_1d(axes), models, strict=True):
        for i, method in enumerate(methods):
            part = table[(table["model"] == model) & (table["method"] == method)]
            mean = part.groupby("n")["top1"].mean()
            ax.plot(mean.index, mean, color=_BLIND[i], linestyle=DASHES[i % len(DASHES)], label=method)
            ax.scatter(part["n"], part["top1"], color=_BLIND[i], marker=MARKERS[i], s=20, alpha=0.75)
        ax.set(title=model, xlabel="bits of weights and activations", xticks=sorted(set(table["n"])))
    np.atleast_1d(axes)[0].set_ylabel(label)
    return _with_legend(figure, axes)


def published_curves(table: pd.DataFrame) -> "Figure":
    """Published validation curves, as read from the released training logs.

    Args:
        table: Columns ``bits``, ``epoch``, ``top1``.
    """
    figure, ax = grid(height=3.2)
    for i, (bits, part) in enumerate(table.groupby("bits", sort=False)):
        ax.plot(part["epoch"], part["top1"], color=_BLIND[i], linestyle=DASHES[i], marker=MARKERS[i], markersize=5,
                label=bits)  # fmt: skip
    ax.set(xlabel="epoch index at which the pass begins", ylabel="ImageNet top-1 (%), published")
    ax.text(0.55, 0.12, "published, not ours", transform=ax.transAxes, fontsize=20, color="0.75", ha="center",
            va="center", zorder=0)  # fmt: skip
    ax.legend(fontsize=9)
    return figure


def _with_legend(figure: "Figure", axes) -> "Figure":
    handles = np.atleast_1d(axes)[0].get_legend_handles_labels()
    figure.legend(*handles, loc="outside upper center", ncols=4, fontsize=9)
    return figure
