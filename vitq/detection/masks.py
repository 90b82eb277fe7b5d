"""Masks of 28 x 28 probabilities laid into the image, and their run-length form for COCO."""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from vitq.detection.packages import need

THRESHOLD = 0.5


def paste_masks(probabilities: Tensor, boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """Boolean masks (n, H, W): each mask is sampled at the centres of the image's pixels, and is set from 0.5 on.

    Boxes stay continuous; outside the mask the probability falls to 0 over half a mask cell. The box's own part of the
    image alone is sampled.

    Args:
        probabilities: (n, h, w).
        boxes: (n, 4), pixels of the image.
        size: Height and width of the image.
    """
    masks = torch.zeros(len(boxes), *size, dtype=torch.bool, device=boxes.device)
    for mask, probability, box in zip(masks, probabilities, boxes, strict=True):
        left, top = (max(int(torch.floor(v)) - 1, 0) for v in box[:2])
        right, bottom = (min(int(torch.ceil(v)) + 1, side) for v, side in zip(box[2:], size[::-1], strict=True))
        if right > left and bottom > top:
            x, y = _positions(box[0], box[2], left, right), _positions(box[1], box[3], top, bottom)
            grid = torch.stack([x[None].expand(len(y), -1), y[:, None].expand(-1, len(x))], -1)  # (h, w, 2)
            sampled = F.grid_sample(probability[None, None].float(), grid[None], align_corners=False)[0, 0]
            mask[top:bottom, left:right] = sampled >= THRESHOLD
    return masks


def _positions(low: Tensor, high: Tensor, begin: int, end: int) -> Tensor:
    """Pixel centres begin .. end - 1 in the coordinates of the box, -1 to 1; a box without width has them all at 0."""
    centres = torch.arange(begin, end, device=low.device, dtype=torch.float32) + 0.5
    where = (centres - low) / (high - low) * 2 - 1
    return torch.where(where.isfinite(), where, torch.zeros_like(where))


def encode_masks(masks: Tensor) -> list[dict]:
    """COCO run-length encodings, ``{"size": [H, W], "counts": str}``, of masks (n, H, W)."""
    coder = need("pycocotools.mask")
    found = []
    for mask in masks.cpu().numpy().astype(np.uint8):
        runs = coder.encode(np.asfortranarray(mask))
        found.append({"size": list(runs["size"]), "counts": runs["counts"].decode("ascii")})
    return found
