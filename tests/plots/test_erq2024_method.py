"""Figures of ERQ's method notebook: they draw the data that they are given."""

import numpy as np
import pytest
import torch

from vitq.plots import erq2024_method as plots


def labels(ax):
    return [text.get_text() for text in ax.get_legend().get_texts()]


def test_channels_stand_widest_first_with_every_level():
    low, high = torch.tensor([-1.0, -4.0, 0.0]), torch.tensor([1.0, 4.0, 0.5])
    ax = plots.channel_ranges(low, high, torch.tensor([-1.5, 0.0, 1.5])).axes[0]
    segments = ax.collections[0].get_segments()
    assert [tuple(segment[:, 1]) for segment in segments] == [(-4, 4), (-1, 1), (0, 0.5)]
    assert [line.get_ydata()[0] for line in ax.lines] == [-1.5, 0, 1.5]
    assert labels(ax) == ["range of a channel", "levels of one quantizer"]


def test_histogram_holds_every_entry_and_only_positive_levels_are_marked():
    values = torch.tensor([0.0, 1e-8, 0.01, 0.5])
    figure = plots.probability_levels(values, {"a": torch.tensor([0.0, 0.5]), "b": torch.tensor([0.0, 0.1, 1.0])})
    above, below = figure.axes
    assert sum(bar.get_height() for bar in above.patches) == pytest.approx(100)
    assert above.patches[0].get_height() == pytest.approx(50)
    assert [list(line.get_xdata()) for line in below.lines] == [[0.5], pytest.approx([0.1, 1.0])]


def test_columns_are_sorted_together_and_outliers_marked():
    before, after = torch.tensor([3.0, 1.0, 2.0]), torch.tensor([1.0, 9.0, 4.0])
    trained, folded, apart = plots.columns(before, after, torch.tensor([False, True, False])).axes[0].lines
    assert list(folded.get_ydata()) == [9, 4, 1] and list(trained.get_ydata()) == [1, 2, 3]
    assert list(apart.get_xdata()) == [0] and list(apart.get_ydata()) == [9]


def test_bars_lines_and_their_names():
    ax = plots.error_parts(["qkv", "fc1"], {"inputs": [0.1, 0.2], "weights": [0.3, 0.4]}).axes[0]
    assert [bar.get_height() for bar in ax.patches] == [0.1, 0.2, 0.3, 0.4] and labels(ax) == ["inputs", "weights"]
    middle = [bar.get_x() + bar.get_width() / 2 for bar in ax.patches]
    assert np.allclose([(middle[0] + middle[2]) / 2, (middle[1] + middle[3]) / 2], [0, 1])

    ax = plots.ridge_curve([1.0, 10.0], {"fit": [1, 2], "other": [3, 2]}, {"fit": 2.5, "other": 3.5}, 5.0).axes[0]
    assert labels(ax) == ["fit", "other", "released $L$"] and ax.get_xscale() == "log"
    assert [line.get_ydata()[0] for line in ax.lines if line.get_linestyle() == ":"] == [2.5, 3.5]
    assert ax.lines[-1].get_xdata()[0] == 5

    ax = plots.proxy_traces({"released": torch.tensor([1.0, 0.8]), "exact": torch.tensor([1.0, 0.5])}).axes[0]
    assert labels(ax) == ["released", "exact"] and list(ax.lines[1].get_ydata()) == [1, 0.5]

    ax = plots.search_times([4, 8], {"CBC": [0.1, 1.0], "search": [0.01, 0.01]}).axes[0]
    assert ax.get_yscale() == "log" and labels(ax) == ["CBC", "search"] and list(ax.get_xticks()) == [4, 8]
