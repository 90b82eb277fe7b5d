"""Figures of the detection study: every draw is shown, and pictures show what was found from the threshold on."""

import pandas as pd
import pytest
from matplotlib.patches import Rectangle

from vitq.detection import make_shapes
from vitq.plots import erq2024_coco as figures

pytest.importorskip("cv2"), pytest.importorskip("pycocotools")
DETECTORS = ("mask_rcnn_swin_micro", "cascade_mask_rcnn_swin_micro")


def table():
    rows = [{"detector": d, "bits": "FP32", "method": "FP32", "setting": "", "box_ap": 90.0} for d in DETECTORS]
    rows += [{"detector": d, "bits": bits, "method": method, "setting": setting, "box_ap": 80.0 + draw}
             for d in DETECTORS for bits in ("W4A4", "W6A6") for method in ("RepQ-ViT", "ERQ") for draw in range(3)
             for setting in ("", "one image")]
    return pd.DataFrame(rows)


def points(figure):
    return sum(len(own.get_offsets()) for ax in figure.axes for own in ax.collections)


def test_every_draw_is_a_marker():
    whole = table()[table().setting == ""]
    figure = figures.precision(whole, {"box_ap": "box AP (%)"})
    assert points(figure) == 2 * 2 * 2 * 3 and [ax.get_title() for ax in figure.axes] == ["Mask R-CNN", "Cascade"]
    assert all(ax.lines[0].get_ydata()[0] == 90.0 for ax in figure.axes)


def test_settings_stand_in_the_order_given():
    own = table()[(table().detector == DETECTORS[0]) & table().bits.isin(["W4A4", "FP32"])]
    figure = figures.settings(own, ["one image", ""], "box AP (%)")
    assert points(figure) == 2 * 2 * 3
    assert [text.get_text() for text in figure.axes[0].get_xticklabels()] == ["one image", ""]


def test_pictures_show_detections_from_the_threshold_on(tmp_path):
    test = make_shapes(tmp_path, 2, seed=3, size=64)
    marked = test.coco.imgToAnns[1]
    scores = [0.9, 0.4, *[0.2] * len(marked)]
    results = [{**entry, "score": score} for entry, score in zip(marked, scores, strict=False)]
    figure = figures.pictures(test, {"ERQ": results}, [1, 2])
    boxes = [sum(isinstance(own, Rectangle) for own in ax.patches) for ax in figure.axes]
    assert boxes == [len(marked), 1, len(test.coco.imgToAnns[2]), 0]
    assert [ax.get_title() for ax in figure.axes[:2]] == ["marked", "ERQ"]
