"""From proposals to detections: Mask R-CNN's one head of each kind, or Cascade's three."""

import torch
from torch import Tensor, nn

from vitq.detection.boxes import decode, multiclass_nms
from vitq.detection.config import DetectorConfig
from vitq.detection.heads import BOX_BINS, MASK_BINS, BoxHead, MaskHead, select_deltas
from vitq.detection.pooling import as_rois, pool

STDS = ((0.1, 0.1, 0.2, 0.2), (0.05, 0.05, 0.1, 0.1), (0.033, 0.033, 0.067, 0.067))  # of the deltas, by stage
IOU = 0.5


class RegionHeads(nn.Module):
    """Box and mask heads.

    Cascade moves each proposal by the best foreground class's delta after each stage but the last; the class logits of
    the three stages are averaged *before* the softmax, the three mask heads' sigmoids after it.

    Args:
        config: Structure.
    """

    def __init__(self, config: DetectorConfig) -> None:
        super().__init__()
        self.box_heads = nn.ModuleList(BoxHead(config) for _ in range(config.stages))
        self.mask_heads = nn.ModuleList(MaskHead(config) for _ in range(config.stages))
        self.score_threshold, self.limit = config.score_threshold, config.detections

    def boxes(self, maps: tuple[Tensor, ...], stage: int, boxes: list[Tensor]) -> tuple[Tensor, Tensor]:
        """Logits (K, classes + 1) and deltas (K, 4 classes) of the boxes (n_i, 4) of each image."""
        logits, deltas = self.box_heads[stage](pool(maps, as_rois(boxes), BOX_BINS))
        return logits.float(), deltas.float()

    def masks(self, maps: tuple[Tensor, ...], stage: int, boxes: list[Tensor]) -> Tensor:
        """Mask logits (K, classes, 28, 28) of the boxes (n_i, 4) of each image."""
        return self.mask_heads[stage](pool(maps, as_rois(boxes), MASK_BINS)).float()

    def refine(self, boxes: list[Tensor], logits: Tensor, deltas: Tensor, stage: int,
               sizes: list[tuple[int, int]], labels: Tensor | None = None) -> list[Tensor]:
        """Boxes moved by the delta of their class, by default the foreground class of the largest logit."""
        labels = logits[:, :-1].argmax(1) if labels is None else labels
        own = select_deltas(deltas, labels).split([len(b) for b in boxes])
        return [decode(b[:, :4], d, STDS[stage], size) for b, d, size in zip(boxes, own, sizes, strict=True)]

    def detect_boxes(self, maps: tuple[Tensor, ...], boxes: list[Tensor], sizes: list[tuple[int, int]],
                     scales: Tensor) -> list[tuple[Tensor, Tensor, Tensor]]:
        """Boxes in the pixels of the original image, scores and classes, for each image.

        Args:
            maps: Pyramid.
            boxes: Proposals of each image.
            sizes: Height and width of each image without padding.
            scales: (B, 4), size of the network's image over the original's; boxes are divided before suppression.
        """
        all_logits = []
        for stage in range(len(self.box_heads)):
            logits, deltas = self.boxes(maps, stage, boxes)
            all_logits.append(logits)
            if stage + 1 < len(self.box_heads):
                boxes = self.refine(boxes, logits, deltas, stage, sizes)
        counts = [len(b) for b in boxes]
        scores = (sum(all_logits) / len(all_logits)).softmax(1).split(counts)
        found = []
        for own, score, delta, size, scale in zip(boxes, scores, deltas.split(counts), sizes, scales, strict=True):
            moved = decode(own[:, :4], delta, STDS[stage], size)
            moved = (moved.unflatten(1, (-1, 4)) / scale).flatten(1)
            found.append(multiclass_nms(moved, score, self.score_threshold, IOU, self.limit))
        return found

    def detect_masks(self, maps: tuple[Tensor, ...], boxes: list[Tensor], labels: list[Tensor],
                     scales: Tensor) -> list[Tensor]:
        """Mask probabilities (n_i, 28, 28) of the final boxes (n_i, 4), which are in the original's pixels."""
        counts = [len(b) for b in boxes]
        if not sum(counts):
            return [maps[0].new_zeros(0, 28, 28) for _ in boxes]
        rois = [b * scale for b, scale in zip(boxes, scales, strict=True)]
        classes = torch.cat(labels)
        rows = torch.arange(len(classes), device=classes.device)
        heads = [self.masks(maps, stage, rois)[rows, classes].sigmoid() for stage in range(len(self.mask_heads))]
        return list((sum(heads) / len(heads)).split(counts))
