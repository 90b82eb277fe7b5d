"""Range estimators: one scale from data, by mean square error, by LSQ's rule, or by the largest value."""

import torch
from torch import Tensor

CANDIDATES = 100
MARGIN = 0.5
SAMPLE = 2**20  # values that one scale is searched on; more than enough for a threshold out of 100


def _rows(x: Tensor, channel_axis: int | tuple[int, ...] | None) -> Tensor:
    """Values that share a scale, one row each."""
    if channel_axis is None:
        return x.reshape(1, -1)
    axes = sorted(axis % x.dim() for axis in ((channel_axis,) if isinstance(channel_axis, int) else channel_axis))
    rows = x.movedim(tuple(axes), tuple(range(len(axes))))
    return rows.reshape(rows.shape[: len(axes)].numel(), -1)  # (scales, rest)


def max_scale(x: Tensor, qmax: int, channel_axis: int | tuple[int, ...] | None = None) -> Tensor:
    """``max|x| / p``, one per row of values that share a scale; shape (1,) or (channels,)."""
    return _rows(x, channel_axis).abs().amax(1) / qmax


def lsq_scale(x: Tensor, qmax: int, channel_axis: int | tuple[int, ...] | None = None) -> Tensor:
    r"""LSQ's initial step size :math:`2\,\mathrm{mean}|x| / \sqrt p` (LSQ, section 2.1); shape (1,) or (scales,)."""
    return 2 * _rows(x, channel_axis).abs().mean(1) / qmax**0.5


def mse_scale(x: Tensor, qmin: int, qmax: int, channel_axis: int | tuple[int, ...] | None = None) -> Tensor:
    r"""Scale with the least squared quantization error over a grid of 100 clipping thresholds.

    Candidate :math:`i = 1 \dots 100` maps :math:`T_i = i (\max|x| + 0.5)/100` to the largest code,
    :math:`s_i = T_i / p`, as the released code of Nagel 2022 does (the margin is absolute, whatever the scale of x).
    All candidates are scored from one sort: between two neighbouring rounding thresholds the error is
    :math:`\sum x^2 - 2 q \sum x + n q^2`, which prefix sums give exactly.

    Where more than 2^20 values share a scale, a seeded random sample of that many is searched (the largest value is
    taken over all of them).

    Returns:
        Shape (1,) or (channels,), dtype of ``x``.
    """
    rows = _rows(x, channel_axis)  # (R, M)
    largest = rows.abs().amax(1, keepdim=True)  # (R, 1)
    if rows.shape[1] > SAMPLE:
        pick = torch.randint(rows.shape[1], (SAMPLE,), generator=torch.Generator().manual_seed(0))
        rows = rows[:, pick.to(rows.device)]
    ordered = rows.sort(1).values.contiguous()
    prefix = torch.stack([torch.ones_like(ordered, dtype=torch.float64), ordered.double(), ordered.double() ** 2])
    prefix = torch.nn.functional.pad(prefix.cumsum(2), (1, 0))  # (3, R, M + 1): count, sum, sum of squares
    levels = torch.arange(qmin, qmax + 1, device=x.device, dtype=x.dtype)  # (K,)
    best = torch.full_like(largest[:, 0], float("inf"), dtype=torch.float64)
    chosen = torch.zeros_like(largest[:, 0])
    for i in range(1, CANDIDATES + 1):
        scale = (largest + MARGIN) * (i / CANDIDATES) / qmax  # (R, 1)
        cuts = torch.searchsorted(ordered, ((levels[:-1] + 0.5) * scale).contiguous())  # (R, K - 1)
        edges = torch.nn.functional.pad(cuts, (1, 0))
        edges = torch.nn.functional.pad(edges, (0, 1), value=ordered.shape[1])  # (R, K + 1)
        count, total, square = prefix.gather(2, edges.expand(3, *edges.shape)).diff(dim=2)  # (R, K) each
        value = (levels * scale).double()
        error = (square - 2 * value * total + count * value**2).sum(1)
        better = error < best
        best = torch.where(better, error, best)
        chosen = torch.where(better, scale[:, 0], chosen)
    return chosen


def estimate_scale(x: Tensor, qmin: int, qmax: int, channel_axis: int | tuple[int, ...] | None, rule: str) -> Tensor:
    """Scale of ``x`` by ``rule``, one of :data:`RULES`; never below the smallest positive number of its dtype.

    ``"ofq"`` is LSQ's rule, twice as large on an unsigned grid with several scales (released code of OFQ).
    """
    if rule == "mse":
        scale = mse_scale(x, qmin, qmax, channel_axis)
    elif rule in ("lsq", "ofq"):
        scale = lsq_scale(x, qmax, channel_axis)
        if rule == "ofq" and qmin == 0 and channel_axis is not None:
            scale = 2 * scale
    else:
        scale = max_scale(x, qmax, channel_axis)
    return scale.clamp_min(torch.finfo(scale.dtype).tiny)


RULES = ("mse", "lsq", "max", "ofq")
