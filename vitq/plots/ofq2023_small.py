"""Figures of the small-scale study of OFQ 2023."""

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import seaborn as sns

from vitq import plots
from vitq.plots import DASHES, grid

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_BLIND = ["#0173b2", "#de8f05", "#029e73", "#d55e00", "#cc78bc", "#949494"]
METHODS = ("LSQ", "LSQ + Dampen", "LSQ + Freeze", "StatsQ", "StatsQ + QKR", "StatsQ + QKR + CGA")
PALETTE = dict(zip(METHODS, _BLIND, strict=True))


def reversals_over_training(table: pd.DataFrame, window: int = 10) -> "Figure":
    """Share of weights that reverse at each step, one panel a bit width; mean over seeds, moving average.

    Args:
        table: Columns ``method``, ``bits``, ``seed``, ``step``, ``percent``.
        window: Steps of the moving average.
    """
    widths = sorted(set(table["bits"]))
    figure, axes = grid(1, len(widths), height=3.0)
    for ax, bits in zip(np.atleast_1d(axes), widths, strict=True):
        for i, method in enumerate(m for m in METHODS if m in set(table["method"])):
            part = table[(table["bits"] == bits) & (table["method"] == method)]
            mean = part.groupby("step")["percent"].mean().rolling(window, min_periods=1).mean()
            ax.plot(mean.index, mean, color=PALETTE[method], linestyle=DASHES[i % len(DASHES)], label=method)
        ax.set(title=bits, xlabel="optimizer step", ylim=(0, None))
    np.atleast_1d(axes)[0].set_ylabel("weights that reverse (%)")
    figure.legend(*np.atleast_1d(axes)[0].get_legend_handles_labels(), loc="outside upper center", ncols=4, fontsize=9)
    return figure


def by_method_and_bits(table: pd.DataFrame, columns: dict[str, str], log: tuple[str, ...] = ()) -> "Figure":
    """:func:`vitq.plots.by_method_and_bits` in this study's colours, the fewest bits first."""
    return plots.by_method_and_bits(table.sort_values("bits", kind="stable"), columns, PALETTE, log=log, legend=3)


def noise_draws(table: pd.DataFrame) -> "Figure":
    """Table 1's design: change of top-1 for each draw of noise, by kind, one panel a bit width.

    Args:
        table: Columns ``bits``, ``kind``, ``change`` (points against the network without noise).
    """
    widths, kinds = sorted(set(table["bits"])), ["within", "random", "flip"]
    figure, axes = grid(1, len(widths), height=3.0)
    for ax, bits in zip(np.atleast_1d(axes), widths, strict=True):
        sns.stripplot(table[table["bits"] == bits], x="kind", y="change", order=kinds, hue="kind", hue_order=kinds,
                      palette=_BLIND[:3], size=4, jitter=0.25, legend=False, ax=ax)  # fmt: skip
        ax.axhline(0, color="black", linewidth=0.8)
        ax.set(title=bits, xlabel="kind of noise", ylabel="")
    np.atleast_1d(axes)[0].set_ylabel("test top-1 minus that\nwithout noise (points)")
    return figure


def annealing(table: pd.DataFrame) -> "Figure":
    """Open share (left) and change of the scales (right) during annealing, for each width of the boundary range.

    Args:
        table: Columns ``x``, ``step``, ``open`` (percent), ``scale`` (mean distance to the start, percent).
    """
    figure, axes = grid(1, 2, height=3.2)
    for i, (x, part) in enumerate(table.groupby("x")):
        style = {"color": _BLIND[i], "linestyle": DASHES[i % len(DASHES)], "label": f"x = {x}"}
        axes[0].plot(part["step"], part["open"], **style)
        axes[1].plot(part["step"], part["scale"], **style)
    axes[0].set(xlabel="optimizer step of annealing", ylabel="open weights (%)", ylim=(0, None))
    axes[1].set(xlabel="optimizer step of annealing", ylabel="mean change of a scale\nsince the start (%)")
    axes[0].legend(title=None, fontsize=9)
    return figure


def differences(table: pd.DataFrame) -> "Figure":
    """Differences of top-1 to a reference, one row a setting, one marker a seed, a bar for the mean.

    Args:
        table: Columns ``model``, ``setting``, ``difference`` (points).
    """
    rows = list(dict.fromkeys(zip(table["model"], table["setting"], strict=True)))
    figure, ax = grid(height=0.42 * len(rows) + 1.0)
    for i, (model, setting) in enumerate(rows):
        values = table[(table["model"] == model) & (table["setting"] == setting)]["difference"]
        color = _BLIND[0] if model == "vit_micro" else _BLIND[3]
        ax.scatter(values, [i] * len(values), color=color, marker="o" if model == "vit_micro" else "D", s=24, alpha=0.7)
        ax.plot([values.mean()] * 2, [i - 0.25, i + 0.25], color=color, linewidth=2)
    ax.axvline(0, color="black", linewidth=0.8)
    ax.set(yticks=range(len(rows)), yticklabels=[f"{m}: {s}" for m, s in rows],
           xlabel="test top-1 minus that of the reference (points)")
    if table["difference"].abs().max() > 20:
        ax.set_xscale("symlog", linthresh=5)
    ax.invert_yaxis()
    return figure
