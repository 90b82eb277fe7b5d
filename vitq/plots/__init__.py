"""The book's figures, one file a chapter, on one style.

Seaborn's colour-blind palette with a marker and line style of its own for each series, opaque white ground, axis labels
with units. A function draws on the axes that it is given or makes a figure, and returns the figure.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
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
