r"""Released checkpoints of OFQ 2023: StatsQ weights, reparameterized query and key, LSQ activations with offsets.

Shapes are those of the specification: one scale per token position, per channel of the value, and per (token, head) of
:math:`W_{qk} X` at index n H + h; offsets of that product at h C + c; one offset map for all channels of the image.
The Swin transformer there is torchvision's, whose stages are counted through (`features.0` to `features.7`).

Of what the file holds, four things have no counterpart here:

- StatsQ's clip constant, saved with each such weight, is always 2 and is left out after it was checked;
- the index of Swin's relative positions follows from the window, and is compared with ours;
- the sign of the image's grid becomes a state of its quantizer;
- the released patch merging has a bias, which timm's has not. With :math:`\hat W` of full row rank it can be moved in
  front of the layer: :math:`\hat W (\hat x + \beta_{post}) + b = \hat W (\hat x + \beta_{post} + \hat W^+ b)`.

The offset behind the product :math:`W_{qk} X` cancels in the softmax, but it is mapped as any other.
"""

import torch
from torch import Tensor, nn

from vitq.convert import INPUT, QuantSpec, activation_quantizers, weight_quantizers
from vitq.errors import InputError
from vitq.importing.table import STATE, Entry, constant, equal, renamed
from vitq.papers.ofq2023 import ofq_spec
from vitq.quantizers import StatsQ
from vitq.quantizers.offset_lsq import FLOOR

SWIN = {
    "patch_embed.proj": "features.0.0", "patch_embed.norm": "features.0.2", "head.fc": "head",
    **{f"layers.{i}.blocks": f"features.{2 * i + 1}" for i in range(4)},
    **{f"layers.{i}.downsample": f"features.{2 * i}" for i in range(1, 4)},
}  # fmt: skip
NAMES = {  # here: there, by the end of a name; those of SWIN by its beginning
    ".parametrizations.weight.original": ".weight",
    ".parametrizations.weight.0.scale": ".lsqw_fn.s",
    ".input_quantizer.scale": ".input_quant_fn.s",
    ".input_quantizer.pre_offset": ".move_b4.bias",
    ".input_quantizer.post_offset": ".move_aft.bias",
    "attn.query_key.query.weight": "attn.q.weight",
    "attn.query_key.key.weight": "attn.k.weight",
    "attn.value.parametrizations.weight.original": "attn.v.weight",
    "attn.value.bias": "attn.v.bias",
    "attn.input_quantizer.scale": "attn.quant_x_4_qkv.input_quant_fn.s",
    "attn.input_quantizer.pre_offset": "attn.quant_x_4_qkv.move_b4.bias",
    "attn.input_quantizer.post_offset": "attn.quant_x_4_qkv.move_aft.bias",
    "attn.query_key_quantizer.scale": "attn.quan_a_qkx_fn.s",
    "attn.query_key_quantizer.pre_offset": "attn.move_qkx_b4.bias",
    "attn.query_key_quantizer.post_offset": "attn.move_qkx_aft.bias",
    "attn.value_quantizer.scale": "attn.quan_a_v_fn.s",
    "attn.value_quantizer.pre_offset": "attn.move_v_b4.bias",
    "attn.value_quantizer.post_offset": "attn.move_v_aft.bias",
    "attn.probability_quantizer.scale": "attn.quan_a_softmax_fn.s",
    # what has no tensor here
    ".clip": ".statsq_fn.clip_val",
    "attn.value.clip": "attn.v_quant.clip_val",
    "attn.query_key.clip": "attn.qk_quant.clip_val",
    ".input_quantizer.signed": ".input_quant_fn.signed",
    ".relative_position_index": ".relative_position_index",
    ".reduction.bias": ".reduction.bias",
    **SWIN,
}
CLIP = 2.0
UNSIGNED = ("probability_quantizer", "mlp.fc2.input_quantizer")


def spec(model: nn.Module, bits: int) -> QuantSpec:
    """What the released networks quantize; they have no query bias."""
    return ofq_spec(bits, query_bias=False)


def entries(model: nn.Module, bits: int, names: dict[str, str]) -> list[Entry]:
    """All tensors of a released state dict of this network.

    Args:
        model: Quantized and calibrated.
        bits: Of weights and activations.
        names: `NAMES`, or what a YAML file makes of them.
    """
    names = _names(model, names)
    found = [Entry(renamed(key, names), tuple(value.shape), key,
                   take=_floored if key.endswith(".parametrizations.weight.0.scale") else None)
             for key, value in model.state_dict().items() if not key.endswith(STATE)]
    for name, site in weight_quantizers(model).items():
        if isinstance(site.quantizer, StatsQ):
            found.append(Entry(renamed(f"{name}.clip", names), (1,), reason=f"StatsQ's clip constant, always {CLIP:g}",
                               take=constant(CLIP, "the constant that StatsQ clips at half of")))
    for name, module in model.named_modules():
        if name.endswith(".reduction"):
            found.append(Entry(renamed(f"{name}.bias", names), (module.out_features,),
                               reason="bias of patch merging, moved into the offset in front of it"))
        index = getattr(module, "relative_position_index", None)
        if isinstance(index, Tensor):
            found.append(Entry(renamed(f"{name}.relative_position_index", names), (index.numel(),), parameter=False,
                               reason="index of relative positions, the same here",
                               take=equal(index, "relative positions are counted otherwise")))
    return [*found, _sign(names)]


def finish(model: nn.Module, left_out: dict[str, Tensor], names: dict[str, str]) -> None:
    """Set the signs of all grids, and move the biases of patch merging in front of it."""
    names = _names(model, names)
    for name, quantizer in activation_quantizers(model).items():
        quantizer.signed, quantizer.initialized = not name.endswith(UNSIGNED), True
    image = getattr(model.patch_embed.proj, INPUT)
    image.signed = bool(left_out[_sign(names).key] == 1)
    for name, module in model.named_modules():
        if name.endswith(".reduction"):
            _move_bias(name, module, left_out[renamed(f"{name}.bias", names)])


def _names(model: nn.Module, names: dict[str, str]) -> dict[str, str]:
    """Of a ViT, the names without those of Swin's modules."""
    return names if hasattr(model, "layers") else {name: names[name] for name in names if name not in SWIN}


def _floored(scale: Tensor) -> Tensor:
    """A weight's scale as the released code uses it."""
    return scale.clamp_min(FLOOR)


def _sign(names: dict[str, str]) -> Entry:
    return Entry(renamed("patch_embed.proj.input_quantizer.signed", names), (1,), parameter=False, take=_zero_or_one,
                 reason="sign of the image's grid, set in its quantizer")


def _zero_or_one(value: Tensor) -> Tensor:
    if value.item() not in (0, 1):
        raise InputError(f"holds {value.item():g}, not 0 or 1")
    return value


@torch.no_grad()
def _move_bias(name: str, layer: nn.Linear, bias: Tensor) -> None:
    weight = layer.weight.double()  # quantized, (out, in)
    offset = torch.linalg.lstsq(weight, bias.double().unsqueeze(1), driver="gelsd").solution.squeeze(1)
    if not torch.allclose(weight @ offset, bias.double(), atol=1e-6 * float(bias.abs().max()) + 1e-12):
        raise InputError(f"the bias of {name} cannot be moved: its quantized weight lacks full row rank")
    getattr(layer, INPUT).post_offset += offset.to(bias.dtype)
