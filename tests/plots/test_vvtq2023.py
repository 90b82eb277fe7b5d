"""Figures of VVTQ's notebooks: they draw the data that they are given."""

import pandas as pd
import pytest
import torch

from vitq.plots import vvtq2023_method as method
from vitq.plots import vvtq2023_small as small


def test_ridges_have_one_row_a_group():
    axes = small.ridges({"a": {"x": torch.randn(50), "y": torch.randn(50)}, "b": {"z": torch.randn(50)}}).axes
    assert [len(ax.lines) for ax in axes] == [2, 1] and axes[0].get_title() == "a"
    assert [t.get_text() for t in axes[0].get_yticklabels()] == ["y", "x"]


def test_settings_are_rows_and_seeds_markers():
    table = pd.DataFrame({"setting": ["a", "a", "b", "b"], "top1": [1.0, 3.0, 5.0, 7.0], "series": ""})
    ax = small.by_setting(table, {"top1": "top-1"}).axes[0]
    assert [t.get_text() for t in ax.get_yticklabels()] == ["a", "b"]
    assert [line.get_xdata()[0] for line in ax.lines] == [2.0, 6.0]
    assert len(ax.collections[0].get_offsets()) == 4


def test_distances_are_a_density():
    ax = small.distances({"x": [0.25] * 4}).axes[0]
    assert list(ax.patches[0].get_data().values) == [1.0] * 4


def test_published_curves_say_so():
    table = pd.DataFrame({"bits": ["W4A4"] * 2, "epoch": [0, 20], "top1": [60.0, 70.0]})
    ax = small.published_curves(table).axes[0]
    assert "published" in ax.get_ylabel() and any("not ours" in t.get_text() for t in ax.texts)


def test_bits_have_a_panel_a_network():
    table = pd.DataFrame({"model": ["a", "a", "b", "b"], "method": ["m"] * 4, "n": [2, 3, 2, 3], "top1": [1, 2, 3, 4]})
    axes = small.by_bits(table).axes
    assert [list(ax.lines[0].get_ydata()) for ax in axes] == [[1, 2], [3, 4]]


def test_lines_of_the_method_page():
    ax = method.lines({"a": ([0, 1], [2, 3])}, "x", "y", step=True).axes[0]
    assert list(ax.lines[0].get_ydata()) == [2, 3] and ax.lines[0].get_drawstyle() == "steps-post"
    ax = method.head_scales({"0.attn.key": torch.tensor([1.0, 2.0])}, {"0.attn.key": 1.5}).axes[0]
    assert list(ax.lines[0].get_ydata()) == [1.5, 1.5]
    ax = method.trajectories({"a": torch.rand(50), "b": torch.rand(50)}, 0.5, 20).axes[1]
    assert len(ax.lines[0].get_xdata()) == 20
    ax = method.pulls(torch.tensor([0.0, 1.0]), {"D": torch.tensor([0.1, -0.1])}, -2, 1).axes[0]
    assert [line.get_xdata()[0] for line in ax.lines if line.get_linestyle() == ":"] == [-1.5, -0.5, 0.5]


def test_crops_stand_beside_their_image():
    crops = torch.rand(2, 3, 8, 8)
    image, boxes = torch.zeros(3, 8, 8, dtype=torch.uint8), torch.tensor([[0, 1, 4, 5], [2, 2, 6, 6]])
    figure = method.stored_crops(image, boxes, crops, "ab")
    assert len(figure.axes) == 3 and len(figure.axes[0].patches) == 2
    box = figure.axes[0].patches[0]
    assert (box.get_y(), box.get_x(), box.get_height(), box.get_width()) == (-0.5, 0.5, 4, 5)
    true = torch.tensor([0.1, 0.7, 0.2])
    ax = method.label_formats(true, {"kept": true}).axes[0]
    assert list(ax.lines[0].get_ydata()) == pytest.approx([0.7, 0.2, 0.1])
