"""Anchors of the five levels: unrounded, centred on the corner of each cell, at fixed strides."""

import torch
from torch import Tensor

STRIDES = (4, 8, 16, 32, 64)
RATIOS = (0.5, 1.0, 2.0)  # height over width


def base_anchors(stride: int, scale: int = 8) -> Tensor:
    """Anchors (3, 4) of the cell at the origin: side ``stride * scale`` and three ratios of the same area."""
    heights = torch.tensor(RATIOS).sqrt()  # (3,)
    sides = torch.stack([1 / heights, heights], -1) * (stride * scale)  # (3, 2): width, height
    return torch.cat([-0.5 * sides, 0.5 * sides], -1)


def level_anchors(size: tuple[int, int], stride: int, scale: int = 8,
                  device: torch.device | str | None = None) -> Tensor:
    """Anchors (H W 3, 4) of one level, row by row, the three of a cell one after the other.

    Args:
        size: Height and width of the level's map.
        stride: Pixels between two cells; the level's own, whatever the image size.
        scale: Side over stride.
        device: Where they lie.
    """
    down, right = (torch.arange(length, device=device) * stride for length in size)
    y, x = torch.meshgrid(down, right, indexing="ij")
    moves = torch.stack([x, y, x, y], -1).flatten(0, 1)  # (H W, 4)
    return (moves[:, None] + base_anchors(stride, scale).to(moves.device)).flatten(0, 1)


def all_anchors(maps: list[Tensor], scale: int = 8) -> list[Tensor]:
    """Anchors of every level, one tensor each; ``maps``: (B, ..., H, W) of each level."""
    return [level_anchors(tuple(level.shape[-2:]), stride, scale, level.device)
            for level, stride in zip(maps, STRIDES, strict=True)]
