"""Figures of the detection study of ERQ 2024."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from vitq.plots import MARKERS, grid
from vitq.plots.erq2024_small import METHODS, PALETTE

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from vitq.detection.coco import CocoSet

NAMES = {"mask_rcnn_swin_micro": "Mask R-CNN", "cascade_mask_rcnn_swin_micro": "Cascade"}
CLASS_COLORS = ("#0173b2", "#de8f05", "#029e73", "#cc78bc")
LEVELS = 12  # of a channel, for pictures that compress
MARKS = dict(zip(METHODS, MARKERS, strict=True))
SHOWN = 0.5  # score from which a detection is drawn


def precision(table: pd.DataFrame, columns: dict[str, str]) -> "Figure":
    """A row of panels a detector, a panel a metric: bits on the x axis, one marker a draw, by method.

    Args:
        table: Columns ``detector``, ``bits``, ``method``, and the metrics; rows of ``"FP32"`` are drawn as a line.
        columns: Axis label of each metric to show.
    """
    detectors = list(dict.fromkeys(table["detector"]))
    figure, axes = grid(len(detectors), len(columns), height=2.9, squeeze=False, sharex=True)
    quantized = table[table["method"] != "FP32"]
    widths = sorted(set(quantized["bits"]), reverse=True)
    methods = [name for name in MARKS if name in set(quantized["method"])]
    for row, detector in zip(axes, detectors, strict=True):
        own = quantized[quantized["detector"] == detector]
        exact = table[(table["detector"] == detector) & (table["method"] == "FP32")]
        for ax, (column, label) in zip(row, columns.items(), strict=True):
            for value in exact[column]:
                ax.axhline(value, color="black", linestyle="--", linewidth=1, label="full precision")
            for number, method in enumerate(methods):
                part = own[own["method"] == method]
                place = part["bits"].map(widths.index) + 0.14 * (number - (len(methods) - 1) / 2)
                ax.scatter(place, part[column], color=PALETTE[method], marker=MARKS[method], s=26, alpha=0.75,
                           label=method)
            ax.set(xticks=range(len(widths)), xticklabels=widths, xlim=(-0.5, len(widths) - 0.5), ylabel=label,
                   title=NAMES.get(detector, detector))
    figure.legend(*axes[0][0].get_legend_handles_labels(), loc="outside upper center", ncols=5, fontsize=9)
    return figure


def settings(table: pd.DataFrame, order: Sequence[str], label: str, column: str = "box_ap") -> "Figure":
    """One metric by setting, a series a method, one marker a draw, a line through the means.

    Args:
        table: Columns ``setting``, ``method`` and the metric.
        order: Settings, from left to right.
        label: Of the metric's axis.
        column: The metric.
    """
    figure, ax = grid(height=3.2)
    methods = [name for name in MARKS if name in set(table["method"])]
    for number, method in enumerate(methods):
        part = table[(table["method"] == method) & table["setting"].isin(order)]
        place = part["setting"].map(list(order).index) + 0.06 * (number - (len(methods) - 1) / 2)
        mean = part.groupby(place)[column].mean()
        ax.plot(mean.index, mean, color=PALETTE[method], linewidth=1.2)
        ax.scatter(place, part[column], color=PALETTE[method], marker=MARKS[method], s=26, alpha=0.75, label=method)
    for value in table[table["method"] == "FP32"][column].unique():
        ax.axhline(value, color="black", linestyle="--", linewidth=1, label="full precision")
    ax.set(xticks=range(len(order)), xticklabels=order, ylabel=label, xlim=(-0.4, len(order) - 0.6))
    figure.legend(*ax.get_legend_handles_labels(), loc="outside upper center", ncols=5, fontsize=9)
    return figure


def pictures(test: "CocoSet", found: dict[str, list[dict[str, Any]]], ids: Sequence[int],
             threshold: float = SHOWN) -> "Figure":
    """Images in rows; what is marked, then the detections of each network: masks, boxes, class and score.

    Args:
        test: The set.
        found: Results in COCO's format of each network, by its name.
        ids: Images.
        threshold: Of the score.
    """
    columns = {"marked": None, **found}
    figure, axes = grid(len(ids), len(columns), height=7.5 / len(columns) + 0.1, squeeze=False)
    for row, number in zip(axes, ids, strict=True):
        for ax, (name, results) in zip(row, columns.items(), strict=True):
            entries = test.coco.imgToAnns[number] if results is None else [
                own for own in results if own["image_id"] == number and own["score"] >= threshold]
            _draw(ax, _calm(test.image(number)[..., ::-1]), entries, test)
            if ax in axes[0]:
                ax.set_title(name, fontsize=9)
    return figure


def _draw(ax: "Axes", image: np.ndarray, entries: list[dict[str, Any]], test: "CocoSet") -> None:
    """One panel: an entry with a score is a detection, without one it is what is marked."""
    from matplotlib.colors import to_rgb
    from matplotlib.patches import Rectangle

    image = image.astype(float) / 255
    for entry in entries:
        kind = test.categories.index(entry["category_id"])
        mask = test.coco.annToMask(entry).astype(bool)
        image[mask] = 0.35 * image[mask] + 0.65 * np.array(to_rgb(CLASS_COLORS[kind % len(CLASS_COLORS)]))
    ax.imshow(image, interpolation="nearest")
    for entry in entries:
        kind = test.categories.index(entry["category_id"])
        x, y, width, height = entry["bbox"]
        ax.add_patch(Rectangle((x - 0.5, y - 0.5), width, height, fill=False, linewidth=1,
                               edgecolor=CLASS_COLORS[kind % len(CLASS_COLORS)]))
        text = test.classes[kind][:4] + (f" {entry['score']:.2f}".replace(" 0.", " .") if "score" in entry else "")
        ax.text(x, max(y - 1, 7), text, fontsize=5.5, color="white", clip_on=True,
                bbox={"facecolor": "black", "alpha": 0.6, "pad": 0.6, "linewidth": 0})
    ax.set(xticks=[], yticks=[], xlim=(-0.5, image.shape[1] - 0.5), ylim=(image.shape[0] - 0.5, -0.5))


def _calm(image: np.ndarray) -> np.ndarray:
    """The picture without its noise and with few levels, so that its file is small; the networks see the noise."""
    from PIL import Image, ImageFilter

    calm = np.asarray(Image.fromarray(np.ascontiguousarray(image)).filter(ImageFilter.MedianFilter(7)))
    step = 256 / LEVELS
    return ((calm // step + 0.5) * step).clip(0, 255).astype(np.uint8)
