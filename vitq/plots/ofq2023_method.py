"""Figures of the method notebook of OFQ: scale gradient, toy regression, grid, boundary range, product, annealing."""

from typing import TYPE_CHECKING

from torch import Tensor

from vitq.plots import DASHES, MARKERS, grid

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from vitq.papers.ofq2023.toy import ToyRun

BLUE, ORANGE, GREEN, RED, PURPLE, GREY = "#0173b2", "#de8f05", "#029e73", "#d55e00", "#cc78bc", "#949494"
SERIES = (BLUE, ORANGE, GREEN, RED, PURPLE)


def scale_gradient(position: Tensor, derivative: Tensor, low: int, high: int) -> "Figure":
    """dw_hat/ds of LSQ against the position w/s, (n,) each, with the thresholds dotted."""
    figure, ax = grid(height=2.6)
    ax.axhline(0, color="black", linewidth=0.8)
    for k in range(low, high):
        ax.axvline(k + 0.5, color=GREY, linestyle=":", linewidth=1.6, label="threshold" if k == low else None)
    ax.plot(position, derivative, color=BLUE)
    ax.set(xlabel="position $v = w/s$", ylabel=r"$\partial \hat w/\partial s$")
    ax.legend(fontsize="small")
    return figure


def toy_trajectories(runs: "dict[str, ToyRun]", row: int, steps: int) -> "Figure":
    """The last steps of one row, a column a method: latent weights in units of the step size, and the step size."""
    figure, axes = grid(2, len(runs), height=2.5, sharex=True, sharey="row", squeeze=False)
    first = next(iter(runs.values())).latent.shape[0] - steps
    when = range(first, first + steps)
    for i, (name, run) in enumerate(runs.items()):
        size = run.step_size[-steps:, row]
        for j in range(run.latent.shape[2]):
            axes[0, i].plot(when, run.latent[-steps:, row, j] / size, linewidth=0.9, color=SERIES[j % len(SERIES)])
        axes[1, i].plot(when, size / size.mean(), color=BLUE, linewidth=1)
        axes[0, i].set(title=name)
        axes[1, i].set(xlabel="step")
    axes[0, 0].set(ylabel="weight / step size", ylim=(-3, 3))
    axes[1, 0].set(ylabel="step size / mean")
    return figure


def grids(x: Tensor, outputs: dict[str, Tensor]) -> "Figure":
    """Quantized against latent value for several quantizers, (n,) each."""
    figure, ax = grid()
    ax.plot(x, x, color=GREY, linestyle=":", linewidth=1.2, label="$w$")
    for i, (name, output) in enumerate(outputs.items()):
        ax.plot(x, output, color=SERIES[i], linestyle=DASHES[i % 4], label=name)
    ax.set(xlabel=r"latent weight $w$, in units of mean$|w|$", ylabel=r"quantized weight $\hat w$")
    ax.legend(fontsize="small")
    return figure


def occupancy(shares: dict[str, dict[str, list[float]]]) -> "Figure":
    """Share of the weights on each level: ``{panel: {density: shares}}``, lowest level first."""
    figure, axes = grid(1, len(shares), squeeze=False)
    for ax, (title, series) in zip(axes.flat, shares.items(), strict=True):
        for i, (name, values) in enumerate(series.items()):
            ax.plot(range(len(values)), [100 * v for v in values], color=SERIES[i], marker=MARKERS[i],
                    linestyle=DASHES[i % 4], label=name)
        ax.set(title=title, xlabel="level, lowest first", ylim=(0, None))
        ax.set_xticks(range(len(values)))
    axes[0, 0].set(ylabel="weights (%)")
    axes[0, 0].legend(fontsize="small")
    return figure


def boundary_shares(widths: list[float], shares: dict[str, list[float]]) -> "Figure":
    """Share of the weights in the boundary range (percent) against its half width x, one line a network or density."""
    figure, ax = grid()
    for i, (name, values) in enumerate(shares.items()):
        ax.plot(widths, values, marker=MARKERS[i], linestyle=DASHES[i % 4], color=SERIES[i], label=name)
    ax.set(xlabel="half width $x$ of the boundary range, in steps", ylabel="weights in range (%)", ylim=(0, None))
    ax.legend(fontsize="small", loc="upper left")
    return figure


def singular_values(values: dict[str, Tensor], head_size: int) -> "Figure":
    """Singular values of the product of one head before and after quantization, largest first."""
    figure, ax = grid(height=2.8)
    for i, (name, sizes) in enumerate(values.items()):
        ax.semilogy(range(1, len(sizes) + 1), sizes / sizes[0], marker=MARKERS[i], markersize=3, linestyle="none",
                    color=SERIES[i], label=name)
    ax.axvline(head_size + 0.5, color=GREY, linestyle=":", label="head size $d$")
    ax.set(xlabel="number", ylabel="singular value / largest", ylim=(1e-4, 2))
    ax.legend(fontsize="small")
    return figure


def annealing(open_share: dict[str, Tensor], moving: dict[str, Tensor]) -> "Figure":
    """Open weights and rows whose scale moved, both in percent, against the step; one line a run, (steps,) each."""
    figure, axes = grid(1, 2)
    titles = ("weights within the range", "rows whose scale moved")
    for ax, title, curves in zip(axes, titles, (open_share, moving), strict=True):
        for i, (name, values) in enumerate(curves.items()):
            ax.plot(100 * values, color=SERIES[i], linestyle=DASHES[i % 4], label=name)
        ax.set(title=title, xlabel="step", ylabel="%", ylim=(0, None))
    axes[1].legend(fontsize="small")
    return figure
