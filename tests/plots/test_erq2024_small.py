"""Figures of ERQ's small study: they draw the data that they are given."""

import pandas as pd
import pytest

from vitq.plots import erq2024_small as plots


def test_each_draw_has_a_marker_and_each_mean_a_bar():
    table = pd.DataFrame([{"method": m, "bits": b, "error": 0.1 * i + d, "cosine": None if m == "ERQ" else 0.5}
                          for i, m in enumerate(("GPTQ", "ERQ")) for b in ("W4A4", "W3A4") for d in (0.1, 0.3)])
    figure = plots.by_method_and_bits(table, {"error": "error", "cosine": "cosine"}, ("error",))
    ax = figure.axes[0]
    assert ax.get_yscale() == "log" and [t.get_text() for t in ax.get_xticklabels()] == ["W4A4", "W3A4"]
    assert [len(points.get_offsets()) for points in ax.collections] == [4, 4]
    assert [line.get_ydata()[0] for line in ax.lines] == pytest.approx([0.2, 0.2, 0.3, 0.3])


def test_layers_stand_in_order():
    table = pd.DataFrame([{"layer": f"blocks.{i}.{k}", "images": images, "Aqer": 10.0 * i}
                          for i in range(3) for k in ("qkv", "fc1") for images in ("calibration", "held out")])
    ax = plots.layer_reductions(table, {"Aqer": "a"}).axes[0]
    assert ax.collections[0].get_offsets().data.tolist() == [[0, 0], [2, 10], [4, 20]]
    assert [t.get_text() for t in ax.figure.legends[0].get_texts()] == ["qkv", "fc1"]


def test_distributions_and_proxy_have_a_panel_a_layer():
    rows = [{"layer": f"blocks.{i}.qkv", "input_density": [0.1, 0.3, 0.1], "output_density": [0.2, 0.2, 0.2]}
            for i in range(2)]
    assert [ax.get_title() for ax in plots.distributions(rows, 4.0).axes] == ["0.qkv", "1.qkv"]
    rows = [{"layer": "blocks.0.qkv", "rule": rule, "proxy": [1.0, 2.0], "true": [1.5, 0.0]}
            for rule in ("nearest", "exact_gain")]
    ax = plots.proxy(rows).axes[0]
    assert ax.get_xscale() == ax.get_yscale() == "log" and list(ax.lines[0].get_xdata()) == [1.0, 2.0]


def test_lines_are_means_over_draws():
    table = pd.DataFrame({"method": ["ERQ"] * 4, "images": [4, 4, 8, 8], "top1": [1.0, 3.0, 5.0, 7.0]})
    ax = plots.lines(table, "images", "images", {"top1": "top-1"}).axes[0]
    assert list(ax.lines[0].get_ydata()) == [2, 6] and ax.get_xscale() == "log"
    table = pd.DataFrame({"n": [8, 8, 12], "method": "program", "ratio": [1.0, 3.0, 1.0], "seconds": [0.1, 0.3, 1.0]})
    left, right = plots.program(table).axes
    assert list(left.lines[0].get_ydata()) == [2, 1] and right.get_yscale() == "log"


def test_differences_have_a_line_where_there_is_none():
    table = pd.DataFrame({"setting": ["a", "a", "b"], "ratio": [1.1, 1.3, 0.9]})
    ax = plots.differences(table, "ratio", "ratio", 1.0).axes[0]
    assert [t.get_text() for t in ax.get_yticklabels()] == ["a", "b"]
    assert [line.get_xdata()[0] for line in ax.lines] == pytest.approx([1.2, 0.9, 1.0])
