"""Figures of the method notebook of ERQ: ranges of channels, levels, columns, error split, ridge, refinement, time."""

from typing import TYPE_CHECKING

from torch import Tensor

from vitq.plots import DASHES, MARKERS, grid

if TYPE_CHECKING:
    from matplotlib.figure import Figure

BLUE, ORANGE, GREEN, RED, PURPLE, GREY = "#0173b2", "#de8f05", "#029e73", "#d55e00", "#cc78bc", "#949494"
SERIES = (BLUE, ORANGE, GREEN, RED, PURPLE, GREY)


def channel_ranges(low: Tensor, high: Tensor, levels: Tensor) -> "Figure":
    """Range of each channel, (I,) each, by width, and the levels of one quantizer for all of them."""
    figure, ax = grid()
    order = (high - low).argsort(descending=True)
    ax.vlines(range(len(order)), low[order], high[order], color=BLUE, linewidth=1.2, label="range of a channel")
    for i, level in enumerate(levels.tolist()):
        ax.axhline(level, color=ORANGE, linestyle="--", linewidth=1, label="" if i else "levels of one quantizer")
    ax.set(xlabel="channel, widest first", ylabel="value")
    ax.legend(fontsize="small")
    return figure


def probability_levels(values: Tensor, levels: dict[str, Tensor]) -> "Figure":
    """Histogram of attention probabilities on a logarithmic axis, with the positive levels of several quantizers."""
    import numpy as np

    figure, (ax, marks) = grid(2, 1, height=1.8, sharex=True, height_ratios=(3, 1))
    edges = np.logspace(-6, 0, 61)
    ax.hist(values.numpy().clip(edges[0], 1), bins=edges, weights=np.full(len(values), 100 / len(values)), color=BLUE)
    ax.set(ylabel="entries (%)", xscale="log", xlim=(edges[0], 1.3))
    for i, own in enumerate(levels.values()):
        shown = own[own > 0]
        marks.plot(shown, [-i] * len(shown), MARKERS[i], color=SERIES[i + 1], markersize=6)
    marks.set(xlabel="attention probability", ylim=(0.6 - len(levels), 0.4))
    marks.set_yticks([-i for i in range(len(levels))], list(levels))
    return figure


def columns(before: Tensor, after: Tensor, outlier: Tensor) -> "Figure":
    """Largest magnitude in each weight column before and after reparameterization, (I,) each, by size after it.

    Args:
        before: Of the columns as trained.
        after: Of the columns as reparameterized.
        outlier: Which columns dual uniform quantization takes apart, bool (I,).
    """
    figure, ax = grid()
    order = after.argsort(descending=True)
    place, apart = range(len(order)), outlier[order].nonzero().flatten()
    ax.semilogy(place, before[order], linestyle="none", marker="s", markersize=3, color=ORANGE, label="as trained")
    ax.semilogy(place, after[order], color=BLUE, label="reparameterized")
    ax.semilogy(apart, after[order][apart], linestyle="none", marker="o", markersize=4, color=RED,
                label="outlier column")
    ax.set(xlabel="input channel, largest first", ylabel="largest $|w|$ in the column")
    ax.legend(fontsize="small")
    return figure


def error_parts(layers: list[str], parts: dict[str, list[float]]) -> "Figure":
    """Parts of the relative output error as bars side by side, one group a layer."""
    figure, ax = grid(height=2.8)
    width = 0.8 / len(parts)
    for i, (name, values) in enumerate(parts.items()):
        ax.bar([k + (i - (len(parts) - 1) / 2) * width for k in range(len(layers))], values, width, color=SERIES[i],
               hatch=("", "//", "..", "xx")[i % 4], edgecolor="white", label=name)
    ax.set_xticks(range(len(layers)), layers)
    ax.set(ylabel="relative output error")
    ax.legend(fontsize="small")
    return figure


def ridge_curve(strengths: list[float], series: dict[str, list[float]], none: dict[str, float],
                used: float) -> "Figure":
    """Output error after correction against the strength L; dotted the error without one, and the released L."""
    figure, ax = grid()
    for i, (name, values) in enumerate(series.items()):
        ax.plot(strengths, values, color=SERIES[i], marker=MARKERS[i], linestyle=DASHES[i % 4], label=name)
        ax.axhline(none[name], color=SERIES[i], linestyle=":", linewidth=1.4)
    ax.axvline(used, color=GREY, linestyle="--", label="released $L$")
    ax.set(xscale="log", xlabel="ridge strength $L$, added to sums", ylabel="relative output error", ylim=(0, None))
    ax.legend(fontsize="small")
    return figure


def proxy_traces(traces: dict[str, Tensor]) -> "Figure":
    """Proxy over its start against the refinement round, one line a rule, (rounds + 1,) each."""
    figure, ax = grid()
    for i, (name, values) in enumerate(traces.items()):
        ax.plot(values, color=SERIES[i], linestyle=DASHES[i % 4], marker=MARKERS[i], markevery=(4 * i, 12),
                label=name)
    ax.set(xlabel="refinement round", ylabel="proxy / proxy at the start", ylim=(0, None))
    ax.legend(fontsize="small")
    return figure


def search_times(sizes: list[int], seconds: dict[str, list[float]]) -> "Figure":
    """Seconds for one row against the number of weights, one line a method."""
    figure, ax = grid(height=2.8)
    for i, (name, values) in enumerate(seconds.items()):
        ax.semilogy(sizes, values, color=SERIES[i], marker=MARKERS[i], linestyle=DASHES[i % 4], label=name)
    ax.set_xticks(sizes)
    ax.set(xlabel="weights $n$ in the row", ylabel="seconds a row")
    ax.legend(fontsize="small")
    return figure
