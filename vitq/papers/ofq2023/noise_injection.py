"""Noise injection into a converged quantized network (OFQ 2023, Table 1).

What is known of the experiment is its design: noise at random positions against noise on the weights within the
boundary range only, with the share of perturbed weights, over ten draws. Distribution and size of the noise are not
known; the protocol here is an assumption.
"""

import copy

import torch
from torch import Tensor, nn

from vitq.convert import weight_quantizers
from vitq.numerics import check_choice
from vitq.oscillation import boundary_range
from vitq.quantizers import Quantizer

KINDS = ("within", "random", "flip")


@torch.no_grad()
def inject_noise(model: nn.Module, x: float, kind: str, seed: int = 0, max_bits: int = 4) -> tuple[nn.Module, dict]:
    r"""A copy of the model with some weights' codes drawn anew; scales stay those of the model.

    With the latent weight's position p on the grid (thresholds at half-integers) and :math:`u \sim U(-x, x)`:

    - ``"within"``: every weight in :math:`BR_x` is put at its threshold plus u, so it lands on either side by chance;
    - ``"random"``: as many weights, drawn uniformly, are moved to p + u, which hardly ever changes a code;
    - ``"flip"``: as many weights, drawn uniformly, go to the neighbouring code behind their nearest threshold.

    Args:
        model: Quantized and converged.
        x: Half width of the range and of the noise, in quantization steps.
        kind: One of ``KINDS``.
        seed: Of positions and noise.
        max_bits: Weights with more bits are left alone.

    Returns:
        The copy, and ``perturbed`` and ``flipped``: shares of the low-bit weights, in percent.
    """
    check_choice("kind", kind, KINDS)
    noisy = copy.deepcopy(model)
    total = perturbed = flipped = 0
    generator = torch.Generator().manual_seed(seed)
    for site in weight_quantizers(noisy).values():
        if site.quantizer.bits > max_bits:
            continue
        latent, quantizer = site.latent.detach(), site.quantizer
        mask = boundary_range(latent, quantizer, x)
        if kind != "within":
            mask = _same_number_anywhere(mask, generator)
        before = quantizer.codes(latent)
        codes = torch.where(mask, _new_codes(latent, quantizer, before, x, kind, generator), before)
        quantizer.freeze(mask, codes)
        total, perturbed = total + mask.numel(), perturbed + int(mask.sum())
        flipped += int((codes != before).sum())
    return noisy, {"perturbed": 100 * perturbed / total, "flipped": 100 * flipped / total}


def _same_number_anywhere(mask: Tensor, generator: torch.Generator) -> Tensor:
    chosen = torch.randperm(mask.numel(), generator=generator)[: int(mask.sum())]
    anywhere = torch.zeros(mask.numel(), dtype=torch.bool)
    anywhere[chosen] = True
    return anywhere.view_as(mask).to(mask.device)


def _new_codes(latent: Tensor, quantizer: Quantizer, before: Tensor, x: float, kind: str,
               generator: torch.Generator) -> Tensor:
    position = quantizer.position(latent)
    threshold = (position - 0.5).round().clamp(quantizer.qmin, quantizer.qmax - 1) + 0.5
    if kind == "flip":
        return (2 * threshold - before).clamp(quantizer.qmin, quantizer.qmax).to(before.dtype)
    noise = (2 * torch.rand(latent.shape, generator=generator) - 1).to(position) * x
    start = threshold if kind == "within" else position
    return (start + noise).round().clamp(quantizer.qmin, quantizer.qmax).to(before.dtype)
