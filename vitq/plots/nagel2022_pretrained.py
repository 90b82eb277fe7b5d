"""Figures of the study on a pretrained network, Nagel 2022."""

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from vitq.plots import COLORS, DASHES, grid
from vitq.plots.nagel2022_pretrained_tables import SETS

if TYPE_CHECKING:
    from matplotlib.figure import Figure

KINDS = {"depthwise": "D", "pointwise": "o"}
STATISTICS = {"running": ("o", COLORS["depthwise"]), "held still": ("^", COLORS["conv"]),
              "re-estimated": ("s", COLORS["LSQ"])}  # fmt: skip
MEASURES = {"agreement": "agreement of top-1 (%)", "kl": "KL to full precision (nats)"}


def crops(images: dict[str, np.ndarray], words: dict[str, list[str]]) -> "Figure":
    """Rows of crops with a word under each.

    Args:
        images: By row title, uint8 (n, H, W, 3).
        words: By row title, n captions.
    """
    count = max(len(row) for row in images.values())
    figure, axes = grid(len(images), count, height=1.6, squeeze=False)
    for line, (title, row) in zip(axes, images.items(), strict=True):
        for ax, image, word in zip(line, row, words[title], strict=True):
            step = max(1, max(image.shape) // 37)  # photographs make large files
            ax.imshow(image[::step, ::step], interpolation="nearest")
            ax.set_title(word, fontsize=7)
            ax.set(xticks=[], yticks=[])
        line[0].set_ylabel(title, fontsize=8)
    return figure


def divergence_by_layer(divergence: pd.DataFrame, measure: str = "max_kl") -> "Figure":
    """Divergence against depth, one marker a layer: of the trained network and of the same weights held still.

    Args:
        divergence: Columns ``layer``, ``kind``, ``statistics`` ("running", "held still"), ``seed`` and the measure; in
            model order.
        measure: "max_kl" or "mean_kl".
    """
    layers = list(dict.fromkeys(divergence["layer"]))
    means = divergence.groupby(["statistics", "layer", "kind"], sort=False)[measure].mean().reset_index()
    figure, axes = grid(height=4.0)
    for statistics, filled in (("running", True), ("held still", False)):
        part = means[means["statistics"] == statistics]
        for kind, marker in KINDS.items():
            rows = part[part["kind"] == kind]
            place, color = [layers.index(name) for name in rows["layer"]], COLORS[kind]
            axes.plot(place, rows[measure], marker=marker, color=color, markersize=6 if filled else 4,
                      linestyle="-" if filled else ":", linewidth=0.8, markerfacecolor=color if filled else "white",
                      label=f"{kind}, {'trained' if filled else 'held still'}")
    axes.set_yscale("log")
    word = {"max_kl": "largest", "mean_kl": "mean"}[measure]
    axes.set(xlabel="layer, from the input to the output", ylabel=f"{word} KL over channels (nats)")
    ticks = range(0, len(layers), 3)
    axes.set_xticks(list(ticks), [layers[i].removeprefix("blocks.") for i in ticks], rotation=75, fontsize=8)
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, 1.18), ncols=4, fontsize=8)
    return figure


def oscillation_by_kind(shares: pd.DataFrame) -> "Figure":
    """Share of oscillating weights of each kind of layer, one panel a run, one marker a seed; 0 is not drawn.

    Args:
        shares: Columns ``run``, ``seed``, ``kind``, ``threshold``, ``percent``.
    """
    runs, levels = list(dict.fromkeys(shares["run"])), sorted(set(shares["threshold"]))
    figure, axes = grid(1, len(runs), height=3.2, sharey=True, squeeze=False)
    for ax, run in zip(axes.flat, runs, strict=True):
        for i, (kind, marker) in enumerate(KINDS.items()):
            part = shares[(shares["run"] == run) & (shares["kind"] == kind)]
            place = part["threshold"].map(levels.index) + 0.16 * (2 * i - 1)
            ax.plot(place, part["percent"], marker=marker, color=COLORS[kind], linestyle="", markersize=5, label=kind)
        ax.set_title(run, fontsize=10)
        ax.set_xticks(range(len(levels)), [f"{level:g}" for level in levels], fontsize=8)
        ax.set_xlim(-0.5, len(levels) - 0.5)
    axes[0, 0].set(ylabel="weights (%)", yscale="log")
    axes[0, 0].yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    figure.supxlabel("frequency $f$ above", fontsize=11)
    axes[0, -1].legend(fontsize=8)
    return figure


