"""Features of regions: which level a region reads, and aligned RoIAlign with as many samples as it needs."""

import torch
from torch import Tensor
from torchvision.ops import roi_align

from vitq.detection.dense_pooling import dense_roi_align, suits

STRIDES = (4, 8, 16, 32)
FINEST = 56  # a region up to twice this side reads the finest level


def roi_levels(rois: Tensor, levels: int = len(STRIDES)) -> Tensor:
    r"""Level of each region, int64 (K,): :math:`\lfloor \log_2(\sqrt{wh}/56 + 10^{-6}) \rfloor`, clipped.

    Args:
        rois: (K, 5), image index and box.
        levels: Number of levels.
    """
    sides = (rois[:, 3:5] - rois[:, 1:3]).prod(1).sqrt()
    return torch.floor(torch.log2(sides / FINEST + 1e-6)).clamp(0, levels - 1).long()


def pool(maps: tuple[Tensor, ...], rois: Tensor, size: int) -> Tensor:
    """Features (K, C, size, size) of regions.

    Half a pixel is taken off the coordinates (``aligned``), and each bin is the mean of samples about a map cell apart
    (sampling ratio 0), as in MMDetection; torchvision's detectors do neither. Maps of 16 bits are sampled in float32: a
    coordinate of 1000 pixels in bfloat16 is off by up to 2.

    Args:
        maps: P2 to P5 and any after them, which are not read; (B, C, H, W) each.
        rois: (K, 5), image index and box in pixels.
        size: Bins along a side.
    """
    levels = roi_levels(rois)
    out = maps[0].new_zeros(len(rois), maps[0].shape[1], size, size)
    for number, stride in enumerate(STRIDES):
        rows = (levels == number).nonzero()[:, 0]
        if len(rows):
            level = maps[number].to(torch.promote_types(maps[number].dtype, torch.float32))
            own = rois[rows].to(level.dtype)
            pooled = (dense_roi_align(level, own, size, 1 / stride) if suits(level)
                      else roi_align(level, own, size, 1 / stride, 0, True))
            out = out.index_copy(0, rows, pooled.to(out.dtype))
    return out


def as_rois(boxes: list[Tensor]) -> Tensor:
    """(K, 5) with the image index in front, from the boxes (n_i, 4) of each image."""
    return torch.cat([torch.cat([own.new_full((len(own), 1), index), own[:, :4]], 1)
                      for index, own in enumerate(boxes)])
