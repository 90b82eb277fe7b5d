"""Random crops: drawn as RandomResizedCrop draws them, and cut out of a batch of images without a loop over crops."""

import math

import numpy as np
import torch
from torch import Tensor

from vitq.errors import InputError

_TRIES = 10  # as in torchvision; then the largest centred crop of an allowed aspect


def draw_crops(
    count: int,
    height: int,
    width: int,
    seed: int,
    row: int,
    scale: tuple[float, float] = (0.08, 1.0),
    ratio: tuple[float, float] = (3 / 4, 4 / 3),
    flip: float = 0.5,
) -> tuple[np.ndarray, np.ndarray]:
    """Boxes int64 (count, 4) = top, left, height, width in pixels, and flips bool (count,), of one image.

    Area and aspect are those of torchvision's RandomResizedCrop: a uniform share of the area, a log-uniform aspect, ten
    tries to fit. They depend on seed and row alone.

    Args:
        count: Number of crops.
        height: Of the image in pixels.
        width: Of the image in pixels.
        seed: Seed of the store.
        row: Number of the image.
        scale: Least and largest share of the area.
        ratio: Least and largest width over height.
        flip: Probability of mirroring.
    """
    rng = np.random.Generator(np.random.SFC64(np.random.SeedSequence(seed, spawn_key=(row,))))
    area = height * width * rng.uniform(*scale, (_TRIES, count))
    aspect = np.exp(rng.uniform(math.log(ratio[0]), math.log(ratio[1]), (_TRIES, count)))
    wide, high = np.rint(np.sqrt(area * aspect)), np.rint(np.sqrt(area / aspect))
    fits = (0 < wide) & (wide <= width) & (0 < high) & (high <= height)
    first, every = fits.argmax(0), np.arange(count)
    wide, high = wide[first, every], high[first, every]
    top = np.floor(rng.random(count) * (height - high + 1))
    left = np.floor(rng.random(count) * (width - wide + 1))
    boxes = np.stack([top, left, high, wide], 1).astype(np.int64)
    boxes[~fits.any(0)] = _largest_centred(height, width, ratio)
    return boxes, rng.random(count) < flip


def _largest_centred(height: int, width: int, ratio: tuple[float, float]) -> tuple[int, int, int, int]:
    high, wide = height, width
    if width < ratio[0] * height:
        high = max(1, round(width / ratio[0]))
    elif width > ratio[1] * height:
        wide = max(1, round(height * ratio[1]))
    return (height - high) // 2, (width - wide) // 2, high, wide


def pixel_boxes(fractions: np.ndarray, height: int, width: int) -> np.ndarray:
    """Boxes (..., 4) in shares of the sides as whole pixels that lie inside the image, int64."""
    boxes = np.rint(fractions * np.array([height, width, height, width])).astype(np.int64)
    top, left = boxes[..., 0].clip(0, height - 1), boxes[..., 1].clip(0, width - 1)
    return np.stack([top, left, boxes[..., 2].clip(1, height - top), boxes[..., 3].clip(1, width - left)], -1)


def crop_resize(
    images: Tensor, boxes: Tensor, flips: Tensor, size: int, interpolation: str = "bilinear"
) -> Tensor:
    """M crops of each image, resized to size x size and mirrored where asked: float32 (B, M, C, size, size).

    The result is that of cropping first and resizing with antialiasing then (`torchvision`'s `resized_crop`), as two
    batched matrix products, rows and columns: every crop has its own pair of interpolation matrices.

    Args:
        images: Float, (B, C, H, W).
        boxes: Top, left, height, width in whole pixels, (B, M, 4).
        flips: Bool, (B, M).
        size: Side of a crop in pixels.
        interpolation: "bilinear" or "bicubic".
    """
    count, channels, height, width = images.shape
    each = boxes.shape[1]
    boxes, flips = boxes.to(images.device).float(), flips.to(images.device)
    rows = _weights(boxes[..., 0], boxes[..., 2], height, size, interpolation)  # (B, M, size, H)
    columns = _weights(boxes[..., 1], boxes[..., 3], width, size, interpolation)  # (B, M, size, W)
    columns = torch.where(flips[..., None, None], columns.flip(2), columns)
    flat = images.permute(0, 2, 1, 3).reshape(count, height, channels * width)  # (B, H, C * W)
    tall = rows.reshape(count, each * size, height) @ flat  # (B, M * size, C * W)
    tall = tall.view(count * each, size * channels, width)
    crops = tall @ columns.reshape(count * each, size, width).transpose(1, 2)  # (B * M, size * C, size)
    return crops.view(count, each, size, channels, size).transpose(2, 3)


def _weights(start: Tensor, length: Tensor, source: int, target: int, interpolation: str) -> Tensor:
    """Matrices (..., target, source) that resample the stretch [start, start + length) to `target` pixels."""
    if interpolation not in _FILTERS:
        raise InputError(f"interpolation must be one of {', '.join(_FILTERS)}, got {interpolation!r}")
    scale = (length / target)[..., None, None]
    centre = (torch.arange(target, device=start.device)[:, None] + 0.5) * scale  # (..., target, 1)
    pixel = torch.arange(source, device=start.device) + 0.5 - start[..., None, None]  # (..., 1, source)
    weights = _FILTERS[interpolation]((pixel - centre) / scale.clamp_min(1))
    weights = weights * ((pixel > 0) & (pixel < length[..., None, None]))
    return weights / weights.sum(-1, keepdim=True)


def _triangle(x: Tensor) -> Tensor:
    return (1 - x.abs()).clamp_min_(0)


def _cubic(x: Tensor, a: float = -0.5) -> Tensor:
    x = x.abs()
    near = ((a + 2) * x - (a + 3)) * x * x + 1
    far = ((a * x - 5 * a) * x + 8 * a) * x - 4 * a
    return torch.where(x <= 1, near, torch.where(x < 2, far, torch.zeros_like(x)))


_FILTERS = {"bilinear": _triangle, "bicubic": _cubic}
