"""Would other roundings of the oscillating weights have been better? (Nagel 2022, section 2.3.2 and Table 3)"""

import copy

import torch
from torch import Tensor, nn

from vitq.convert import weight_quantizers
from vitq.errors import InputError


@torch.no_grad()
def sample_rounding(mean_codes: Tensor, generator: torch.Generator) -> Tensor:
    r"""Draw each code from its two states in proportion to the time that it spent there.

    With the moving average e of the codes: :math:`\lfloor e \rfloor + 1` with probability
    :math:`e - \lfloor e \rfloor`, else :math:`\lfloor e \rfloor`. Returns float codes of the same shape.
    """
    low = mean_codes.floor()
    draw = torch.rand(mean_codes.shape, generator=generator).to(mean_codes.device)
    return low + (draw < mean_codes - low)


def with_codes(model: nn.Module, masks: dict[str, Tensor], codes: dict[str, Tensor]) -> nn.Module:
    """A copy of ``model`` whose weights under ``masks`` are held at ``codes`` (both by module path, weight-shaped).

    Weights that were frozen before keep their integer unless the mask covers them.
    """
    model = copy.deepcopy(model)
    sites = weight_quantizers(model)
    for name, mask in masks.items():
        if name not in sites:
            raise InputError(f"masks names {name!r}, which is no quantized layer of the model")
        quantizer = sites[name].quantizer
        held = mask if quantizer.frozen is None else mask | quantizer.frozen
        values = codes[name].to(torch.int8)
        if quantizer.frozen is not None:
            values = torch.where(mask, values, quantizer.frozen_codes)
        quantizer.freeze(held, values.clamp(quantizer.qmin, quantizer.qmax))
    return model


def sample_model(model: nn.Module, masks: dict[str, Tensor], mean_codes: dict[str, Tensor], seed: int) -> nn.Module:
    """A copy of ``model`` with every weight under ``masks`` rounded stochastically by :func:`sample_rounding`."""
    generator = torch.Generator().manual_seed(seed)
    codes = {name: sample_rounding(mean_codes[name], generator) for name in masks}
    return with_codes(model, masks, codes)
