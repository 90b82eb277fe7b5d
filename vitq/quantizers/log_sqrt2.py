"""Logarithmic quantizer of base sqrt(2), for attention probabilities."""

import math

import torch
from torch import Tensor

from vitq.quantizers.base import Quantizer
from vitq.quantizers.percentiles import PART, REPQ, check_percentiles, upper_quantiles


class LogSqrt2(Quantizer):
    r"""Log-sqrt2 quantizer of RepQ-ViT for post-softmax attention (ERQ 2024, specification section 1.3).

    .. math:: c = \lfloor -2 \log_2 (v/s) \rceil, \qquad
              q(v) = \begin{cases} 0 & c \ge 2^b \\ s\,2^{-\max(c, 0)/2} & \text{otherwise} \end{cases}

    In hardware :math:`2^{-c/2}` is a shift by :math:`\lceil c/2 \rceil` and a scale that is :math:`\sqrt2 s` for odd c.
    Values above s become s, values of 0 stay 0. Code :math:`2^b` stands for zero: :math:`2^b + 1` values in all. The
    scale is the quantile with the least squared error out of ``percentiles``, one a tensor. Not differentiable.

    Args:
        bits: 2 to 8.
        percentiles: Candidate quantiles of the scale.
    """

    def __init__(self, bits: int, percentiles: tuple[float, ...] = REPQ) -> None:
        super().__init__(bits, False, None)
        self.percentiles = check_percentiles(percentiles)
        self.register_buffer("scale", torch.ones(1))

    @property
    def qmax(self) -> int:
        """The code of zero."""
        return 2**self.bits

    def fit_range(self, x: Tensor) -> None:
        flat, best = x.reshape(1, -1), math.inf
        for scale in upper_quantiles(flat, self.percentiles)[:, 0]:
            scale = torch.where(scale > 0, scale, 1)
            error = sum((self._values(part, scale) - part).square_().sum(dtype=torch.float64)
                        for part in flat[0].split(PART)).item()
            if error < best:
                best, self.scale = error, scale.reshape(1).to(self.scale)

    def step_size(self, x: Tensor) -> Tensor:
        """The largest level s."""
        return self.scale

    def _values(self, x: Tensor, scale: Tensor) -> Tensor:
        codes = self._codes(x, scale)
        return torch.exp2(codes * -0.5).mul_(scale).mul_(codes < self.qmax)

    def _codes(self, x: Tensor, scale: Tensor) -> Tensor:
        return (x / scale).clamp_min_(0).log2_().mul_(-2).round_().clamp_(0, self.qmax)

    @torch.no_grad()
    def fake_quantize(self, x: Tensor) -> Tensor:
        if x.numel() <= PART:
            return self._values(x, self.scale)
        parts = x.reshape(-1).split(PART) if x.device.type == "cpu" else [x.reshape(-1)]
        return torch.cat([self._values(part, self.scale) for part in parts]).view(x.shape)

    def position(self, x: Tensor) -> Tensor:
        """``-2 log2(v/s)``; infinite at 0."""
        return -2 * (x / self.scale).clamp_min(0).log2()

    def codes_of(self, x: Tensor) -> Tensor:
        return self._codes(x.detach(), self.scale).to(torch.int16)

    @torch.no_grad()
    def limits(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return torch.zeros_like(self.scale), self.scale

    def dequantize(self, codes: Tensor, x: Tensor | None = None) -> Tensor:
        codes = codes.to(self.scale.dtype)
        return torch.exp2(codes * -0.5).mul_(self.scale).mul_(codes < self.qmax)
