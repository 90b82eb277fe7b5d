"""Figures of the small-scale study of ERQ 2024."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from vitq import plots
from vitq.plots import DASHES, MARKERS, grid

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

_BLIND = ("#949494", "#0173b2", "#de8f05", "#029e73", "#cc78bc", "#d55e00", "#ca9161")
METHODS = ("Nearest", "RepQ-ViT", "GPTQ", "Aqer", "Wqer", "ERQ", "ERQ+")
PALETTE = dict(zip(METHODS, _BLIND, strict=True))
RULES = {"nearest": "nearest", "snap_code": "as released", "hard_paper": "as printed", "exact_gain": "exact gain"}


def by_method_and_bits(table: pd.DataFrame, columns: dict[str, str], log: Sequence[str] = ()) -> "Figure":
    """:func:`vitq.plots.by_method_and_bits` in this study's colours, with plain numbers on logarithmic axes."""
    figure = plots.by_method_and_bits(table, columns, PALETTE, log=log, height=3.6, shift=0.11)
    for ax, column in zip(figure.axes, columns, strict=True):
        if column in log:
            _few_numbers(ax.yaxis)
    return figure


def _few_numbers(axis: "Axis", subs: Sequence[int] = (1, 2, 5)) -> None:
    """Plain numbers on a logarithmic axis, at these multiples of powers of ten."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axis.set_major_locator(LogLocator(subs=subs))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())


def _legend(figure: "Figure", ax: "Axes", columns: int = 4) -> "Figure":
    figure.legend(*ax.get_legend_handles_labels(), loc="outside upper center", ncols=columns, fontsize=9)
    return figure


def layer_reductions(table: pd.DataFrame, columns: dict[str, str]) -> "Figure":
    """Error reduction of each layer in the order of the network, one panel a step, by kind of layer and set of images.

    Args:
        table: Columns ``layer`` (module path), ``images`` (``"calibration"`` or ``"held out"``), the reductions in
            percent.
        columns: Title of each reduction to show.
    """
    figure, axes = grid(1, len(columns), height=3.6, squeeze=False)
    names = list(dict.fromkeys(table["layer"]))
    kinds = list(dict.fromkeys(name.rsplit(".", 1)[-1] for name in names))
    for ax, (column, title) in zip(axes[0], columns.items(), strict=True):
        for i, kind in enumerate(kinds):
            for images, filled in (("calibration", False), ("held out", True)):
                part = table[(table["images"] == images) & table["layer"].str.endswith(kind)]
                ax.scatter(part["layer"].map(names.index), part[column], marker=MARKERS[i], s=22,
                           facecolor=_BLIND[i + 1] if filled else "none", edgecolor=_BLIND[i + 1], linewidth=0.9,
                           label=kind if filled else None)
        ax.axhline(0, color="black", linewidth=0.8)
        ax.set(title=title, xlabel="layer, in the order of the network", ylabel="error reduction (%)")
    return _legend(figure, axes[0][0], len(kinds))


def distributions(rows: list[dict], span: float) -> "Figure":
    """Densities of quantized inputs and of the outputs that they give, beside a Gaussian; one panel a layer.

    Args:
        rows: ``layer``, ``input_density`` and ``output_density`` (bins from -span to span), see
            :func:`vitq.papers.erq2024.study_layers.layers`.
        span: Standard deviations.
    """
    figure, axes = grid(1, len(rows), height=2.8, sharey=True, squeeze=False)
    for ax, row in zip(axes[0], rows, strict=True):
        for i, (name, label) in enumerate((("input", "quantized input"), ("output", "output"))):
            edges = np.linspace(-span, span, len(row[f"{name}_density"]) + 1)
            ax.stairs(row[f"{name}_density"], edges, color=_BLIND[i + 1], linestyle=DASHES[i], label=label)
        x = np.linspace(-span, span, 201)
        ax.plot(x, np.exp(-x**2 / 2) / np.sqrt(2 * np.pi), color="black", linewidth=0.8, label="Gaussian")
        ax.set(title=row["layer"].removeprefix("blocks."), xlabel="standard deviations", ylim=(0, 1))
        ax.tick_params(labelsize=9)
    axes[0][0].set_ylabel("density")
    return _legend(figure, axes[0][0])


def proxy(rows: list[dict]) -> "Figure":
    """Proxy on the calibration images against the error on others, one marker a row of the weight, a panel a layer.

    Args:
        rows: ``layer``, ``rule``, ``proxy`` and ``true`` (lists over the rows of the weight).
    """
    layers = list(dict.fromkeys(row["layer"] for row in rows))
    figure, axes = grid(1, len(layers), height=2.8, squeeze=False)
    for ax, layer in zip(axes[0], layers, strict=True):
        own = [row for row in rows if row["layer"] == layer]
        for i, row in enumerate(own):
            keep = slice(None, None, max(1, len(row["proxy"]) // 300))
            ax.scatter(row["proxy"][keep], row["true"][keep], s=5, marker=MARKERS[i], color=_BLIND[i + 1], alpha=0.6,
                       linewidths=0, label=RULES[row["rule"]])
        values = [v for row in own for v in (*row["proxy"], *row["true"]) if v > 0]
        ax.plot([min(values), max(values)], [min(values), max(values)], color="black", linewidth=0.8)
        ax.set(xscale="log", yscale="log", title=layer.removeprefix("blocks."), xlabel="proxy")
        for axis in (ax.xaxis, ax.yaxis):
            _few_numbers(axis, (1,))
        ax.tick_params(labelsize=8)
    axes[0][0].set_ylabel("error, other images")
    return _legend(figure, axes[0][0])


def program(table: pd.DataFrame) -> "Figure":
    """Refinement against the exact program: proxy over the optimum, and seconds for a row, by size.

    Args:
        table: Columns ``n``, ``method``, ``ratio``, ``seconds``; one line a row of the weight.
    """
    figure, axes = grid(1, 2, height=3.3)
    for i, (method, part) in enumerate(table.groupby("method", sort=False)):
        style = {"color": _BLIND[i], "marker": MARKERS[i], "linestyle": DASHES[i % len(DASHES)], "label": method}
        for ax, column in zip(axes, ("ratio", "seconds"), strict=True):
            mean = part.groupby("n")[column].mean().dropna()
            ax.plot(mean.index, mean, **style)
    axes[0].set(xlabel="weights n of a row", ylabel="proxy over the optimum (mean)")
    axes[1].set(xlabel="weights n of a row", ylabel="seconds for a row (mean)", yscale="log")
    return _legend(figure, axes[0], 5)


def lines(table: pd.DataFrame, x: str, label: str, panels: dict[str, str], by: str = "method",
          columns: int = 4) -> "Figure":
    """Metrics over a setting on a logarithmic axis, a panel a metric; mean over draws with every draw as a marker.

    Args:
        table: Columns ``x``, ``by`` and the metrics.
        x: Column of the setting.
        label: Its axis label.
        panels: Axis label of each metric.
        by: Column of the series.
        columns: Of the legend.
    """
    figure, axes = grid(1, len(panels), height=3.2 + 0.2 * (table[by].nunique() // columns), squeeze=False)
    for ax, (column, name) in zip(axes[0], panels.items(), strict=True):
        for i, (series, part) in enumerate(table.groupby(by, sort=False)):
            color = PALETTE.get(series, _BLIND[i % len(_BLIND)])
            mean = part.groupby(x)[column].mean()
            ax.plot(mean.index, mean, color=color, linestyle=DASHES[i % len(DASHES)], label=series)
            ax.scatter(part[x], part[column], color=color, marker=MARKERS[i % len(MARKERS)], s=16, alpha=0.6)
        ax.set(xscale="log", xlabel=label, ylabel=name)
        values = sorted(set(table[x]))
        ax.set_xticks(values, [f"{value:g}" for value in values])
        ax.minorticks_off()
    return _legend(figure, axes[0][0], columns)


def differences(table: pd.DataFrame, column: str, label: str, neutral: float = 0.0) -> "Figure":
    """Differences to a reference, one row a setting, one marker a draw, a bar for the mean.

    Args:
        table: Columns ``setting`` and the difference.
        column: The difference.
        label: Axis label.
        neutral: Where there is no difference.
    """
    settings = list(dict.fromkeys(table["setting"]))
    figure, ax = grid(height=0.36 * len(settings) + 1.0)
    for i, setting in enumerate(settings):
        values = table[table["setting"] == setting][column]
        ax.scatter(values, [i] * len(values), color=_BLIND[1], marker="o", s=24, alpha=0.7)
        ax.plot([values.mean()] * 2, [i - 0.25, i + 0.25], color=_BLIND[1], linewidth=2)
    ax.axvline(neutral, color="black", linewidth=0.8)
    ax.set(yticks=range(len(settings)), yticklabels=settings, xlabel=label)
    ax.invert_yaxis()
    return figure
