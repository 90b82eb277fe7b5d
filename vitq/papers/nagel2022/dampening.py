r"""Oscillation dampening (Nagel 2022, section 4.2): pull every latent weight to the centre of its bin.

.. math:: L = L_{task} + \lambda\, L_{damp}, \qquad
          L_{damp} = \lVert \mathrm{sg}(q(w)) - \mathrm{clip}(w, s n, s p) \rVert_F^2

Its gradient is :math:`2 (w - q(w))` inside the grid and 0 outside, and 0 for the scale: a clipped weight has no
residual.
"""

import torch
from torch import Tensor

from vitq.convert import WeightSite, weight_quantizers
from vitq.errors import InputError
from vitq.numerics import blend, check_choice
from vitq.quantizers import Quantizer
from vitq.train.callbacks import Callback, TrainState
from vitq.train.schedules import cosine_schedule

REDUCTIONS = ("kernel_mean", "sum", "mean")


class _Residual(torch.autograd.Function):
    """Sum of squared residuals; the gradient 2 r needs nothing but r, so no graph through the quantizer is built."""

    @staticmethod
    def forward(ctx, weight: Tensor, quantizer: Quantizer) -> Tensor:
        target = quantizer.fake_quantize(weight)
        if quantizer.frozen is not None:
            target = blend(quantizer.frozen, quantizer.dequantize(quantizer.frozen_codes, weight), target)
        low, high = quantizer.limits(weight)
        residual = torch.minimum(torch.maximum(weight, low), high).sub_(target)
        ctx.save_for_backward(residual)
        flat = residual.flatten()
        return torch.dot(flat, flat)

    @staticmethod
    def backward(ctx, grad: Tensor):
        (residual,) = ctx.saved_tensors
        return residual * (2 * grad), None


def dampening_loss(weight: Tensor, quantizer: Quantizer, reduction: str = "sum") -> Tensor:
    """Dampening loss of one weight tensor, a scalar that is differentiable in ``weight`` only.

    Args:
        weight: Latent weight; the first axis is the output channel.
        quantizer: Its quantizer; a frozen weight is pulled to its frozen value.
        reduction: ``"sum"``: the squared Frobenius norm, as printed. ``"kernel_mean"``: summed over output channels,
            averaged over the other axes (the default of the released code, and what its lambda of 0.1 refers to).
            ``"mean"``: averaged over everything.
    """
    check_choice("reduction", reduction, REDUCTIONS)
    total = _Residual.apply(weight, quantizer)
    divisor = {"sum": 1, "kernel_mean": weight[0].numel(), "mean": weight.numel()}[reduction]
    return total / divisor if divisor != 1 else total


class Dampening(Callback):
    """Training callback: adds lambda times the dampening loss of all quantized weights to the loss.

    Args:
        weight: lambda at the start.
        final: lambda at the end, reached along a cosine; ``None`` keeps ``weight`` throughout.
        begin: Share of the run before the annealing begins (released code: 0.25).
        reduction: See :func:`dampening_loss`; layers are added without weights.
        max_bits: Leave out weights of more bits. The released code dampens all layers, the 8-bit ones too (8).
    """

    def __init__(self, weight: float = 0.0, final: float | None = None, begin: float = 0.25,
                 reduction: str = "kernel_mean", max_bits: int = 8) -> None:
        for name, value in (("weight", weight), ("final", final)):
            if value is not None and not value >= 0:
                raise InputError(f"{name}={value!r}: lambda must not be negative")
        self.weight, self.final, self.begin = weight, final, begin
        self.reduction = check_choice("reduction", reduction, REDUCTIONS)
        self.max_bits = max_bits

    def on_start(self, state: TrainState) -> None:
        self.sites: list[WeightSite] = [
            s for s in weight_quantizers(state.model).values() if s.quantizer.bits <= self.max_bits
        ]

    def strength(self, step: int, total_steps: int) -> float:
        """lambda used by optimizer step number ``step`` (counted from 1)."""
        if self.final is None:
            return self.weight
        return cosine_schedule(step, total_steps, self.weight, self.final, self.begin)

    def loss(self, state: TrainState) -> Tensor | None:
        strength = self.strength(state.step + 1, state.total_steps)
        if strength == 0:
            return None
        return strength * sum(dampening_loss(s.latent, s.quantizer, self.reduction) for s in self.sites)
