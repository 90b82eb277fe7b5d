"""Figures of the method notebook of Nagel 2022: the toy problem, the quantizer, tracker, dampening, freezing."""

from typing import TYPE_CHECKING

import matplotlib.pyplot as plt
from torch import Tensor

from vitq.plots import COLORS, DASHES, MARKERS, grid

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from vitq.papers.nagel2022 import Trajectory

BLUE, ORANGE, GREEN, RED, PURPLE, _, _, GREY = (
    "#0173b2", "#de8f05", "#029e73", "#d55e00", "#cc78bc", "#ca9161", "#fbafe4", "#949494",
)  # fmt: skip


def _trajectory(ax: "Axes", run: "Trajectory", threshold: float, color: str = BLUE, every: int = 1) -> None:
    """Latent line, quantized crosses, target and threshold of one run."""
    steps = range(run.latent.shape[-1])
    ax.axhline(float(run.target), color="black", linestyle="--", linewidth=1.2, label=r"target $w_{\mathrm{opt}}$")
    ax.axhline(threshold, color=GREY, linestyle=":", linewidth=1.6, label="threshold")
    ax.plot(steps, run.latent, color=color, linewidth=1.5, label="latent $w$")
    ax.plot(steps[::every], run.quantized[::every], linestyle="none", marker="x", markersize=4.5, color=RED,
            label="quantized $q(w)$")


def estimators(runs: "dict[str, Trajectory]", threshold: float) -> "Figure":
    """Figure 1: one panel a gradient estimator, weight against iteration."""
    figure, axes = grid(len(runs), height=1.75, sharex=True, sharey=True, squeeze=False)
    for ax, (name, run) in zip(axes.flat, runs.items(), strict=True):
        _trajectory(ax, run, threshold, COLORS[name])
        ax.set(title=name, ylabel="weight")
    axes[-1, 0].set_xlabel("iteration")
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, fontsize="small")
    return figure


def animation(run: "Trajectory", threshold: float) -> "Figure":
    """The instance of the authors' animation: trajectory above, gradients below; run of shape (iterations + 1,)."""
    figure, (top, bottom) = plt.subplots(2, 1, figsize=(7.5, 4.6), sharex=True, height_ratios=(2, 1))
    _trajectory(top, run, threshold)
    top.set(ylabel="weight")
    top.legend(loc="upper center", bbox_to_anchor=(0.5, 1.22), ncols=4, fontsize="small", frameon=False)
    colors = [BLUE if g > 0 else ORANGE for g in run.gradient]
    bottom.bar(range(len(run.gradient)), run.gradient, color=colors)
    bottom.axhline(0, color="black", linewidth=0.8)
    bottom.set(xlabel="iteration", ylabel="gradient")
    return figure


def switching(distance: Tensor, share: Tensor, rate: Tensor) -> "Figure":
    """Figure 5: far-level share and switch rate against d/s, each (n,), with the predicted lines."""
    figure, ax = grid()
    line = [0, float(distance.max()) * 1.05]
    ax.plot(line, [2 * x for x in line], color=ORANGE, linestyle="--", label=r"$2\,d/s$")
    ax.plot(line, line, color=BLUE, linestyle="-", label="$d/s$")
    ax.plot(distance, rate, color=ORANGE, marker="s", linestyle="none", label="switches per iteration, measured")
    ax.plot(distance, share, color=BLUE, marker="o", linestyle="none", label="share at the far level, measured")
    ax.set(xlabel="distance of the target from its grid value, $d/s$", ylabel="per iteration")
    ax.legend(fontsize="small")
    return figure


