r"""Oscillation-aware bin regularization (VVTQ 2023): pull latent weights to their bin's centre and to each other.

With the clipped latent weight :math:`w^c = \mathrm{clip}(w, \text{lowest level}, \text{highest level})` and
:math:`w^q` the quantized one,

.. math:: L_{OBR} = \sum_{\text{layers}} (D + V), \qquad D = \lVert \mathrm{sg}(w^q) - w^c \rVert_2^2, \qquad
          V = \sum_{k} \mathrm{Var}(w^c \text{ in bin } k).

As printed D is a sum of squares; the released code takes the mean over the elements of a layer, which makes it weaker
by their number. V is the unbiased variance of the bins with two members or more, not weighted by their size. Gradients:

.. math:: \partial D/\partial w = 2 (w - w^q) \;[\cdot\, 1/N], \qquad
          \partial V/\partial w = 2 (w - \bar w_k) / (n_k - 1),

0 for clipped weights. D has none for the scale; V has a small one through clipped members of the end bins.

A weight belongs to the bin of its integer code. The released code compares :math:`w^q/\alpha` with the integer in
floating point, which misses whole bins (:func:`found_by_float_test`). Bins are those of one scale: with a scale a head
or channel, each has bins of its own.
"""

import torch
from torch import Tensor

from vitq.convert import WeightSite, weight_quantizers
from vitq.errors import InputError
from vitq.numerics import check_choice
from vitq.quantizers import Quantizer
from vitq.train.callbacks import Callback, TrainState
from vitq.train.schedules import cosine_schedule

REDUCTIONS = ("mean", "sum")


def _bins(codes: Tensor, weight: Tensor, step: Tensor, quantizer: Quantizer) -> tuple[Tensor, int]:
    """Bin of each weight, int64, and the number of bins: levels times scales."""
    levels, scales = quantizer.qmax - quantizer.qmin + 1, step.numel()
    index = codes.to(torch.int16).sub_(quantizer.qmin).to(torch.int64)
    if scales > 1:
        groups = torch.arange(scales, device=weight.device).reshape(step.shape)
        if hasattr(quantizer, "scale_groups"):  # several indices of an axis share a scale
            groups, scales = quantizer.scale_groups(weight), quantizer.scale.numel()
        index = index + groups * levels
    return index, levels * scales


def _bin_sums(index: Tensor, values: Tensor, bins: int) -> tuple[Tensor, Tensor]:
    """Members of each bin and the sum of their values, (bins,); rows are added up apart first while bins are few."""
    rows = len(index) if bins <= 256 and index.dim() > 1 else 1
    index, values = index.reshape(rows, -1), values.reshape(rows, -1)
    zeros = values.new_zeros(rows, bins)
    counts = zeros.scatter_add(1, index, torch.ones_like(values))
    return counts.sum(0), zeros.scatter_add_(1, index, values).sum(0)


class _Penalty(torch.autograd.Function):
    """D + V of one weight and its squared gradient norm; the gradient is made in the forward pass, from the residual.

    The residual :math:`w^c - w^q` has the variance of :math:`w^c` in each bin, at a better numerical resolution.
    """

    @staticmethod
    def forward(ctx, weight: Tensor, step: Tensor, quantizer: Quantizer, mean: bool, variance: bool):
        codes = quantizer.codes(weight)
        number = codes.to(weight.dtype)  # masks are numbers too: an operation on two types takes several times as long
        centre, (low, high) = quantizer.dequantize(number, weight), quantizer.limits(weight)
        residual = torch.minimum(torch.maximum(weight, low), high)
        clipped = torch.ne(residual, weight, out=torch.empty_like(weight))
        residual.sub_(centre)
        part = getattr(quantizer, "float_part", None)
        if part is not None:
            residual[part] = 0
        weighted = residual * (2 / residual.numel() if mean else 2)
        gradient, loss = weighted, 0.5 * torch.dot(weighted.flatten(), residual.flatten())
        step_gradient = None
        if variance:
            pull = _Penalty.variance_gradient(codes, weight, step, quantizer, residual, part)
            loss = loss + 0.5 * torch.dot(pull.flatten(), residual.flatten())
            if ctx.needs_input_grad[1]:  # a clipped member is code * step
                moved = (pull * number).mul_(clipped)
                shared = [a for a in range(moved.dim()) if step.dim() == moved.dim() and step.shape[a] == 1]
                step_gradient = moved.sum(shared, keepdim=True) if step.numel() > 1 else moved.sum().reshape(step.shape)
            gradient.add_(pull)
        gradient.mul_(clipped.neg_().add_(1))
        norm = torch.dot(gradient.flatten(), gradient.flatten())
        ctx.save_for_backward(gradient, step_gradient)
        ctx.mark_non_differentiable(norm)
        return loss, norm

    @staticmethod
    def variance_gradient(codes: Tensor, weight: Tensor, step: Tensor, quantizer: Quantizer, residual: Tensor,
                          part: tuple | None) -> Tensor:
        """2 (w^c - mean of the bin) / (members - 1) for each weight; 0 in bins of one."""
        index, bins = _bins(codes, weight, step, quantizer)
        if part is not None:  # a bin of its own, whose values are all 0
            index[part], bins = bins, bins + 1
        counts, sums = _bin_sums(index, residual, bins)
        factor = torch.where(counts > 1, 2 / (counts - 1).clamp_min(1), 0)
        offset = factor * sums / counts.clamp_min(1)
        flat = index.flatten()
        return factor.index_select(0, flat).view_as(residual).mul_(residual).sub_(
            offset.index_select(0, flat).view_as(residual))

    @staticmethod
    def backward(ctx, grad: Tensor, _):
        gradient, step_gradient = ctx.saved_tensors
        return gradient * grad, None if step_gradient is None else step_gradient * grad, None, None, None


