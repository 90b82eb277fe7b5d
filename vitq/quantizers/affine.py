"""Affine quantizer with a percentile-searched range."""

import torch
from torch import Tensor

from vitq.numerics import integer_codes
from vitq.quantizers.base import Quantizer
from vitq.quantizers.percentiles import REPQ, check_percentiles, search_affine
from vitq.quantizers.ranges import _rows


class Affine(Quantizer):
    r"""Uniform affine quantizer of RepQ-ViT and ERQ (ERQ 2024, specification sections 1.1 and 1.2).

    .. math:: q(v) = s\,(\mathrm{clip}(\lfloor v/s \rceil + z, 0, 2^b - 1) - z), \qquad
              s = \frac{hi - lo}{2^b - 1}, \quad z = \lfloor -lo/s \rceil

    with z not clamped, and the ends at the quantiles p and 1 - p whose p has the least squared error. The scale is
    calibrated, not trained; the gradient of the input is straight-through inside the range.

    A fractional zero point, as the released reparameterization makes it, gives up to :math:`2^b + 1` levels. The codes
    are then not integers.

    Args:
        bits: 2 to 8.
        channel_axis: One range for each index of this axis, or each combination of several; ``None``: per tensor.
        percentiles: Candidates p.
    """

    def __init__(self, bits: int, channel_axis: int | tuple[int, ...] | None = None,
                 percentiles: tuple[float, ...] = REPQ) -> None:
        super().__init__(bits, False, channel_axis)
        self.percentiles = check_percentiles(percentiles)
        self.register_buffer("scale", torch.ones(1))
        self.register_buffer("zero_point", torch.zeros(1))

    def fit_range(self, x: Tensor) -> None:
        self.set_grid(*search_affine(_rows(x, self.channel_axis), self.bits, self.percentiles))

    def set_grid(self, scale: Tensor, zero_point: Tensor) -> None:
        """Use this scale and zero point, (scales,) each, from now on."""
        like = self.scale
        self.scale, self.zero_point = scale.to(like), zero_point.to(like)
        self.initialized = True

    @property
    def fractional(self) -> bool:
        """Whether a zero point is not an integer."""
        return not self.zero_point.equal(self.zero_point.round())

    def step_size(self, x: Tensor) -> Tensor:
        """Scale, shaped to broadcast against ``x``."""
        return self._spread(self.scale, x)

    def offset(self, x: Tensor) -> Tensor:
        """Zero point, shaped to broadcast against ``x``."""
        return self._spread(self.zero_point, x)

    def fake_quantize(self, x: Tensor) -> Tensor:
        scale, zero_point = self.step_size(x), self.offset(x)
        with torch.no_grad():
            rounded = (x / scale).round_().add_(zero_point)
            inside = (rounded >= 0) & (rounded <= self.qmax) if x.requires_grad else None
            value = rounded.clamp_(0, self.qmax).sub_(zero_point).mul_(scale)
        return value if inside is None else value + torch.where(inside, x - x.detach(), 0)

    def position(self, x: Tensor) -> Tensor:
        return x / self.step_size(x) + self.offset(x)

    def codes_of(self, x: Tensor) -> Tensor:
        scale, zero_point = self.step_size(x), self.offset(x)
        if self.fractional:
            return ((x.detach() / scale).round_() + zero_point).clamp_(0, self.qmax)
        return integer_codes(x, scale, 0, self.qmax, zero_point)

    @torch.no_grad()
    def limits(self, x: Tensor) -> tuple[Tensor, Tensor]:
        scale, zero_point = self.step_size(x), self.offset(x)
        return -zero_point * scale, (self.qmax - zero_point) * scale

    def dequantize(self, codes: Tensor, x: Tensor | None = None) -> Tensor:
        """``s (codes - z)``."""
        codes = codes.to(self.scale.dtype)
        return (codes - self.offset(codes)) * self.step_size(codes)
