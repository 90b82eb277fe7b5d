"""Percentile search of an affine range: the quantile with the least squared error wins (RepQ-ViT; ERQ 2024)."""

import math

import torch
from torch import Tensor

from vitq.errors import InputError

REPQ = (0.999, 0.9999, 0.99999)  # RepQ-ViT, weights and activations; ERQ, activations
ERQ_WEIGHTS = (0.97, 0.98, 0.99, 0.995, 0.9995, 0.9997, 0.9999, 0.99995, 0.99999, 1.0)
PART = 2**16  # values scored at a time, so that they stay in the processor's cache


def check_percentiles(percentiles: tuple[float, ...]) -> tuple[float, ...]:
    """Return them if there is at least one and all lie in (0.5, 1]; raise InputError otherwise."""
    if not percentiles or not all(0.5 < p <= 1 for p in percentiles):
        raise InputError(f"percentiles={percentiles!r}: give at least one number, each above 0.5 and at most 1")
    return tuple(float(p) for p in percentiles)


def upper_quantiles(rows: Tensor, percentiles: tuple[float, ...]) -> Tensor:
    """Linearly interpolated quantiles of each row, (percentiles, rows); only the tail above the lowest is sorted.

    Args:
        rows: (R, M).
        percentiles: Each in [0, 1], in any order.
    """
    last = rows.shape[1] - 1
    positions = [p * last for p in percentiles]
    tail = last - math.floor(min(positions)) + 1
    values = _largest(rows, tail)
    found = []
    for position in positions:
        below = math.floor(position)
        low, high = values[:, last - below], values[:, max(last - below - 1, 0)]
        found.append(torch.lerp(low, high, position - below))
    return torch.stack(found)


def _largest(rows: Tensor, count: int) -> Tensor:
    """The ``count`` largest values of each row in falling order; a bound from a sample spares most of the search."""
    if count > rows.shape[1] // 2:
        return rows.sort(dim=1, descending=True).values[:, :count]
    if len(rows) == 1 and rows.numel() > 2**18:
        sample = rows[0, :: rows.shape[1] // 2**14]
        bound = sample.topk(min(2 * count * len(sample) // rows.shape[1] + 32, len(sample))).values[-1]
        kept = rows[rows >= bound]
        if count <= len(kept):
            rows = kept[None]
    return rows.topk(count, dim=1).values


def affine_grid(low: Tensor, high: Tensor, levels: int) -> tuple[Tensor, Tensor]:
    """Scale ``(high - low) / (levels - 1)`` and rounded, unclamped zero point ``-low / scale``; same shape.

    Where all values are equal, the scale is their magnitude (1 for zero), so that the value itself is a level.
    """
    scale = (high - low) / (levels - 1)
    flat = scale <= torch.finfo(scale.dtype).tiny
    scale = torch.where(flat, torch.where(low == 0, 1, low.abs()), scale)
    return scale, torch.round(-low / scale)


def squared_error(rows: Tensor, scale: Tensor, zero_point: Tensor, qmax: int) -> Tensor:
    """Mean squared error of affine quantization of each row, float64 (R,).

    Args:
        rows: (R, M).
        scale: (R,).
        zero_point: (R,).
        qmax: Largest code; the smallest is 0.
    """
    scale, zero_point = scale[:, None], zero_point[:, None]
    total = torch.zeros(len(rows), dtype=torch.float64, device=rows.device)
    for part in rows.split(max(PART // len(rows), 256), dim=1):
        codes = (part / scale).round_().add_(zero_point).clamp_(0, qmax).sub_(zero_point)
        total += codes.mul_(scale).sub_(part).square_().sum(1, dtype=torch.float64)
    return total / rows.shape[1]


def search_affine(rows: Tensor, bits: int, percentiles: tuple[float, ...]) -> tuple[Tensor, Tensor]:
    r"""Scale and zero point of each row by symmetric percentile search; (R,) each.

    For each p: :math:`hi = \mathrm{quantile}(v, p)`, :math:`lo = \mathrm{quantile}(v, 1-p)`,
    :math:`s = (hi - lo)/(2^b - 1)`, :math:`z = \lfloor -lo/s \rceil`; the least mean squared error wins, the earlier p
    on a tie.

    Args:
        rows: (R, M), float32 or float64.
        bits: Bits b.
        percentiles: Candidates p.
    """
    qmax = 2**bits - 1
    highs, lows = upper_quantiles(rows, percentiles), -upper_quantiles(-rows, percentiles)
    best = torch.full((len(rows),), math.inf, dtype=torch.float64, device=rows.device)
    chosen = [torch.ones_like(highs[0]), torch.zeros_like(highs[0])]
    for low, high in zip(lows, highs, strict=True):
        scale, zero_point = affine_grid(low, high, qmax + 1)
        error = squared_error(rows, scale, zero_point, qmax)
        better = error < best
        best = torch.where(better, error, best)
        chosen = [torch.where(better, new, old) for new, old in zip((scale, zero_point), chosen, strict=True)]
    return chosen[0], chosen[1]