def _penalty(weight: Tensor, quantizer: Quantizer, reduction: str, variance: bool) -> tuple[Tensor, Tensor]:
    return _Penalty.apply(weight, quantizer.step_size(weight), quantizer, reduction == "mean", variance)


def bin_regularization(weight: Tensor, quantizer: Quantizer, reduction: str = "mean", variance: bool = True) -> Tensor:
    """D + V of one weight tensor, a scalar, differentiable in ``weight`` and (V alone) in the quantizer's scale.

    Args:
        weight: Latent weight.
        quantizer: Its quantizer, of any kind.
        reduction: Of D: ``"mean"`` as released, ``"sum"`` as printed.
        variance: Add V; without it and with ``"sum"`` this is the dampening loss of Nagel 2022 as printed.
    """
    check_choice("reduction", reduction, REDUCTIONS)
    return _penalty(weight, quantizer, reduction, variance)[0]


@torch.no_grad()
def found_by_float_test(weight: Tensor, quantizer: Quantizer) -> float:
    """Share of the weights whose bin the released test finds: the quantized weight over the scale equals an integer."""
    codes = quantizer.codes(weight)
    return (quantizer.dequantize(codes, weight) / quantizer.step_size(weight) == codes).double().mean().item()


class BinRegularization(Callback):
    r"""Training callback: adds lambda times :func:`bin_regularization` of all quantized weights to the loss.

    Lambda is 0 for the first ``begin`` of the run, then rises along half a cosine to ``weight``. In the released code
    it is evaluated at the index of the epoch out of ``epochs``, not at each step: a pass over the data counts as
    ``crops`` of them, in a run of :class:`~vitq.papers.vvtq2023.mckd.MultiCropDistillation` too.

    The logged ``bin_gradient_share`` is the root mean square of the gradient that this term sends to the latent
    weights, over that of their whole gradient, in the last optimizer step; below 1e-4 the term does nothing.

    Args:
        weight: Largest lambda. 0.01 as released.
        begin: Share of the run with lambda 0.
        reduction: See :func:`bin_regularization`.
        variance: See :func:`bin_regularization`.
        epochs: E, to evaluate the schedule at the epoch index; None evaluates it at each step.
        crops: Epochs that one pass over the data counts as (multi-crop distillation), used with ``epochs``.
        max_bits: Leave out weights of more bits. The released code regularizes all, the 8-bit ones too (8).
    """

    def __init__(self, weight: float = 0.01, begin: float = 0.25, reduction: str = "mean", variance: bool = True,
                 epochs: int | None = None, crops: int = 1, max_bits: int = 8) -> None:
        if not weight >= 0:
            raise InputError(f"weight={weight!r}: lambda must not be negative")
        if not 0 <= begin < 1:
            raise InputError(f"begin={begin!r}: give a share of the run in [0, 1)")
        for name, value in (("epochs", epochs), ("crops", crops)):
            if value is not None and value < 1:
                raise InputError(f"{name}={value!r}: give a number of at least 1")
        self.weight, self.begin, self.variance = weight, begin, variance
        self.reduction = check_choice("reduction", reduction, REDUCTIONS)
        self.epochs, self.crops, self.max_bits = epochs, crops, max_bits
        self.value = self.own = self.whole = None

    def on_start(self, state: TrainState) -> None:
        found = [s for s in weight_quantizers(state.model).values() if s.quantizer.bits <= self.max_bits]
        if not found:
            raise InputError(f"max_bits={self.max_bits}: the model has no quantized weight of so few bits")
        self.sites: list[WeightSite] = found
        self.latents = [site.latent for site in found if site.is_parameter]

    def strength(self, time: float, total: float) -> float:
        """lambda at ``time`` out of ``total``, in epochs or steps."""
        return cosine_schedule(time, total, 0.0, self.weight, self.begin)

    def loss(self, state: TrainState) -> Tensor | None:
        if self.epochs is None:
            strength = self.strength(state.step, state.total_steps)
        else:
            strength = self.strength(state.epoch * self.crops, self.epochs)
        self.value = self.own = self.whole = None
        if strength == 0:
            return None
        pairs = [_penalty(site.latent, site.quantizer, self.reduction, self.variance) for site in self.sites]
        total = torch.stack([loss for loss, _ in pairs]).sum()
        self.value = total.detach()
        self.own = strength**2 * torch.stack([n for (_, n), s in zip(pairs, self.sites, strict=True)
                                              if s.is_parameter]).sum()
        return strength * total

    def after_backward(self, state: TrainState) -> None:
        if self.own is not None:
            gradients = [p.grad for p in self.latents if p.grad is not None]
            self.whole = torch.stack(torch._foreach_norm(gradients)).square().sum()

    def metrics(self) -> dict[str, Tensor | float]:
        if self.whole is None:
            return {"bin_regularization": 0.0, "bin_gradient_share": 0.0}
        return {"bin_regularization": self.value, "bin_gradient_share": (self.own / self.whole).sqrt()}
