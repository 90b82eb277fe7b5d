"""Layers as matrices: rows of inputs, outputs and weights, convolutions by unfolding their input."""

import torch.nn.functional as F
from torch import Tensor, nn


def kind(module: nn.Module, x: Tensor) -> str:
    """``"linear"``, ``"vector"`` (a linear layer on 2-D input, such as a classifier) or ``"conv"``."""
    if isinstance(module, nn.Conv2d):
        return "conv"
    return "vector" if x.dim() == 2 else "linear"


def groups(module: nn.Module) -> int:
    """Groups of a convolution, 1 for a linear layer."""
    return module.groups if isinstance(module, nn.Conv2d) else 1


def weight_rows(module: nn.Module, weight: Tensor) -> Tensor:
    """(groups, rows, I)."""
    number = groups(module)
    return weight.reshape(number, len(weight) // number, -1)


def bias_rows(module: nn.Module, bias: Tensor | None) -> Tensor | None:
    """(groups, rows) or None."""
    return None if bias is None else bias.reshape(groups(module), -1)


def input_rows(module: nn.Module, x: Tensor) -> Tensor:
    """The input as (groups, N, I): a view of tokens, or one row for each output position of a convolution."""
    if isinstance(module, nn.Linear):
        return x.reshape(1, -1, x.shape[-1])
    kernel, stride, dilation = module.kernel_size, module.stride, module.dilation
    padding = module.padding
    if type(module).__name__ == "Conv2dSame":
        from timm.layers.padding import pad_same

        x, padding = pad_same(x, kernel, stride, dilation), 0
    elif isinstance(padding, str):
        x = F.pad(x, module._reversed_padding_repeated_twice)
        padding = 0
    elif module.padding_mode != "zeros":
        x, padding = F.pad(x, module._reversed_padding_repeated_twice, mode=module.padding_mode), 0
    columns = F.unfold(x, kernel, dilation, padding, stride)  # (B, C * kh * kw, positions)
    columns = columns.unflatten(1, (module.groups, -1))  # (B, groups, I, positions)
    return columns.permute(1, 0, 3, 2).flatten(1, 2)  # (groups, N, I)


def output_rows(module: nn.Module, y: Tensor) -> Tensor:
    """The output as (groups, N, rows)."""
    if isinstance(module, nn.Linear):
        return y.reshape(1, -1, y.shape[-1])
    y = y.flatten(2).unflatten(1, (module.groups, -1))  # (B, groups, rows, positions)
    return y.permute(1, 0, 3, 2).flatten(1, 2)
