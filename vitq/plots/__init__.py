"""The book's figures, one file a chapter, on one style.

Seaborn's colour-blind palette with a marker and line style of its own for each series, opaque white ground, axis labels
with units. A function draws on the axes that it is given or makes a figure, and returns the figure.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import pandas
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MARKERS = ("o", "s", "^", "D", "v", "P", "X")
DASHES = ("-", "--", ":", "-.")
COLORS = {
    "LSQ": "#0173b2", "dampening": "#de8f05", "freezing": "#029e73",
    "depthwise": "#d55e00", "pointwise": "#0173b2", "conv": "#949494", "linear": "#cc78bc",
    "STE": "#0173b2", "EWGS": "#de8f05", "PSG": "#029e73", "DSQ": "#cc78bc", "Dampening": "#d55e00",
}  # colours of seaborn's "colorblind" palette, fixed by name so that a series looks the same on every page


def style() -> None:
    """Set the book's look for all figures that follow; call it once at the top of a notebook."""
    import matplotlib
    import seaborn

    seaborn.set_theme(context="notebook", style="whitegrid", palette="colorblind")
    matplotlib.rcParams.update({
        "figure.facecolor": "white", "savefig.facecolor": "white", "figure.dpi": 90, "savefig.dpi": 90,
        "figure.constrained_layout.use": True, "axes.titlesize": "medium", "legend.frameon": True, "font.size": 11,
    })  # fmt: skip


def grid(
    rows: int = 1, columns: int = 1, *, width: float = 7.5, height: float = 3.2, **options
) -> "tuple[Figure, Axes]":
    """A figure of ``width`` inches and ``height`` inches a row, with its axes as ``plt.subplots`` gives them."""
    import matplotlib.pyplot as plt

    return plt.subplots(rows, columns, figsize=(width, height * rows), **options)


def by_method_and_bits(
    table: "pandas.DataFrame", columns: "Mapping[str, str]", palette: "Mapping[str, str]", *, log: "Sequence[str]" = (),
    height: float = 3.4, shift: float = 0.12, legend: int = 4,
) -> "Figure":
    """One panel a metric: bit widths on the x axis, one marker a seed or draw, a line for the mean, by method.

    Args:
        table: Columns ``method``, ``bits`` and the metrics; a metric may be missing (NaN) in some rows.
        columns: Axis label of each metric to show.
        palette: Colour of each method, in the order of the legend; markers go by place in it.
        log: Metrics with a logarithmic axis.
        height: Inches.
        shift: Between methods, in units of the x axis.
        legend: Its columns.
    """
    figure, axes = grid(1, len(columns), height=height, squeeze=False)
    widths, marks = list(dict.fromkeys(table["bits"])), dict(zip(palette, MARKERS, strict=False))
    methods = [method for method in palette if method in set(table["method"])]
    for ax, (column, label) in zip(axes[0], columns.items(), strict=True):
        for i, method in enumerate(methods):
            part, aside = table[table["method"] == method], shift * (i - (len(methods) - 1) / 2)
            look = {"color": palette[method], "marker": marks[method]}
            ax.scatter(part["bits"].map(widths.index).to_numpy() + aside, part[column], s=20, alpha=0.7, label=method,
                       **look)
            for bits, mean in part.groupby("bits")[column].mean().items():
                x = widths.index(bits) + aside
                ax.plot([x - 0.05, x + 0.05], [mean] * 2, color=palette[method], linewidth=2)
        ax.set(xticks=range(len(widths)), xticklabels=widths, ylabel=label, xlim=(-0.5, len(widths) - 0.5))
        if column in log:
            ax.set_yscale("log")
    figure.legend(*axes[0][0].get_legend_handles_labels(), loc="outside upper center", ncols=legend, fontsize=9)
    return figure
