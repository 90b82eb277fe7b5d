"""Box heads and mask heads, from torchvision's parts, with the background as the last class."""

import torch
from torch import Tensor, nn
from torchvision.models.detection.faster_rcnn import FastRCNNConvFCHead, TwoMLPHead
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.models.detection.rpn import RPNHead

from vitq.detection.config import DetectorConfig

BOX_BINS, MASK_BINS, MASK_SIZE = 7, 14, 28


class BoxHead(nn.Module):
    """Regions (K, C, 7, 7) to logits (K, classes + 1), background last, and deltas (K, 4 classes), class by class.

    Mask R-CNN: two linear layers. Cascade: four convolutions with batch norm, then one linear layer.

    Args:
        config: Structure.
    """

    def __init__(self, config: DetectorConfig) -> None:
        super().__init__()
        if config.cascade:
            self.trunk = FastRCNNConvFCHead((config.channels, BOX_BINS, BOX_BINS), [config.channels] * 4,
                                            [config.hidden], nn.BatchNorm2d)
        else:
            self.trunk = TwoMLPHead(config.channels * BOX_BINS**2, config.hidden)
        self.logits = nn.Linear(config.hidden, config.classes + 1)
        self.deltas = nn.Linear(config.hidden, config.classes * 4)
        for layer, std in ((self.logits, 0.01), (self.deltas, 0.001)):
            nn.init.normal_(layer.weight, std=std)
            nn.init.zeros_(layer.bias)

    def forward(self, regions: Tensor) -> tuple[Tensor, Tensor]:
        hidden = self.trunk(regions)
        return self.logits(hidden), self.deltas(hidden)


class MaskHead(nn.Module):
    """Regions (K, C, 14, 14) to mask logits (K, classes, 28, 28): convolutions, a transposed one, a 1 x 1 one.

    Args:
        config: Structure.
    """

    def __init__(self, config: DetectorConfig) -> None:
        super().__init__()
        self.trunk = MaskRCNNHeads(config.channels, [config.channels] * config.mask_convs, 1)
        self.predictor = MaskRCNNPredictor(config.channels, config.channels, config.classes)

    def forward(self, regions: Tensor) -> Tensor:
        return self.predictor(self.trunk(regions))


def select_deltas(deltas: Tensor, labels: Tensor) -> Tensor:
    """The deltas (K, 4) of one class each, from (K, 4 classes) and labels (K,)."""
    return deltas.unflatten(1, (-1, 4))[torch.arange(len(deltas), device=deltas.device), labels]


__all__ = ["BOX_BINS", "MASK_BINS", "MASK_SIZE", "BoxHead", "MaskHead", "RPNHead", "select_deltas"]
