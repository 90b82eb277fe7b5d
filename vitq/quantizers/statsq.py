"""StatsQ: the weight quantizer of OFQ, whose scale is a statistic of the weights instead of a trained parameter."""

import torch
from torch import Tensor

from vitq.numerics import EPSILON
from vitq.quantizers.base import Quantizer

INSIDE = 1 - 1e-6  # upper end of the clip in the released code; keeps the largest weights on the top level


def _codes(x: Tensor, step: Tensor, n: int) -> Tensor:
    """round(n clip(x/s) - 1/2), limited to -n .. n-1 whatever the precision does to the clip; floating point."""
    unit = (x / (n * step)).clamp_(-1, INSIDE)
    return unit.mul_(n).sub_(0.5).round_().clamp_(-n, n - 1)


class _Snap(torch.autograd.Function):
    """Nearest level, and the identity as gradient, for clipped entries too."""

    @staticmethod
    def forward(ctx, x: Tensor, step: Tensor, n: int) -> Tensor:
        return _codes(x, step, n).add_(0.5).mul_(step)

    @staticmethod
    def backward(ctx, grad: Tensor):
        return grad, None, None


class StatsQ(Quantizer):
    r"""Statistical weight quantization (OFQ 2023, section "StatsQ"; released code).

    With :math:`n = 2^{b-1}` and one scale for each output row :math:`r`, recomputed in every forward pass and without
    a gradient through it,

    .. math:: s_r = 2\,\mathrm{mean}_c |W_{rc}|, \quad
              k = \lfloor n\,\mathrm{clip}(W/s, -1, 1) - \tfrac12 \rceil \in \{-n, \dots, n-1\}, \quad
              \hat W = \frac{s}{n} (k + \tfrac12).

    The grid has no zero: a weight of 0 lies on a threshold. The step is :math:`D = s/n`, the thresholds are
    :math:`jD` for :math:`|j| < n`. The gradient is the identity, for clipped entries as well.

    Repaired against the released code: 1 bit (its lowest weights left the grid), rows of zeros (NaN there) and half
    precision (computed in float32).

    Args:
        bits: 1 to 8.
        signed: Only True: the grid is symmetric about 0.
        channel_axis: One scale per index; 0 for the output rows of a weight.

    Shape:
        Input and output: any; codes as int8.
    """

    MIN_BITS = 1
    SCALE_FROM_DATA = True

    def __init__(self, bits: int, signed: bool = True, channel_axis: int | tuple[int, ...] | None = 0) -> None:
        super().__init__(bits, signed, channel_axis)
        if signed is not True:
            from vitq.errors import InputError

            raise InputError(f"signed={signed!r}: StatsQ has a signed grid only; use lsq for activations")
        self.n = 2 ** (bits - 1)
        self.register_buffer("place", torch.empty(0), persistent=False)  # without a scale, tells the device

    @property
    def _device(self) -> torch.device:
        return self.place.device

    def fit_range(self, x: Tensor) -> None:
        """Nothing to set: the scale follows the weights."""

    def step_size(self, x: Tensor) -> Tensor:
        """D = s/n, float32 or finer, shaped to broadcast against ``x``."""
        size = x.detach().abs()
        size = size.float() if x.dtype in (torch.float16, torch.bfloat16) else size
        if self.channel_axis is None:
            return size.mean().mul(2 / self.n).clamp_min(EPSILON)
        axes = (self.channel_axis,) if isinstance(self.channel_axis, int) else self.channel_axis
        kept = {a % x.dim() for a in axes}
        return size.mean([a for a in range(x.dim()) if a not in kept], keepdim=True).mul(2 / self.n).clamp_min(EPSILON)

    def fake_quantize(self, x: Tensor) -> Tensor:
        step = self.step_size(x)
        return _Snap.apply(x.to(step.dtype), step, self.n).to(x.dtype)

    @torch.no_grad()
    def limits(self, x: Tensor) -> tuple[Tensor, Tensor]:
        highest = (self.n - 0.5) * self.step_size(x)
        return -highest, highest

    @torch.no_grad()
    def position(self, x: Tensor) -> Tensor:
        """``x/D - 1/2``: its nearest integer is the code, its half-integers are the thresholds."""
        return x / self.step_size(x) - 0.5

    def codes_of(self, x: Tensor) -> Tensor:
        step = self.step_size(x)
        return _codes(x.detach().to(step.dtype), step, self.n).to(torch.int8)

    def odd_codes(self, x: Tensor) -> Tensor:
        """Integers :math:`2k + 1`: the quantized weight is that many times s/(2n). int8, for 8 bits int16."""
        return 2 * self.codes(x).to(torch.int8 if self.bits < 8 else torch.int16) + 1

    def dequantize(self, codes: Tensor, x: Tensor | None = None) -> Tensor:
        """Levels of ``codes`` on the grid of ``x``, which must be given: the scale is a statistic of it."""
        if x is None:
            raise TypeError("StatsQ.dequantize needs x, the weight whose statistics give the scale")
        return (codes + 0.5) * self.step_size(x)
