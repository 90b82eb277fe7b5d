"""Figures of OFQ's method notebook: they draw the data that they are given."""

import pytest
import torch

from vitq.papers.ofq2023.toy import scale_derivative, toy_regression
from vitq.plots import ofq2023_method as plots


def labels(ax):
    return [text.get_text() for text in ax.get_legend().get_texts()]


def test_every_threshold_is_marked():
    v = torch.linspace(-3, 2, 101)
    ax = plots.scale_gradient(v, scale_derivative(v, -2, 1), -2, 1).axes[0]
    assert [line.get_xdata()[0] for line in ax.lines if line.get_linestyle() == ":"] == [-1.5, -0.5, 0.5]
    assert labels(ax) == ["threshold"]


def test_one_column_a_method_with_weights_above_and_step_size_below():
    runs = {name: toy_regression(name.lower(), rows=3, columns=4, steps=30) for name in ("LSQ", "StatsQ")}
    axes = plots.toy_trajectories(runs, 1, 20).axes
    assert [ax.get_title() for ax in axes[:2]] == list(runs) and len(axes) == 4
    assert [len(ax.lines) for ax in axes] == [4, 4, 1, 1]
    size = runs["StatsQ"].step_size[-20:, 1]
    assert axes[1].lines[2].get_ydata() == pytest.approx((runs["StatsQ"].latent[-20:, 1, 2] / size).numpy())
    assert axes[3].lines[0].get_ydata().mean() == pytest.approx(1)
    assert list(axes[3].lines[0].get_xdata()) == list(range(11, 31))


def test_shares_are_drawn_in_percent():
    ax = plots.occupancy({"2 bit": {"Gaussian": [0.2, 0.3, 0.3, 0.2]}}).axes[0]
    assert list(ax.lines[0].get_ydata()) == pytest.approx([20, 30, 30, 20])
    figure = plots.annealing({"x": torch.tensor([0.01, 0.005])}, {"x": torch.tensor([1.0, 0.5]), "free": torch.ones(2)})
    assert list(figure.axes[0].lines[0].get_ydata()) == pytest.approx([1, 0.5])
    assert labels(figure.axes[1]) == ["x", "free"]


def test_lines_carry_their_names():
    x = torch.linspace(-2, 2, 9)
    assert labels(plots.grids(x, {"StatsQ": x, "LSQ": x}).axes[0]) == ["$w$", "StatsQ", "LSQ"]
    assert labels(plots.boundary_shares([0.003, 0.01], {"a": [1, 2], "b": [2, 3]}).axes[0]) == ["a", "b"]
    ax = plots.singular_values({"product": torch.tensor([4.0, 2.0, 0.0])}, 2).axes[0]
    assert list(ax.lines[0].get_ydata()) == [1, 0.5, 0] and ax.get_yscale() == "log"
