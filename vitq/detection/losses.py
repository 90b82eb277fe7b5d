r"""Losses of Mask R-CNN and Cascade Mask R-CNN, as MMDetection 2.11 computes them.

Proposals: binary cross-entropy of 256 sampled anchors an image (half of them positive at most; IoU above .7, or the
best of an object from .3 on, against below .3), and the L1 distance of the positives' deltas, both over the number of
samples. Cascade: smooth L1 with :math:`\beta = 1/9`, and anchors that leave the image are not looked at.

Heads: 512 sampled boxes an image (``samples`` of the configuration), a quarter positive at most; cross-entropy; for
the box L1 of the deltas, or in Cascade 10 GIoU of the decoded box, summed over the positives and divided by *all*
samples; binary cross-entropy of the own class's mask. Cascade's stages have IoU thresholds .5, .6, .7 and weights 1,
.5, .25; the boxes of a stage are the moved boxes of the one before without the objects' own.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import box_iou, generalized_box_iou_loss, roi_align

from vitq.detection.anchors import STRIDES
from vitq.detection.assign import Sampled, assign, choose, sample_regions
from vitq.detection.boxes import decode, encode
from vitq.detection.heads import MASK_SIZE, select_deltas
from vitq.detection.images import DIVISOR
from vitq.detection.roi import STDS
from vitq.detection.targets import Target, Targets

STAGE_IOU, STAGE_WEIGHT = (0.5, 0.6, 0.7), (1.0, 0.5, 0.25)
GIOU_WEIGHT = 10.0


class DetectionLoss(nn.Module):
    """Sum of all losses, called as ``loss(maps, targets)`` with what the detector gives in training mode.

    Args:
        detector: The network whose heads are trained too.
    """

    def __init__(self, detector: nn.Module) -> None:
        super().__init__()
        self.detector = detector
        self.cascade = detector.config.cascade

    def forward(self, maps: tuple[Tensor, ...], targets: Targets) -> Tensor:
        return sum(self.parts(maps, targets).values())

    def parts(self, maps: tuple[Tensor, ...], targets: Targets) -> dict[str, Tensor]:
        """The losses by name, weighted: ``rpn_class``, ``rpn_box``, ``class_0``, ``box_0``, ``mask_0`` and so on."""
        rpn = self.detector.rpn
        logits, deltas = rpn(maps)
        anchors, sizes = rpn.anchors(maps), [target.size for target in targets]
        found = self.proposal_losses(logits, deltas, anchors, maps, targets)
        keep = 2000 if self.cascade else 1000
        proposals = rpn.propose([x.detach() for x in logits], [x.detach() for x in deltas], anchors, sizes,
                                self.detector.config.candidates, keep)
        boxes = [own[:, :4] for own in proposals]
        for stage in range(len(self.detector.roi.box_heads)):
            boxes, losses = self._stage(maps, stage, boxes, targets, sizes)
            weight = STAGE_WEIGHT[stage] if self.cascade else 1.0
            found |= {f"{name}_{stage}": weight * value for name, value in losses.items()}
        return found

    def proposal_losses(self, logits: list[Tensor], deltas: list[Tensor], anchors: list[Tensor],
                        maps: tuple[Tensor, ...], targets: Targets) -> dict[str, Tensor]:
        """``rpn_class`` and ``rpn_box`` from what the proposal network gives for every anchor."""
        every, logits, deltas = torch.cat(anchors), torch.cat(logits, 1).float(), torch.cat(deltas, 1).float()
        class_sum, box_sum, count = logits.sum() * 0, deltas.sum() * 0, 0
        for logit, delta, target in zip(logits, deltas, targets, strict=True):
            usable = usable_anchors(anchors, maps, target.size, self.cascade).nonzero()[:, 0]
            assigned = assign(box_iou(every[usable], target.boxes), 0.7, 0.3, 0.3, True)
            positives, negatives = choose(assigned, 256, 0.5)
            rows = usable[torch.cat([positives, negatives])]
            truth = torch.zeros_like(logit[rows])
            truth[: len(positives)] = 1
            class_sum = class_sum + F.binary_cross_entropy_with_logits(logit[rows], truth, reduction="sum")
            own = usable[positives]
            aim = encode(every[own], target.boxes[assigned[positives] - 1])
            box_sum = box_sum + (F.smooth_l1_loss(delta[own], aim, reduction="sum", beta=1 / 9) if self.cascade
                                 else F.l1_loss(delta[own], aim, reduction="sum"))
            count += len(rows)
        return {"rpn_class": class_sum / max(count, 1), "rpn_box": box_sum / max(count, 1)}

    def _stage(self, maps: tuple[Tensor, ...], stage: int, boxes: list[Tensor], targets: Targets,
               sizes: list[tuple[int, int]]) -> tuple[list[Tensor], dict[str, Tensor]]:
        """The boxes for the next stage and the losses of this one."""
        roi, classes = self.detector.roi, self.detector.config.classes
        sampled = [sample_regions(own, target.boxes, target.labels, classes, STAGE_IOU[stage], not self.cascade,
                                  self.detector.config.samples)
                   for own, target in zip(boxes, targets, strict=True)]
        logits, deltas = roi.boxes(maps, stage, [s.boxes for s in sampled])
        labels = torch.cat([s.labels for s in sampled])
        losses = {"class": F.cross_entropy(logits, labels),
                  "box": box_loss(deltas, sampled, targets, stage, self.cascade),
                  "mask": self._mask_loss(maps, stage, sampled, targets)}
        if stage + 1 == len(roi.box_heads):
            return [], losses
        with torch.no_grad():
            classes_now = torch.where(labels == classes, logits[:, :-1].argmax(1), labels)
            moved = roi.refine([s.boxes for s in sampled], logits, deltas, stage, sizes, classes_now)
        return [own[~s.given] for own, s in zip(moved, sampled, strict=True)], losses

    def _mask_loss(self, maps: tuple[Tensor, ...], stage: int, sampled: list[Sampled], targets: Targets) -> Tensor:
        boxes = [s.boxes[: s.positives] for s in sampled]
        logits = self.detector.roi.masks(maps, stage, boxes)
        if not len(logits):
            return logits.sum()
        labels = torch.cat([s.labels[: s.positives] for s in sampled])
        truth = torch.cat([mask_targets(t.masks, s.objects, b) for t, s, b in zip(targets, sampled, boxes,
                                                                                 strict=True)])
        own = logits[torch.arange(len(labels), device=labels.device), labels]
        return F.binary_cross_entropy_with_logits(own, truth)


def usable_anchors(anchors: list[Tensor], maps: tuple[Tensor, ...], size: tuple[int, int], inside: bool) -> Tensor:
    """Which anchors, of all levels, an image is trained on: those of its own cells or, if ``inside``, in it wholly."""
    flags = []
    for own, level, stride in zip(anchors, maps, STRIDES, strict=True):
        rows, columns = (-(-(side + -side % DIVISOR) // stride) for side in size)
        mine = torch.zeros(level.shape[-2:], dtype=torch.bool, device=own.device)
        mine[:rows, :columns] = True
        flags.append(mine.flatten().repeat_interleave(len(own) // mine.numel()))
    found = torch.cat(flags)
    if inside:
        every = torch.cat(anchors)
        found = found & (every[:, :2] >= 0).all(1) & (every[:, 2] < size[1]) & (every[:, 3] < size[0])
    return found


def box_loss(deltas: Tensor, sampled: list[Sampled], targets: list[Target], stage: int, decoded: bool) -> Tensor:
    """L1 of the deltas, or 10 GIoU of the boxes they give, over the positives, divided by the number of samples."""
    counts = [len(s.boxes) for s in sampled]
    total = deltas.sum() * 0
    for delta, own, target in zip(deltas.split(counts), sampled, targets, strict=True):
        moves = select_deltas(delta[: own.positives], own.labels[: own.positives])
        boxes, aims = own.boxes[: own.positives], target.boxes[own.objects]
        if decoded:
            moved = decode(boxes, moves, STDS[stage])
            total = total + GIOU_WEIGHT * generalized_box_iou_loss(moved, aims, reduction="sum")
        else:
            total = total + F.l1_loss(moves, encode(boxes, aims, STDS[stage]), reduction="sum")
    return total / sum(counts)


def mask_targets(masks: Tensor, objects: Tensor, boxes: Tensor) -> Tensor:
    """The part of each object's mask (n, H, W) inside its box, sampled to 28 x 28 and cut at one half, float."""
    rois = torch.cat([objects[:, None].to(boxes), boxes], 1)
    pooled = roi_align(masks[:, None].to(boxes), rois, MASK_SIZE, 1.0, 0, True)[:, 0]
    return (pooled >= 0.5).to(boxes)
