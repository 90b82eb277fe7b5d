"""Region proposals: one head on five levels, the best of each level, suppression inside levels."""

import torch
from torch import Tensor, nn

from vitq.detection.anchors import all_anchors
from vitq.detection.boxes import batched_nms, decode
from vitq.detection.config import DetectorConfig
from vitq.detection.heads import RPNHead

IOU = 0.7


class RegionProposals(nn.Module):
    """The region proposal network of MMDetection 2.11.

    Scores are sigmoids; the best ``before`` of each level are decoded, clipped to the image without its padding, and
    suppressed inside their level. Boxes that clipping left without area stay: 2.11 drops none, later releases do.

    Args:
        config: Structure.
    """

    def __init__(self, config: DetectorConfig) -> None:
        super().__init__()
        self.head = RPNHead(config.channels, 3)
        self.anchor_scale, self.count = config.anchor_scale, config.proposals

    def forward(self, maps: tuple[Tensor, ...]) -> tuple[list[Tensor], list[Tensor]]:
        """Logits (B, n) and deltas (B, n, 4) of each level, in the order of the anchors."""
        logits, deltas = self.head(list(maps))
        return ([level.permute(0, 2, 3, 1).flatten(1) for level in logits],
                [level.permute(0, 2, 3, 1).reshape(len(level), -1, 4) for level in deltas])

    def anchors(self, maps: tuple[Tensor, ...]) -> list[Tensor]:
        """Anchors (n, 4) of each level."""
        return all_anchors(list(maps), self.anchor_scale)

    @torch.no_grad()
    def propose(self, logits: list[Tensor], deltas: list[Tensor], anchors: list[Tensor], sizes: list[tuple[int, int]],
                before: int = 1000, after: int | None = None) -> list[Tensor]:
        """Proposals (n, 5) of each image, boxes and scores, by falling score.

        Args:
            logits: From :meth:`forward`.
            deltas: From :meth:`forward`.
            anchors: From :meth:`anchors`.
            sizes: Height and width of each image without padding.
            before: Most boxes of a level that go into suppression.
            after: Most proposals of an image; by default as configured.
        """
        after = self.count if after is None else after
        return [self._propose([level[index] for level in logits], [level[index] for level in deltas], anchors, size,
                              before, after) for index, size in enumerate(sizes)]

    def _propose(self, logits: list[Tensor], deltas: list[Tensor], anchors: list[Tensor], size: tuple[int, int],
                 before: int, after: int) -> Tensor:
        boxes, scores, levels = [], [], []
        for number, (logit, delta, own) in enumerate(zip(logits, deltas, anchors, strict=True)):
            score = logit.float().sigmoid()
            if len(score) > before:
                score, rows = score.sort(descending=True, stable=True)
                score, rows = score[:before], rows[:before]
                delta, own = delta[rows], own[rows]
            boxes.append(decode(own, delta.float(), size=size))
            scores.append(score)
            levels.append(torch.full_like(score, number, dtype=torch.long))
        boxes, scores, levels = torch.cat(boxes), torch.cat(scores), torch.cat(levels)
        kept = batched_nms(boxes, scores, levels, IOU)[:after]
        return torch.cat([boxes[kept], scores[kept, None]], 1)
