"""Figures of the small-scale study of Nagel 2022."""

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import seaborn as sns

from vitq.plots import COLORS, DASHES, MARKERS, grid

if TYPE_CHECKING:
    from matplotlib.figure import Figure

METHODS = {"LSQ": "LSQ", "LSQ + Dampen": "dampening", "LSQ + Freeze": "freezing"}
PALETTE = {method: COLORS[name] for method, name in METHODS.items()}


def oscillation_over_training(history: pd.DataFrame) -> "Figure":
    """Share of oscillating weights against the step; mean and standard deviation over seeds.

    Args:
        history: Columns ``step``, ``method``, ``seed``, ``oscillating`` (a share).
    """
    figure, axes = grid(height=3.4)
    data = history.assign(percent=100 * history["oscillating"])
    sns.lineplot(data, x="step", y="percent", hue="method", style="method", markers=list(MARKERS[:3]), palette=PALETTE,
                 errorbar="sd", ax=axes)  # fmt: skip
    axes.set(xlabel="optimizer step", ylabel="oscillating weights (%)", ylim=(0, None))
    axes.legend(title=None)
    return figure


def weight_traces(latent: np.ndarray, codes: np.ndarray, first_step: int, count: int = 3) -> "Figure":
    """Figure 2: codes (top) and latent weights near their threshold (bottom) of the busiest filter's busiest weights.

    Args:
        latent: w/s, (steps, channels, kernel).
        codes: Integers, (steps, channels, kernel).
        first_step: Number of the first step shown.
        count: How many weights of that filter, those with the most flips.
    """
    flips = (np.diff(codes, axis=0) != 0).sum(0)  # (channels, kernel)
    channel = flips.sum(1).argmax()
    latent, codes, flips = latent[:, channel], codes[:, channel], flips[channel]
    chosen = np.argsort(-flips, kind="stable")[:count]
    figure, axes = grid(2, 1, height=2.4, sharex=True)
    steps = first_step + np.arange(len(codes))
    for i, w in enumerate(chosen):
        style = {"color": sns.color_palette("colorblind")[i], "linestyle": DASHES[i % len(DASHES)]}
        threshold = np.round(np.median(latent[:, w]) - 0.5) + 0.5
        axes[0].step(steps, codes[:, w] + 0.06 * i, where="post", label=f"weight {w}", linewidth=1.2, **style)
        axes[1].plot(steps, latent[:, w] - threshold, linewidth=1.2, **style)
    axes[1].axhline(0, color="black", linewidth=0.8)
    axes[0].yaxis.get_major_locator().set_params(integer=True)
    axes[0].set_ylabel("integer code")
    axes[1].set(xlabel="optimizer step", ylabel="latent weight minus\nthreshold (steps of the grid)")
    axes[0].legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
    return figure


def latent_histograms(latents: dict[str, dict[str, np.ndarray]]) -> "Figure":
    """Figures 3 and 4: latent weights on the grid (top) and their distance to the code (bottom), a column a method.

    Args:
        latents: By method, ``ratio`` (w/s) and ``distance`` (code - w/s), flat arrays.
    """
    figure, axes = grid(2, len(latents), height=2.3, sharex="row", sharey="row")
    for column, (method, values) in enumerate(latents.items()):
        top, bottom = axes[0, column], axes[1, column]
        top.hist(values["ratio"], bins=np.arange(-4.5, 4.01, 0.1), color=PALETTE[method])
        for edge in np.arange(-3.5, 3):
            top.axvline(edge, color="black", linewidth=0.6, linestyle=":")
        inside = np.abs(values["distance"]) <= 0.5
        bottom.hist(values["distance"][inside], bins=np.linspace(-0.5, 0.5, 41), color=PALETTE[method])
        top.set_title(method)
    middle = len(latents) // 2
    axes[0, middle].set_xlabel("latent weight $w/s$ (grid steps)")
    axes[1, middle].set_xlabel("code minus $w/s$ (grid steps)")
    axes[0, 0].set_ylabel("weights")
    axes[1, 0].set_ylabel("weights")
    return figure


