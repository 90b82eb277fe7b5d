"""The whole detector."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torchvision.ops import FeaturePyramidNetwork
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool

from vitq.detection.backbone import SwinBackbone
from vitq.detection.config import DetectorConfig, config_of
from vitq.detection.images import ImageBatch
from vitq.detection.masks import encode_masks, paste_masks
from vitq.detection.roi import RegionHeads
from vitq.detection.rpn import RegionProposals


@dataclass
class Detections:
    """What was found in one image, by falling score.

    Attributes:
        boxes: (n, 4), x1, y1, x2, y2 in pixels of the original image.
        scores: (n,).
        labels: (n,), classes from 0.
        probabilities: (n, 28, 28), of the mask inside each box.
        size: Height and width of the original image.
    """

    boxes: Tensor
    scores: Tensor
    labels: Tensor
    probabilities: Tensor
    size: tuple[int, int]

    def __len__(self) -> int:
        return len(self.boxes)

    def masks(self) -> Tensor:
        """Boolean masks (n, H, W) of the original image."""
        return paste_masks(self.probabilities, self.boxes, self.size)

    def encoded_masks(self) -> list[dict]:
        """The masks in COCO's run-length encoding."""
        return encode_masks(self.masks())


class Detector(nn.Module):
    """Mask R-CNN or Cascade Mask R-CNN on Swin with the semantics of MMDetection 2.11.

    In evaluation mode the forward pass takes an :class:`~vitq.detection.images.ImageBatch`, or images (B, 3, H, W) that
    fill their frame, and gives one :class:`Detections` an image. In training mode it gives the pyramid (P2 to P6) for
    :class:`~vitq.detection.losses.DetectionLoss`.

    Padding changes the result of a batch's smaller images, as in MMDetection: evaluate them one by one.

    Args:
        config: Structure, or the name of a published model.
    """

    def __init__(self, config: DetectorConfig | str) -> None:
        super().__init__()
        self.config = config = config_of(config)
        self.backbone = SwinBackbone(config)
        self.neck = FeaturePyramidNetwork(self.backbone.widths, config.channels, LastLevelMaxPool())
        self.rpn = RegionProposals(config)
        self.roi = RegionHeads(config)

    def features(self, images: Tensor) -> tuple[Tensor, ...]:
        """Pyramid P2 to P6 at strides 4 to 64, (B, channels, H', W') each, of images (B, 3, H, W)."""
        maps = self.backbone(images)
        return tuple(self.neck({str(number): level for number, level in enumerate(maps)}).values())

    def forward(self, batch: ImageBatch | Tensor) -> list[Detections] | tuple[Tensor, ...]:
        if self.training:
            return self.features(batch)
        batch = batch if isinstance(batch, ImageBatch) else ImageBatch.of(batch)
        return self.detect(self.features(batch.images), batch)

    def propose(self, maps: tuple[Tensor, ...], sizes: list[tuple[int, int]]) -> list[Tensor]:
        """Proposals (n, 5) of each image: boxes in the network's pixels and scores."""
        return self.rpn.propose(*self.rpn(maps), self.rpn.anchors(maps), sizes)

    @torch.no_grad()
    def detect(self, maps: tuple[Tensor, ...], batch: ImageBatch) -> list[Detections]:
        """Detections from the pyramid.

        Args:
            maps: From :meth:`features`.
            batch: For the sizes and scales of the images.
        """
        proposals = [own[:, :4] for own in self.propose(maps, batch.sizes)]
        found = self.roi.detect_boxes(maps, proposals, batch.sizes, batch.scales)
        masks = self.roi.detect_masks(maps, [boxes for boxes, _, _ in found], [labels for _, _, labels in found],
                                      batch.scales)
        return [Detections(*own, mask, size) for own, mask, size in zip(found, masks, batch.originals, strict=True)]
