r"""Scale reparameterization of RepQ-ViT: channel-wise ranges behind a LayerNorm become one range (ERQ 2024, 1.4).

The input u of a linear layer behind a LayerNorm is calibrated for each channel, scales s and zero points z. With
:math:`\tilde s = \mathrm{mean}(s)`, :math:`\tilde z = \lfloor\mathrm{mean}(z)\rceil`, :math:`r_1 = s/\tilde s` and
:math:`r_2 = z - \tilde z`,

.. math:: \gamma' = \gamma / r_1, \quad \beta' = (\beta + s r_2)/r_1, \quad W'_{:j} = r_{1,j} W_{:j}, \quad
          c' = c - W (s r_2),

so that the layer sees :math:`u' = (u + s r_2)/r_1` and gives the same output, while one scale and one zero point now
give every channel the integers it had. The released code does not round :math:`\tilde z`, which breaks that and adds a
level (section 9.2 of the specification).

Swin pads windows with zeros *after* the LayerNorm. The padding would no longer be the image of u = 0, so there the
shift :math:`s r_2 / r_1` is added behind the padding, by the layer itself (section 9.5).
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from vitq.errors import InputError
from vitq.quantizers.affine import Affine

SHIFT = "input_shift"


class InputShift(nn.Module):
    """Adds a vector to the last axis of the input."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.register_buffer("value", torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.value


def _shift_input(module: nn.Module, args: tuple) -> tuple:
    return (getattr(module, SHIFT)(args[0]), *args[1:])


@dataclass(frozen=True)
class Pair:
    """A LayerNorm and the linear layer that alone reads it, by module path; ``padded``: zeros may be put between."""

    norm: str
    linear: str
    padded: bool = False


def norm_pairs(model: nn.Module, merge: bool = False) -> list[Pair]:
    """Pairs of a timm ViT, DeiT or Swin: norm1 and qkv, norm2 and fc1 and, if ``merge``, patch merging's.

    Modules are recognized by type and exact path, not by name. A pair that something else reads too, such as a gate in
    attention, is left out.
    """
    from timm.models.swin_transformer import PatchMerging, SwinTransformerBlock
    from timm.models.vision_transformer import Block

    pairs = []
    for name, module in model.named_modules():
        at = f"{name}." if name else ""
        if isinstance(module, (Block, SwinTransformerBlock)):
            if hasattr(module.attn, "qkv") and getattr(module.attn, "gate", None) is None:
                pairs.append(Pair(f"{at}norm1", f"{at}attn.qkv", _is_padded(module)))
            if hasattr(module.mlp, "fc1"):
                pairs.append(Pair(f"{at}norm2", f"{at}mlp.fc1"))
        elif merge and isinstance(module, PatchMerging):
            pairs.append(Pair(f"{at}norm", f"{at}reduction"))
    return [pair for pair in pairs if isinstance(model.get_submodule(pair.norm), nn.LayerNorm)]


def _is_padded(block: nn.Module) -> bool:
    resolution = getattr(block, "input_resolution", None)
    if resolution is None:
        return False
    return getattr(block, "dynamic_mask", False) or any(
        size % window for size, window in zip(resolution, block.window_size, strict=True))


def make_room(norm: nn.LayerNorm, linear: nn.Linear, padded: bool = False) -> None:
    """Give both modules the parameters that reparameterization needs: biases of zero, an affine norm, a shift."""
    like = {"dtype": linear.weight.dtype, "device": linear.weight.device}
    if norm.weight is None:
        norm.weight = nn.Parameter(torch.ones(linear.in_features, **like))
        norm.elementwise_affine = True
    if norm.bias is None:
        norm.bias = nn.Parameter(torch.zeros(linear.in_features, **like))
    if linear.bias is None:
        linear.bias = nn.Parameter(torch.zeros(linear.out_features, **like))
    if padded and not hasattr(linear, SHIFT):
        linear.add_module(SHIFT, InputShift(linear.in_features).to(**like))
        linear.register_forward_pre_hook(_shift_input, prepend=True)


@torch.no_grad()
def reparameterize_layernorm(norm: nn.LayerNorm, linear: nn.Linear, quantizer: Affine, round_zero_point: bool = True,
                             padded: bool = False) -> None:
    """Fold the channel-wise range of ``quantizer`` into a norm and a linear layer, in place; it becomes one range.

    Args:
        norm: LayerNorm over the last axis.
        linear: The only reader of its output. It gets a bias if it has none.
        quantizer: Calibrated for each channel of the linear layer's input.
        round_zero_point: False leaves the mean zero point as it is (released).
        padded: Zeros may be inserted between the two; the shift is then added in front of the linear layer.
    """
    if quantizer.channel_axis is None or quantizer.scale.numel() != linear.in_features:
        raise InputError(f"quantizer has {quantizer.scale.numel()} scales: calibrate one for each of the "
                         f"{linear.in_features} channels")
    make_room(norm, linear, padded)
    scale, zero_point = quantizer.scale.double(), quantizer.zero_point.double()
    mean_scale, mean_zero = scale.mean(), zero_point.mean()
    mean_zero = mean_zero.round() if round_zero_point else mean_zero
    ratio, moved = scale / mean_scale, scale * (zero_point - mean_zero)  # r1, s r2
    shift = moved / ratio
    weight = linear.weight.double()
    linear.bias.copy_(linear.bias.double() - weight @ moved)
    linear.weight.copy_(weight * ratio)
    norm.weight.copy_(norm.weight.double() / ratio)
    if padded:
        norm.bias.copy_(norm.bias.double() / ratio)
        getattr(linear, SHIFT).value.copy_(shift)
    else:
        norm.bias.copy_(norm.bias.double() / ratio + shift)
    quantizer.channel_axis = None
    quantizer.set_grid(mean_scale.reshape(1), mean_zero.reshape(1))
