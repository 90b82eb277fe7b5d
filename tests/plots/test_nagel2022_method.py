"""Figures of the method notebook: they draw the data that they are given."""

import pytest
import torch

from vitq.papers.nagel2022 import toy_regression
from vitq.plots import nagel2022_method as plots


def test_one_panel_an_estimator_with_target_and_threshold():
    runs = {n: toy_regression(iterations=30, estimator=n.lower(), strength=0.2) for n in ("STE", "EWGS", "DSQ")}
    axes = plots.estimators(runs, 0.7).axes
    assert [ax.get_title() for ax in axes] == list(runs)
    for ax, run in zip(axes, runs.values(), strict=True):
        drawn = {line.get_label(): line.get_ydata() for line in ax.lines}
        assert list(drawn["latent $w$"]) == run.latent.tolist()
        assert list(drawn["quantized $q(w)$"]) == run.quantized.tolist()
        assert set(drawn["threshold"]) == {0.7}


def test_animation_has_a_bar_for_each_gradient():
    run = toy_regression(iterations=12)
    bars = plots.animation(run, 0.7).axes[1].patches
    assert [bar.get_height() for bar in bars] == run.gradient.tolist()
    assert len({bar.get_facecolor() for bar in bars}) == 2


def test_range_search_marks_the_smallest_error():
    thresholds, errors = torch.tensor([1.0, 2.0, 3.0]), torch.tensor([0.3, 0.1, 0.2])
    ax = plots.range_search({"layer": (thresholds, errors)}).axes[0]
    assert [float(v[0]) for v in ax.lines[1].get_data()] == pytest.approx([2.0, 0.1])


def test_schedule_is_drawn_only_where_freezing_is_on():
    t = torch.linspace(0.1, 1, 10)
    right = plots.schedules(t, t, torch.where(t < 0.35, 0.0, 0.05)).axes[1]
    assert min(right.lines[0].get_xdata()) == pytest.approx(0.4)
    assert "off" in [text.get_text() for text in right.get_legend().get_texts()]


def test_trace_marks_the_moment_of_freezing():
    codes, zeros = torch.tensor([10, 11, 10, 11, 11]), torch.zeros(5)
    for ax in plots.freezing_trace(codes, codes.float(), zeros, zeros + 0.1, 3).axes:
        assert "frozen at step 3" in [text.get_text() for text in ax.get_legend().get_texts()]
