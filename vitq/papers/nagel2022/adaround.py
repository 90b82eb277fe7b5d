r"""Binary optimisation of the oscillating weights, after AdaRound, on the task loss (Nagel 2022, Table 3).

All other parameters stay fixed. Each oscillating weight is :math:`s (\lfloor e \rfloor + h(v))` with the rectified
sigmoid :math:`h(v) = \mathrm{clip}(1.2\,\mathrm{sigmoid}(v) - 0.1, 0, 1)` of AdaRound, and
:math:`\sum (1 - |2 h - 1|^\beta)` with falling :math:`\beta` pushes every h to 0 or 1. Unlike AdaRound proper all
layers are optimised together.
"""

import copy
from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from vitq.convert import weight_quantizers
from vitq.errors import InputError
from vitq.papers.nagel2022.stochastic_rounding import with_codes

ZETA, GAMMA = 1.1, -0.1  # stretch of the rectified sigmoid


class SoftRounding(nn.Module):
    """Second parametrization of a weight: replaces the masked entries by a value between their two states.

    Args:
        mask: bool, weight-shaped: the entries to optimise.
        mean_codes: Moving average of the codes; its floor is the lower state and its fraction the start of h.
        scale: Step size, broadcastable to the weight; constant here.
    """

    def __init__(self, mask: Tensor, mean_codes: Tensor, scale: Tensor) -> None:
        super().__init__()
        low = mean_codes.floor()
        share = ((mean_codes - low).clamp(0.01, 0.99) - GAMMA) / (ZETA - GAMMA)
        self.register_buffer("index", mask.flatten().nonzero().squeeze(1))
        self.register_buffer("low", low[mask])
        self.register_buffer("scale", scale.detach().expand_as(mask)[mask].clone())
        self.logits = nn.Parameter(torch.logit(share[mask]))

    def up(self) -> Tensor:
        """h(v), in [0, 1]: 1 is the upper state."""
        return (torch.sigmoid(self.logits) * (ZETA - GAMMA) + GAMMA).clamp(0, 1)

    def forward(self, quantized: Tensor) -> Tensor:
        values = self.scale * (self.low + self.up())
        return quantized.flatten().index_put((self.index,), values).view_as(quantized)

    def penalty(self, beta: float) -> Tensor:
        """Sum of 1 - |2h - 1|^beta."""
        return (1 - (2 * self.up() - 1).abs() ** beta).sum()


def optimize_rounding(
    model: nn.Module,
    masks: dict[str, Tensor],
    mean_codes: dict[str, Tensor],
    batches: Iterable,
    loss: Callable[[Tensor, Tensor], Tensor],
    *,
    steps: int,
    learning_rate: float = 0.01,
    strength: float = 1e-3,
    beta: tuple[float, float] = (20.0, 2.0),
    warmup: float = 0.2,
) -> nn.Module:
    """Choose the state of every oscillating weight by gradient descent on the task loss; return a copy with it.

    Args:
        model: Quantized and trained; batch norm uses its running statistics throughout.
        masks: Oscillating weights by module path.
        mean_codes: Moving average of the codes by module path.
        batches: Training batches (images, labels); at least ``steps`` of them.
        loss: Task loss of (logits, labels).
        steps: Optimizer steps (paper: 10,000 of batch 64).
        learning_rate: Of Adam on the logits.
        strength: Weight of the penalty.
        beta: Exponent of the penalty, from and to, linear after the warm-up.
        warmup: Share of the steps without penalty.

    Raises:
        InputError: No weight is marked, or there are fewer batches than steps.
    """
    if not any(bool(mask.any()) for mask in masks.values()):
        raise InputError("masks marks no weight: there is nothing to optimise")
    soft = copy.deepcopy(model).eval().requires_grad_(False)
    roundings: dict[str, SoftRounding] = {}
    for name, site in weight_quantizers(soft).items():
        if name in masks and masks[name].any():
            rounding = SoftRounding(masks[name], mean_codes[name], site.quantizer.step_size(site.latent))
            roundings[name] = rounding.to(site.latent.device)
            parametrize.register_parametrization(site.module, "weight", roundings[name], unsafe=True)
    parameters = [r.logits for r in roundings.values()]
    optimizer, done = torch.optim.Adam(parameters, lr=learning_rate), 0
    for images, labels in batches:
        if done == steps:
            break
        progress = max(0.0, (done / steps - warmup) / (1 - warmup))
        total = loss(soft(images), labels)
        if done >= warmup * steps:
            exponent = beta[0] + (beta[1] - beta[0]) * progress
            total = total + strength * sum(r.penalty(exponent) for r in roundings.values())
        optimizer.zero_grad(set_to_none=True)
        total.backward()
        optimizer.step()
        done += 1
    if done < steps:
        raise InputError(f"batches ended after {done} of steps={steps}: give more batches or fewer steps")
    codes = {n: mean_codes[n].floor().masked_scatter(masks[n], r.low + r.up().round()) for n, r in roundings.items()}
    return with_codes(model, {n: masks[n] for n in roundings}, codes)
