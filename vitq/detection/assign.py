"""Which object a box answers for, and which boxes a loss looks at."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torchvision.ops import box_iou

IGNORED, BACKGROUND = -1, 0  # an object number i is i + 1


def assign(overlaps: Tensor, positive: float, negative: float, least: float, low_quality: bool) -> Tensor:
    """Object number + 1 of each box, 0 for background, -1 for none of both, int64 (N,).

    A box takes the object with the largest IoU from ``positive`` on, and is background below ``negative``. With
    ``low_quality`` all boxes that have an object's best IoU take that object, if it is ``least`` or more; of several
    such objects the last, whatever the box had before.

    Args:
        overlaps: IoU, (N, objects).
        positive: Threshold.
        negative: Threshold.
        least: Of the best IoU of an object.
        low_quality: Give every object its best boxes.
    """
    count, objects = overlaps.shape
    if not objects:
        return overlaps.new_full((count,), BACKGROUND, dtype=torch.long)
    largest, which = overlaps.max(1)
    found = torch.full_like(which, IGNORED)
    found[largest < negative] = BACKGROUND
    found = torch.where(largest >= positive, which + 1, found)
    if low_quality:
        best = overlaps.amax(0)
        takes = (overlaps == best) & (best >= least)  # (N, objects)
        last = (takes * torch.arange(1, objects + 1, device=overlaps.device)).amax(1)
        found = torch.where(last > 0, last, found)
    return found


def choose(assigned: Tensor, count: int, share: float) -> tuple[Tensor, Tensor]:
    """Rows of at most ``share * count`` positives, and of negatives up to ``count`` in all, drawn at random."""
    positives, negatives = (assigned > 0).nonzero()[:, 0], (assigned == BACKGROUND).nonzero()[:, 0]
    positives = _draw(positives, int(count * share))
    return positives, _draw(negatives, count - len(positives))


def _draw(rows: Tensor, count: int) -> Tensor:
    return rows if len(rows) <= count else rows[torch.randperm(len(rows), device=rows.device)[:count]]


@dataclass
class Sampled:
    """Boxes of one image that a head is trained on, positives first.

    Attributes:
        boxes: (n, 4).
        positives: Number of them that belong to an object.
        objects: (positives,), which.
        labels: (n,), classes, the background last.
        given: (n,), whether the box is an object's own, not a proposal.
    """

    boxes: Tensor
    positives: int
    objects: Tensor
    labels: Tensor
    given: Tensor


def sample_regions(proposals: Tensor, boxes: Tensor, labels: Tensor, classes: int, iou: float, low_quality: bool,
                   count: int = 512, share: float = 0.25) -> Sampled:
    """Proposals and the objects' own boxes, assigned at one IoU threshold and sampled.

    Args:
        proposals: (n, 4).
        boxes: Of the objects, (g, 4).
        labels: Of the objects, (g,).
        classes: Number of classes, and label of the background.
        iou: Threshold of positives and negatives.
        low_quality: See :func:`assign`.
        count: Boxes.
        share: Of positives, at most.
    """
    assigned = assign(box_iou(proposals, boxes), iou, iou, iou, low_quality)
    own = torch.arange(1, len(boxes) + 1, device=boxes.device)
    every, assigned = torch.cat([boxes, proposals]), torch.cat([own, assigned])
    positives, negatives = choose(assigned, count, share)
    rows, objects = torch.cat([positives, negatives]), assigned[positives] - 1
    marks = torch.cat([labels[objects], labels.new_full((len(negatives),), classes)])
    return Sampled(every[rows], len(positives), objects, marks, rows < len(boxes))