def divergence_by_layer(divergence: pd.DataFrame) -> "Figure":
    """Table 1 as a figure: largest KL over the channels of each layer, one marker a seed.

    Args:
        divergence: Columns ``layer``, ``kind``, ``max_kl``, ``seed``, in model order.
    """
    figure, axes = grid(height=3.8)
    kinds = [k for k in ("depthwise", "pointwise", "conv") if k in set(divergence["kind"])]
    sns.stripplot(divergence, x="layer", y="max_kl", hue="kind", hue_order=kinds, palette=COLORS, size=6, jitter=0.15,
                  ax=axes)  # fmt: skip
    for collection, kind in zip(axes.collections, divergence.drop_duplicates("layer")["kind"], strict=False):
        if kind == "depthwise":
            from matplotlib.markers import MarkerStyle

            marker = MarkerStyle("D")
            collection.set_paths([marker.get_path().transformed(marker.get_transform())])
    axes.set_yscale("log")
    axes.set(xlabel="convolution before the batch norm", ylabel="largest KL over channels (nats)")
    axes.tick_params(axis="x", rotation=75, labelsize=8)
    axes.legend(title=None)
    return figure


def before_and_after(table: pd.DataFrame) -> "Figure":
    """Tables 4 and 5 as a figure: top-1 before and after re-estimation, and the share of oscillating weights.

    Args:
        table: One row a run and seed, columns ``run``, ``top1_pre_bn``, ``top1``, ``oscillating_percent``.
    """
    runs = list(dict.fromkeys(table["run"]))
    place = table["run"].map({run: i for i, run in enumerate(runs)}).to_numpy()
    figure, axes = grid(1, 2, height=0.33 * len(runs) + 1.4, sharey=True, width_ratios=[3, 2])
    for column, name, shift, marker in (("top1_pre_bn", "before", -0.12, "o"), ("top1", "after", 0.12, "s")):
        color = COLORS["depthwise" if column == "top1_pre_bn" else "LSQ"]
        axes[0].scatter(table[column], place + shift, color=color, marker=marker, s=18, alpha=0.6)
        means = table.groupby("run")[column].mean()[runs]
        axes[0].plot(means, np.arange(len(runs)) + shift, color=color, marker=marker, linestyle="", markersize=8,
                     markeredgecolor="black", label=f"{name} re-estimation")  # fmt: skip
    axes[1].scatter(table["oscillating_percent"], place, color=COLORS["LSQ"], s=18, marker="o")
    axes[0].set(xlabel="test top-1 (%)", yticks=range(len(runs)), yticklabels=runs)
    axes[1].set(xlabel="oscillating weights (%)", xlim=(0, None))
    axes[0].invert_yaxis()
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=2, fontsize=9)
    return figure


def other_roundings(table: pd.DataFrame) -> "Figure":
    """Table 3 as a figure: test top-1 against training loss, both as differences to the converged network.

    Args:
        table: Columns ``kind``, ``loss_difference``, ``top1_difference``.
    """
    figure, axes = grid(height=3.6)
    sns.scatterplot(table, x="loss_difference", y="top1_difference", hue="kind", style="kind", palette="colorblind",
                    markers=list(MARKERS[: table["kind"].nunique()]), s=50, ax=axes)  # fmt: skip
    axes.axhline(0, color="black", linewidth=0.8)
    axes.axvline(0, color="black", linewidth=0.8)
    axes.set(xlabel="training loss minus that of the converged network (nats)",
             ylabel="test top-1\ndifference (points)")
    axes.legend(title=None)
    return figure


def methods_by_bits(table: pd.DataFrame) -> "Figure":
    """Table 6 in small: test top-1 of each method, one panel a bit width, one marker a seed and the mean.

    Args:
        table: Columns ``method``, ``bits``, ``top1``.
    """
    widths = list(dict.fromkeys(table["bits"]))
    figure, axes = grid(1, len(widths), height=3.2)
    for ax, bits in zip(np.atleast_1d(axes), widths, strict=True):
        part = table[table["bits"] == bits]
        for i, (method, rows) in enumerate(part.groupby("method", sort=False)):
            ax.scatter([i] * len(rows), rows["top1"], color=PALETTE[method], marker=MARKERS[i], s=30, alpha=0.7)
            ax.plot([i - 0.2, i + 0.2], [rows["top1"].mean()] * 2, color=PALETTE[method], linewidth=2)
        ax.set(title=bits, ylabel="test top-1 (%)", xticks=range(part["method"].nunique()), xlim=(-0.6, 2.6))
        ax.set_xticklabels(list(dict.fromkeys(part["method"])), rotation=20, ha="right", fontsize=9)
    return figure
