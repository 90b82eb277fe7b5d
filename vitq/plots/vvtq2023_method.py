"""Figures of the method notebook of VVTQ: scales of heads, stored crops, schedules, pulls of the regularization."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

from vitq.plots import DASHES, MARKERS, grid

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SERIES = ("#0173b2", "#de8f05", "#029e73", "#d55e00", "#cc78bc")
GREY = "#949494"
Line = tuple[Sequence[float] | Tensor, Sequence[float] | Tensor]


def lines(series: Mapping[str, Line], x: str, y: str, *, step: bool = False, log: bool = False) -> "Figure":
    """One line for each name, given as (x values, y values); a line of steps where asked for."""
    figure, ax = grid(height=2.8)
    form = {"drawstyle": "steps-post"} if step else {}
    for i, (name, (at, values)) in enumerate(series.items()):
        ax.plot(at, values, color=SERIES[i % 5], linestyle=DASHES[i % 4], label=name, **form)
    ax.set(xlabel=x, ylabel=y)
    if log:
        ax.set_yscale("log")
    if len(series) > 1:
        ax.legend(fontsize="small")
    return figure


def head_scales(scales: Mapping[str, Tensor], whole: Mapping[str, float]) -> "Figure":
    """Scales of the heads of each layer, and the one scale of the whole layer.

    Args:
        scales: By layer, (heads,).
        whole: The layer's own scale.
    """
    figure, ax = grid(height=2.8)
    for i, (name, values) in enumerate(scales.items()):
        head, layer = ("a head", "the layer") if i == 0 else (None, None)
        ax.scatter([i] * len(values), values, color=SERIES[0], marker="o", s=22, label=head)
        ax.plot([i - 0.3, i + 0.3], [whole[name]] * 2, color=SERIES[1], linewidth=2, label=layer)
    ax.set(xticks=range(len(scales)), xticklabels=[n.replace("attn.", "") for n in scales], ylabel=r"scale $\alpha$")
    ax.tick_params(axis="x", rotation=60, labelsize=8)
    ax.legend(fontsize="small")
    return figure


def stored_crops(image: Tensor, boxes: Tensor, crops: Tensor, titles: Sequence[str]) -> "Figure":
    """An image with the frames of its stored crops, and the crops with what the teacher says of them.

    Args:
        image: uint8 (3, H, W).
        boxes: Top, left, height, width in pixels, (M, 4).
        crops: Resized crops in [0, 1], (M, 3, S, S).
        titles: Of the crops.
    """
    from matplotlib.patches import Rectangle

    figure, axes = grid(1, len(crops) + 1, height=2.1)
    axes[0].imshow(image.permute(1, 2, 0).numpy())
    for i, (top, left, height, width) in enumerate(boxes.tolist()):
        frame = Rectangle((left - 0.5, top - 0.5), width, height, fill=False, edgecolor=SERIES[1 + i % 4],
                          linestyle=DASHES[i % 4], linewidth=2)  # fmt: skip
        axes[0].add_patch(frame)
        axes[i + 1].imshow(crops[i].permute(1, 2, 0).clamp(0, 1).numpy())
        axes[i + 1].set_title(titles[i], fontsize=8, color="black")
        for side in axes[i + 1].spines.values():
            side.set(visible=True, color=SERIES[1 + i % 4], linestyle=DASHES[i % 4], linewidth=2)
    axes[0].set_title("image", fontsize=8)
    for ax in axes:
        ax.set(xticks=[], yticks=[])
        ax.grid(False)
    return figure


def label_formats(true: Tensor, recovered: Mapping[str, Tensor]) -> "Figure":
    """A teacher's distribution over classes (C,), sorted, and what is recovered of it from each label format."""
    order = true.argsort(descending=True)
    figure, ax = grid(height=2.8)
    rank = np.arange(1, len(true) + 1)
    ax.plot(rank, true[order], color="black", linewidth=1.2, label="teacher")
    for i, (name, values) in enumerate(recovered.items()):
        ax.plot(rank, values[order].clamp_min(1e-12), color=SERIES[i], linestyle=DASHES[(i + 1) % 4], marker=MARKERS[i],
                markersize=3, label=name)  # fmt: skip
    ax.set(xlabel="class, by the teacher's probability", ylabel="probability", yscale="log", ylim=(1e-7, 2))
    ax.legend(fontsize="small")
    return figure


def pulls(position: Tensor, by_term: Mapping[str, Tensor], low: int, high: int) -> "Figure":
    """Gradient of each term of the regularization at the positions w/alpha, (n,) each; thresholds dotted."""
    figure, ax = grid(height=2.8)
    ax.axhline(0, color="black", linewidth=0.8)
    for k in range(low, high):
        ax.axvline(k + 0.5, color=GREY, linestyle=":", linewidth=1.2, label="threshold" if k == low else None)
    for i, (name, values) in enumerate(by_term.items()):
        ax.scatter(position, values, color=SERIES[i], marker=MARKERS[i], s=8, label=name)
    ax.set(xlabel=r"position $w/\alpha$", ylabel="gradient over the largest")
    figure.legend(*ax.get_legend_handles_labels(), loc="outside upper center", ncols=4, fontsize="small")
    return figure


def trajectories(runs: Mapping[str, Tensor], threshold: float, steps: int) -> "Figure":
    """The last steps of one latent weight, a panel a run.

    Args:
        runs: Latent weight in units of the scale by step, (T,), by the title of the panel.
        threshold: Rounding threshold in these units.
        steps: How many of the last steps to show.
    """
    figure, axes = grid(1, len(runs), height=2.4, sharey=True)
    for i, (ax, (name, latent)) in enumerate(zip(np.atleast_1d(axes), runs.items(), strict=True)):
        ax.plot(range(len(latent) - steps, len(latent)), latent[-steps:], color=SERIES[i % 5], linewidth=1)
        ax.axhline(threshold, color=GREY, linestyle=":", linewidth=1.4)
        ax.set(title=name, xlabel="iteration")
    np.atleast_1d(axes)[0].set_ylabel(r"latent weight $w/\alpha$")
    return figure
