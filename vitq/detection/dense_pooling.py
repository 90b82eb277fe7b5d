r"""Aligned RoIAlign as two matrix products, for training on a processor: :math:`W_y F W_x^\top` for each region.

The same numbers as torchvision's, whose backward there adds cell by cell and takes a third of a training step. The
products go over whole maps, so that this suits small maps alone.
"""

import torch
from torch import Tensor

LARGEST = 48  # cells along a side of a map


def suits(level: Tensor) -> bool:
    """Whether this is the faster way for a map (B, C, H, W): it is trained, small, and not on a GPU."""
    return level.requires_grad and level.device.type == "cpu" and max(level.shape[-2:]) <= LARGEST


def dense_roi_align(level: Tensor, rois: Tensor, size: int, scale: float) -> Tensor:
    """What ``torchvision.ops.roi_align(level, rois, size, scale, 0, True)`` gives, (K, C, size, size).

    Args:
        level: (B, C, H, W).
        rois: (K, 5), image index, which must not fall, and box in pixels.
        size: Bins along a side.
        scale: Cells a pixel.
    """
    left, top, right, bottom = (rois[:, 1:] * scale - 0.5).unbind(1)
    counts = torch.bincount(rois[:, 0].long(), minlength=len(level)).tolist()
    across = shares(left, right, size, level.shape[3]).split(counts)
    down = shares(top, bottom, size, level.shape[2]).split(counts)
    with torch.autocast(level.device.type, enabled=False):
        return torch.cat([_pool(*own) for own in zip(level, down, across, strict=True)])


def _pool(features: Tensor, down: Tensor, across: Tensor) -> Tensor:
    """Features (C, H, W) of one image to (k, C, bins, bins), by the shares (k, bins, H) and (k, bins, W)."""
    channels, bins = len(features), down.shape[1]
    rows = down.flatten(0, 1) @ features.transpose(0, 1).flatten(1)  # (k bins, C W)
    rows = rows.unflatten(1, (channels, -1)).unflatten(0, (-1, bins)).flatten(1, 2)  # (k, bins C, W)
    return (rows @ across.transpose(1, 2)).unflatten(1, (bins, channels)).transpose(1, 2)


def shares(low: Tensor, high: Tensor, bins: int, cells: int) -> Tensor:
    """Weight (K, bins, cells) of each cell in the mean over a bin's samples, along one axis.

    A bin of a side s has ceil(s) samples, interpolated between the two nearest cells; those more than a cell outside
    count as 0.

    Args:
        low: Where each region begins, (K,), in cells.
        high: Where it ends.
        bins: Into which it is cut.
        cells: Of the map.
    """
    side = (high - low) / bins
    count = side.ceil().clamp(min=1)
    sample = torch.arange(int(count.max()), device=low.device)
    within = (sample + 0.5) / count[:, None]  # (K, samples)
    at = torch.arange(bins, device=low.device)[:, None] + within[:, None]  # (K, bins, samples)
    at = low[:, None, None] + side[:, None, None] * at
    counts = (sample < count[:, None])[:, None] & (at >= -1) & (at <= cells) & (side > 0)[:, None, None]
    distance = at.clamp(0, cells - 1)[..., None] - torch.arange(cells, device=low.device)
    return ((1 - distance.abs()).clamp(min=0) * counts[..., None]).sum(2) / count[:, None, None]
