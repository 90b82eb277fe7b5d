"""Uniform affine quantizer with a fixed range."""

import torch
from torch import Tensor

from vitq.errors import InputError
from vitq.numerics import EPSILON, check_choice, fake_quantize, integer_codes, round_ste
from vitq.quantizers.base import Quantizer
from vitq.quantizers.ranges import RULES, _rows, estimate_scale


class Uniform(Quantizer):
    r"""Uniform quantizer with a calibrated, not trained, scale and an optional zero point.

    Symmetric: :math:`q(x) = s\,\mathrm{clip}(\lfloor x/s \rceil, n, p)`. Affine (``symmetric=False``), on the grid
    :math:`0 \dots 2^b - 1` with the range of the data:

    .. math:: q(x) = s\,\bigl(\mathrm{clip}(\lfloor x/s \rceil + z, 0, 2^b - 1) - z\bigr), \quad
              s = \frac{x_{\max} - x_{\min}}{2^b - 1}, \quad z = \lfloor -x_{\min}/s \rceil .

    Args:
        bits: 2 to 8.
        signed: As in :class:`~vitq.quantizers.base.Quantizer`; the affine grid is unsigned.
        channel_axis: One range per index of this axis; ``None``: per tensor.
        symmetric: Zero point fixed at 0.
        init: Rule of the symmetric range: ``"mse"``, ``"lsq"`` or ``"max"``. The affine range is always min to max.
    """

    def __init__(
        self,
        bits: int,
        signed: bool | None = True,
        channel_axis: int | tuple[int, ...] | None = None,
        symmetric: bool = True,
        init: str = "mse",
    ) -> None:
        if not symmetric and signed:
            signed = False
        super().__init__(bits, signed, channel_axis)
        if not isinstance(symmetric, bool):
            raise InputError(f"symmetric={symmetric!r}: give True or False")
        self.symmetric = symmetric
        self.init = check_choice("init", init, RULES)
        self.register_buffer("scale", torch.ones(1))
        self.register_buffer("zero_point", torch.zeros(1))

    def fit_range(self, x: Tensor) -> None:
        if self.symmetric:
            scale = estimate_scale(x, self.qmin, self.qmax, self.channel_axis, self.init)
            zero_point = torch.zeros_like(scale)
        else:
            low, high = _rows(x, self.channel_axis).aminmax(dim=1)
            low, high = low.clamp_max(0), high.clamp_min(0)  # zero stays exactly representable
            scale = ((high - low) / self.qmax).clamp_min(EPSILON)
            zero_point = (-low / scale).round().clamp(0, self.qmax)
        self.scale, self.zero_point = scale.to(self.scale.device), zero_point.to(self.scale.device)

    def step_size(self, x: Tensor) -> Tensor:
        """Scale, shaped to broadcast against ``x``."""
        return self._spread(self.scale, x)

    def _zero_point(self, x: Tensor) -> Tensor:
        return self._spread(self.zero_point, x)

    def fake_quantize(self, x: Tensor) -> Tensor:
        scale, zero_point = self.step_size(x), self._zero_point(x)
        if self.symmetric:
            return fake_quantize(x, scale, self.qmin, self.qmax)
        return ((round_ste(x / scale) + zero_point).clamp(self.qmin, self.qmax) - zero_point) * scale

    def codes_of(self, x: Tensor) -> Tensor:
        scale, zero_point = self.step_size(x), self._zero_point(x)
        return integer_codes(x, scale, self.qmin, self.qmax, zero_point)

    @torch.no_grad()
    def limits(self, x: Tensor) -> tuple[Tensor, Tensor]:
        step, zero_point = self.step_size(x), self._zero_point(x)
        return (self.qmin - zero_point) * step, (self.qmax - zero_point) * step

    def position(self, x: Tensor) -> Tensor:
        return x / self.step_size(x) + self._zero_point(x)

    def dequantize(self, codes: Tensor, x: Tensor | None = None) -> Tensor:
        return (codes - self._zero_point(codes)) * self.step_size(codes)
