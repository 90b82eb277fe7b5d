"""What the released code of OFQ loses when it converts a model, as a function on the float model (specification, 8)."""

import copy

import torch
from torch import nn

from vitq.errors import InputError


def lose_tensors(model: nn.Module, seed: int = 0, qkv: bool = False) -> tuple[nn.Module, list[str]]:
    """A copy of a float ViT, DeiT or Swin in which the tensors that the released conversion loses are drawn anew.

    These are the weight and bias of every ``attn.proj``, Swin's relative position bias tables, and, in a model without
    query-key reparameterization, ``attn.qkv``. Linear layers get PyTorch's default initialization, tables a truncated
    normal of standard deviation 0.02.

    Args:
        model: Float model of timm's.
        seed: Of the draws.
        qkv: Lose ``attn.qkv`` too.

    Returns:
        The copy, and the names of the lost tensors.
    """
    lost, model = [], copy.deepcopy(model)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for name, module in model.named_modules():
            if name.endswith(("attn.proj",) + (("attn.qkv",) if qkv else ())):
                module.reset_parameters()
                lost += [f"{name}.{parameter}" for parameter, _ in module.named_parameters()]
            table = getattr(module, "relative_position_bias_table", None)
            if isinstance(table, nn.Parameter):
                nn.init.trunc_normal_(table, std=0.02)
                lost.append(f"{name}.relative_position_bias_table")
    if not lost:
        raise InputError("model: it has no attention module named attn, so the released conversion loses nothing")
    return model, lost
