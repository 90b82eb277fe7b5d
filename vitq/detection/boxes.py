r"""Boxes (x1, y1, x2, y2) in pixels: the delta coding of the R-CNN family, clipping, suppression.

A delta moves a box of centre (p_x, p_y) and sides (p_w, p_h), all of continuous coordinates (no + 1):

.. math:: g_x = p_x + p_w d_x, \quad g_w = p_w e^{d_w}, \qquad |d_w| \le \log(1000/16) .
"""

import math

import torch
from torch import Tensor
from torchvision.ops import nms

LARGEST = math.log(1000 / 16)  # of |dw| and |dh|, on both sides
LOOP_ABOVE = 10_000  # boxes; more are suppressed class by class


def decode(boxes: Tensor, deltas: Tensor, stds: tuple[float, ...] = (1, 1, 1, 1),
           size: tuple[int, int] | None = None) -> Tensor:
    """Boxes moved by their deltas.

    Args:
        boxes: (N, 4).
        deltas: (N, 4 k): k moves of each box.
        stds: The deltas are multiplied by these.
        size: Height and width to clip to, if any.

    Returns:
        (N, 4 k).
    """
    deltas = deltas.unflatten(-1, (-1, 4)) * deltas.new_tensor(stds)  # (N, k, 4)
    low, high = boxes[:, None, :2], boxes[:, None, 2:]
    centre, sides = (low + high) * 0.5, high - low  # (N, 1, 2)
    centre = centre + sides * deltas[..., :2]
    sides = sides * deltas[..., 2:].clamp(-LARGEST, LARGEST).exp()
    moved = torch.cat([centre - sides * 0.5, centre + sides * 0.5], -1)
    return (moved if size is None else clip(moved, size)).flatten(1)


def encode(boxes: Tensor, targets: Tensor, stds: tuple[float, ...] = (1, 1, 1, 1)) -> Tensor:
    """Deltas (N, 4) that move ``boxes`` (N, 4) to ``targets`` (N, 4); the inverse of :func:`decode`."""
    centre, sides = (boxes[:, :2] + boxes[:, 2:]) * 0.5, boxes[:, 2:] - boxes[:, :2]
    aim, lengths = (targets[:, :2] + targets[:, 2:]) * 0.5, targets[:, 2:] - targets[:, :2]
    deltas = torch.cat([(aim - centre) / sides, (lengths / sides).log()], -1)
    return deltas / deltas.new_tensor(stds)


def clip(boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """Boxes (..., 4) inside an image of this height and width; borders are 0 and the side itself."""
    height, width = size
    return torch.stack([boxes[..., 0].clamp(0, width), boxes[..., 1].clamp(0, height),
                        boxes[..., 2].clamp(0, width), boxes[..., 3].clamp(0, height)], -1)


def batched_nms(boxes: Tensor, scores: Tensor, groups: Tensor, threshold: float) -> Tensor:
    """Rows that survive suppression inside each group, by falling score.

    Groups are moved apart by the largest coordinate + 1 and suppressed together, or one by one above ``LOOP_ABOVE``
    boxes. A box without area has no overlap and survives.

    Args:
        boxes: (N, 4).
        scores: (N,).
        groups: (N,), int64: level or class.
        threshold: A box goes if its IoU with a better one is above this.
    """
    if not len(boxes):
        return groups.new_zeros(0)
    apart = boxes + (groups.to(boxes) * (boxes.max() + 1))[:, None]
    if len(boxes) < LOOP_ABOVE:
        return nms(apart, scores, threshold)
    kept = []
    for group in groups.unique():
        rows = (groups == group).nonzero()[:, 0]
        kept.append(rows[nms(apart[rows], scores[rows], threshold)])
    kept = torch.cat(kept).sort().values
    return kept[scores[kept].argsort(descending=True)]


def multiclass_nms(boxes: Tensor, scores: Tensor, score_threshold: float, iou_threshold: float,
                   limit: int) -> tuple[Tensor, Tensor, Tensor]:
    """The best detections of an image.

    Args:
        boxes: (N, 4 classes), in the pixels of the original image.
        scores: (N, classes + 1), probabilities with the background last.
        score_threshold: A score must be above it.
        iou_threshold: Of the suppression inside a class.
        limit: Most detections.

    Returns:
        Boxes (n, 4), scores (n,) and classes (n,) by falling score.
    """
    classes = scores.shape[1] - 1
    boxes = boxes.unflatten(1, (classes, 4)).flatten(0, 1)  # (N classes, 4)
    flat = scores[:, :-1].flatten()
    rows = (flat > score_threshold).nonzero()[:, 0]
    labels = rows % classes
    kept = batched_nms(boxes[rows], flat[rows], labels, iou_threshold)[:limit]
    return boxes[rows[kept]], flat[rows[kept]], labels[kept]