def oscillation_by_layer(shares: pd.DataFrame, column: str) -> "Figure":
    """Share of oscillating weights against depth, mean over seeds, one marker a layer.

    Args:
        shares: Columns ``layer``, ``kind``, ``seed`` and the share in percent, in model order.
        column: Name of that share.
    """
    layers = list(dict.fromkeys(shares["layer"]))
    means = shares.groupby(["layer", "kind"], sort=False)[column].mean().reset_index()
    figure, axes = grid(height=3.4)
    for (kind, marker), dash in zip(KINDS.items(), DASHES, strict=False):
        rows = means[means["kind"] == kind]
        axes.plot([layers.index(name) for name in rows["layer"]], rows[column], marker=marker, color=COLORS[kind],
                  linestyle=dash, linewidth=0.8, label=kind)
    ticks = range(0, len(layers), 3)
    axes.set_xticks(list(ticks), [layers[i].removeprefix("blocks.") for i in ticks], rotation=75, fontsize=8)
    axes.set(xlabel="layer, from the input to the output", ylabel="oscillating weights (%)", ylim=(0, None))
    axes.legend(fontsize=8)
    return figure


def distances(values: dict[str, np.ndarray]) -> "Figure":
    """Figures 3 and 4: distance of the latent weights of one layer to their code, one panel a run.

    Args:
        values: By run, code - w/s, flat; clipped weights (beyond half a step) are left out.
    """
    figure, axes = grid(1, len(values), height=2.8, sharey=True, squeeze=False)
    for ax, (name, distance) in zip(axes.flat, values.items(), strict=True):
        inside = distance[np.abs(distance) <= 0.5]
        color = COLORS["dampening" if "Dampen" in name else "freezing" if "Freeze" in name else
                       "conv" if "before" in name else "LSQ"]  # fmt: skip
        weights = np.full(len(inside), 100 / max(1, len(inside)))
        ax.hist(inside, bins=np.linspace(-0.5, 0.5, 21), weights=weights, color=color)
        ax.set(title=name, xlabel="code $-\\ w/s$ (steps)")
    axes[0, 0].set_ylabel("weights (%)")
    return figure


def before_and_after(table: pd.DataFrame) -> "Figure":
    """Agreement and KL with each kind of batch-norm statistics, one small marker a seed and a large one their mean.

    Args:
        table: Columns ``run``, ``seed``, ``set``, ``statistics``, ``agreement``, ``kl``.
    """
    runs, shift = list(dict.fromkeys(table["run"])), {"running": -0.2, "held still": 0.0, "re-estimated": 0.2}
    figure, axes = grid(len(MEASURES), len(SETS), height=2.7, sharex=True, sharey="row", squeeze=False)
    for row, (measure, label) in zip(axes, MEASURES.items(), strict=True):
        for ax, (kind, title) in zip(row, SETS.items(), strict=True):
            for name, (marker, color) in STATISTICS.items():
                part = table[(table["set"] == kind) & (table["statistics"] == name)]
                ax.scatter(part["run"].map(runs.index) + shift[name], part[measure], s=14, marker=marker, color=color,
                           alpha=0.6)
                means = part.groupby("run")[measure].mean()
                ax.plot([runs.index(run) + shift[name] for run in means.index], means, marker=marker, color=color,
                        linestyle="", markersize=8, markeredgecolor="black", label=name)
            if measure == "agreement":
                ax.set_title(title)
            ax.set_xticks(range(len(runs)), runs, rotation=25, ha="right", fontsize=9)
        row[0].set_ylabel(label)
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=3, fontsize=9)
    return figure