def learning_rates(rates: list[float], latents: Tensor, threshold: float) -> "Figure":
    """Figure 6: latent weight against iteration, one line a learning rate; ``latents`` is (len(rates), iterations)."""
    figure, ax = grid()
    ax.axhline(threshold, color=GREY, linestyle=":", linewidth=1.6, label="threshold")
    for i, (rate, latent) in enumerate(zip(rates, latents, strict=True)):
        ax.plot(latent, linestyle=DASHES[i % 4], marker=MARKERS[i], markersize=3.5, markevery=3, linewidth=1.3,
                label=rf"$\eta\sigma^2$ = {rate:g}")
    ax.set(xlabel="iteration, in the steady state", ylabel="latent weight $w$")
    ax.legend(fontsize="small", loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


def dampening_strength(strength: Tensor, rate: Tensor, far_end: Tensor, near: float, far: float) -> "Figure":
    """Left: switch rate against lambda; right: is the far level a trap. Arrays (n,); thresholds as vertical lines."""
    figure, (left, right) = grid(1, 2, sharex=True)
    left.plot(strength, rate, color=COLORS["Dampening"], marker="o", markersize=3.5, linewidth=1)
    left.set(title="does it oscillate?", ylabel="switches per iteration")
    right.plot(strength, far_end, color=COLORS["Dampening"], marker="s", markersize=3.5, linewidth=1)
    right.set(title="started far: does it stay far?")
    right.set_yticks([0, 1], ["no", "yes"])
    for ax in (left, right):
        ax.axvline(near, color="black", linestyle="--", linewidth=1.2, label=r"$\sigma^2 d/s$")
        ax.axvline(far, color=GREY, linestyle=":", linewidth=1.8, label=r"$\sigma^2 (1 - d/s)$")
        ax.set(xlabel=r"dampening strength $\lambda$")
    left.legend(fontsize="small")
    return figure


def annealing(runs: dict[str, Tensor], strengths: dict[str, Tensor], target: float, threshold: float) -> "Figure":
    """Latent weights (above) under several courses of lambda (below), each (iterations,)."""
    figure, (top, bottom) = plt.subplots(2, 1, figsize=(7.5, 4.6), sharex=True, height_ratios=(2, 1))
    top.axhline(target, color="black", linestyle="--", linewidth=1.2, label=r"target $w_{\mathrm{opt}}$")
    top.axhline(threshold, color=GREY, linestyle=":", linewidth=1.6, label="threshold")
    for i, name in enumerate(runs):
        color, dash = (GREY, RED, GREEN)[i % 3], ("-", "-.", "-")[i % 3]
        top.plot(runs[name], color=color, linestyle=dash, linewidth=1.4, label=name)
        bottom.plot(strengths[name], color=color, linestyle=dash, linewidth=1.8)
    top.set(ylabel="latent weight $w$")
    bottom.set(xlabel="iteration", ylabel=r"$\lambda$")
    figure.legend(*top.get_legend_handles_labels(), loc="outside lower center", ncols=3, fontsize="small")
    return figure


def quantizer(x: Tensor, output: Tensor, masks: dict[str, Tensor], scale_gradients: dict[str, Tensor]) -> "Figure":
    """Output, gradient to x and gradient to s of a quantizer against x, the latter two by variant; all (n,)."""
    figure, axes = plt.subplots(3, 1, figsize=(7.5, 5.6), sharex=True)
    axes[0].plot(x, x, color=GREY, linestyle=":", linewidth=1.2, label="$x$")
    axes[0].plot(x, output, color=BLUE, label="$q(x)$")
    axes[0].set(ylabel="output", ylim=(float(output.min()) - 1, float(output.max()) + 1))
    for ax, curves in zip(axes[1:], (masks, scale_gradients), strict=True):
        for (name, values), color, dash in zip(curves.items(), (BLUE, ORANGE), ("-", "--"), strict=False):
            ax.plot(x, values, color=color, linestyle=dash, label=name)
    axes[1].set(ylabel=r"$\partial q/\partial x$")
    axes[2].set(xlabel="$x$, in steps ($s = 1$)", ylabel=r"$\partial q/\partial s$")
    for ax, place in zip(axes, ("upper left", "center", "upper left"), strict=True):
        ax.legend(fontsize="small", loc=place)
    return figure


def range_search(curves: dict[str, tuple[Tensor, Tensor]]) -> "Figure":
    """Mean squared error against clipping threshold, one panel a tensor: ``{title: (thresholds, errors)}``."""
    figure, axes = grid(1, len(curves), squeeze=False, sharey=True)
    for i, (ax, (name, (threshold, error))) in enumerate(zip(axes.flat, curves.items(), strict=True)):
        best = int(error.argmin())
        ax.semilogy(threshold, error, color=BLUE, marker=".", markersize=4, linewidth=0.8, label="candidate")
        ax.plot(threshold[best], error[best], color=RED, marker="D", linestyle="none", label="chosen")
        ax.set(title=name, xlabel="threshold $T$ (largest code)", ylabel="mean squared error" if i == 0 else None)
    axes[0, 0].legend(fontsize="small")
    return figure


def frequencies(courses: dict[str, Tensor], limits: dict[str, float]) -> "Figure":
    """Frequency f against step for several periodic patterns, with the limit 2/P of each dashed."""
    figure, ax = grid()
    for i, (name, values) in enumerate(courses.items()):
        look = {"marker": MARKERS[i], "markevery": len(values) // 8, "markersize": 4, "linewidth": 1.3}
        (line,) = ax.plot(values, label=name, **look)
        ax.axhline(limits[name], color=line.get_color(), linestyle="--", linewidth=1)
    ax.set(xlabel="optimizer step", ylabel="frequency $f$", ylim=(0, 1.08))
    ax.legend(title="codes, repeated", fontsize="small", loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


def pull(w: Tensor, gradient: Tensor, grid_values: Tensor) -> "Figure":
    """Gradient of the dampening loss against the latent weight, with the grid values marked."""
    figure, ax = grid(height=2.6)
    ax.axhline(0, color="black", linewidth=0.8)
    ax.plot(w, gradient, color=COLORS["dampening"])
    ax.plot(grid_values, 0 * grid_values, linestyle="none", marker="o", color=BLUE, label="grid values")
    ax.set(xlabel="latent weight $w$ ($s = 1$)", ylabel=r"$\partial L_{\mathrm{damp}}/\partial w$")
    ax.legend(fontsize="small")
    return figure


def schedules(progress: Tensor, strength: Tensor, threshold: Tensor) -> "Figure":
    """lambda and the freezing threshold against the share of training done; 0 is drawn as off."""
    figure, (left, right) = grid(1, 2, sharex=True, height=2.6)
    left.plot(progress, strength, color=COLORS["dampening"])
    left.set(title="dampening", ylabel=r"$\lambda$")
    on = threshold > 0
    right.plot(progress[on], threshold[on], color=COLORS["freezing"])
    right.axvspan(0, float(progress[on][0]), color=GREY, alpha=0.3, label="off", linewidth=0)
    right.set(title="freezing", ylabel=r"$f_{\mathrm{th}}$", ylim=(0, None))
    right.legend(fontsize="small")
    for ax in (left, right):
        ax.set(xlabel="share of training")
    return figure


def freezing_trace(codes: Tensor, mean: Tensor, frequency: Tensor, threshold: Tensor, frozen_at: int) -> "Figure":
    """One weight: code and its average above, frequency and threshold below; all (steps,)."""
    figure, (top, bottom) = plt.subplots(2, 1, figsize=(7.5, 4.8), sharex=True)
    top.step(range(len(codes)), codes, where="post", color=BLUE, linewidth=0.8, label="code")
    top.plot(mean, color=ORANGE, linewidth=2, label="moving average of the code")
    top.axhline(float(codes.max() + codes.min()) / 2, color=GREY, linestyle=":", linewidth=1.4)
    top.set(ylabel="code")
    bottom.plot(frequency, color=BLUE, label="frequency $f$")
    bottom.plot(threshold.where(threshold > 0, threshold.new_tensor(float("nan"))), color=RED, linestyle="--",
                label=r"threshold $f_{\mathrm{th}}$")
    bottom.set(xlabel="optimizer step", ylabel="per step", ylim=(0, None))
    top.set_yticks(sorted(set(codes.tolist())))
    for ax, place in ((top, "lower right"), (bottom, "upper right")):
        ax.axvline(frozen_at, color="black", linestyle="-.", linewidth=1, label=f"frozen at step {frozen_at}")
        ax.legend(fontsize="small", loc=place)
    return figure


def used_codes(series: dict[str, Tensor], first: int = 0) -> "Figure":
    """The code that a forward pass uses, from step ``first`` on, one panel a variant; each (steps,)."""
    figure, axes = grid(len(series), height=1.3, sharex=True, sharey=True, squeeze=False)
    for ax, (name, codes), color in zip(axes.flat, series.items(), (BLUE, RED, GREEN), strict=False):
        ax.step(range(first, first + len(codes)), codes, where="post", color=color)
        ax.set(title=name, ylabel="code")
        ax.set_yticks(sorted(set(codes.tolist())))
    axes[-1, 0].set_xlabel("optimizer step")
    return figure


def divergence(ratio: Tensor, correct: Tensor, footnote: Tensor) -> "Figure":
    """Two forms of the divergence of equal-mean normal distributions against the ratio of standard deviations."""
    figure, ax = grid(height=2.8)
    ax.axhline(0, color="black", linewidth=0.8)
    ax.plot(ratio, correct, color=BLUE, label="Kullback-Leibler divergence")
    ax.plot(ratio, footnote, color=RED, linestyle="--", label="as the footnote is typeset")
    ax.axvline(1, color=GREY, linestyle=":", label="equal distributions")
    ax.set(xlabel="ratio of standard deviations $s_2/s_1$", ylabel="nats")
    ax.legend(fontsize="small")
    return figure


def demonstration(courses: dict[str, tuple[list[int], list[float]]]) -> "Figure":
    """Logged share of oscillating weights (percent) against step, one line a run: ``{name: (steps, percent)}``."""
    figure, ax = grid()
    for i, (name, (steps, percent)) in enumerate(courses.items()):
        look = {"color": COLORS[name], "linestyle": DASHES[i % 4], "marker": MARKERS[i], "markersize": 4}
        ax.plot(steps, percent, label=name, **look)
    ax.set(xlabel="optimizer step", ylabel="oscillating weights (%)", ylim=(0, None))
    ax.legend(fontsize="small")
    return figure
