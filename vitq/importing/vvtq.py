"""Released checkpoints of VVTQ 2023: one scale a tensor, separate query, key and value, an offset behind GELU.

Every quantizer there keeps a table of seven scales (and offsets), for 2 to 8 bits, of which entry b - 2 is in use; its
number of bits as a parameter; and a flag that says that its scales were set. Bits and flag are checked and left out.
The bits of Swin's patch merging can be trained there: they count as 8 where they round to it.

Only the quantizer behind GELU has an offset there. Here all activation quantizers get one, 0 everywhere else, since a
saved configuration cannot tell one site from another; an offset of 0 changes nothing.

In Swin, patch merging belongs to the end of a stage there and to the beginning of the next here. The quantizer of its
image is built and never called, so that its tensors mean nothing and are left out.
"""

import dataclasses
from collections.abc import Callable

import torch
from torch import Tensor, nn

from vitq.convert import QuantSpec, activation_quantizers, weight_quantizers
from vitq.errors import InputError
from vitq.importing.table import STATE, Entry, constant, equal, renamed
from vitq.papers.vvtq2023 import mdq_spec

TABLE = 7  # scales for 2 to 8 bits
SWIN = {"head.fc": "head", **{f"layers.{i}.downsample": f"layers.{i - 1}.downsample" for i in range(1, 4)}}
NAMES = {  # here: there, by the end of a name; those of SWIN by its beginning
    ".parametrizations.weight.original": ".weight",
    ".parametrizations.weight.0.scale": ".alpha",
    "attn.query.parametrizations.weight.original": "attn.proj_q.weight",
    "attn.query.parametrizations.weight.0.scale": "attn.proj_q.alpha",
    "attn.query.bias": "attn.proj_q.bias",
    "attn.key.parametrizations.weight.original": "attn.proj_k.weight",
    "attn.key.parametrizations.weight.0.scale": "attn.proj_k.alpha",
    "attn.key.bias": "attn.proj_k.bias",
    "attn.value.parametrizations.weight.original": "attn.proj_v.weight",
    "attn.value.parametrizations.weight.0.scale": "attn.proj_v.alpha",
    "attn.value.bias": "attn.proj_v.bias",
    "attn.input_quantizer.scale": "attn.quant_input.alpha",
    "attn.query_quantizer.scale": "attn.quant_q.alpha",
    "attn.key_quantizer.scale": "attn.quant_k.alpha",
    "attn.value_quantizer.scale": "attn.quant_v.alpha",
    "attn.probability_quantizer.scale": "attn.quant_attn.alpha",
    "attn.proj.input_quantizer.scale": "attn.quant_output.alpha",
    "mlp.fc1.input_quantizer.scale": "mlp.quant1.alpha",
    "mlp.fc2.input_quantizer.scale": "mlp.quant2.alpha",
    "mlp.fc2.input_quantizer.offset": "mlp.quant2.beta",
    "patch_embed.proj.input_quantizer.scale": "patch_embed.quant.alpha",
    "head.input_quantizer.scale": "quant.alpha",
    "head.fc.input_quantizer.scale": "quant.alpha",
    # what has no tensor here: beside each table of scales its bits and its flag, and two buffers of Swin
    ".bits": ".nbits",
    ".initialized": ".init_state",
    ".relative_position_index": ".relative_position_index",
    ".attn_mask": ".attn_mask",
    **SWIN,
}
UNSIGNED = ("probability_quantizer", "mlp.fc2.input_quantizer")


def spec(model: nn.Module, bits: int) -> QuantSpec:
    """What the released networks quantize, scales a layer, with an offset at each activation."""
    return dataclasses.replace(mdq_spec(model, bits, bits), act_options={"offset": True})


def entries(model: nn.Module, bits: int, names: dict[str, str]) -> list[Entry]:
    """All tensors of a released state dict of this network.

    Args:
        model: Quantized and calibrated.
        bits: Of weights and activations.
        names: `NAMES`, or what a YAML file makes of them.
    """
    names, swin = _names(model, names), hasattr(model, "layers")
    sites = weight_quantizers(model)
    widths = {f"{name}.parametrizations.weight.0": site.quantizer.bits for name, site in sites.items()}
    widths |= {name: quantizer.bits for name, quantizer in activation_quantizers(model).items()}
    found = []
    for key, value in model.state_dict().items():
        owner = key.rpartition(".")[0]
        if key.endswith(STATE) or (key.endswith(".offset") and not key.endswith("mlp.fc2.input_quantizer.offset")):
            continue
        there = renamed(key, names)
        if owner not in widths:
            found.append(Entry(there, tuple(value.shape), key))
            continue
        found.append(Entry(there, (TABLE,), key, take=_entry(widths[owner])))
        if key.endswith(".scale"):
            found += _beside(there, names, widths[owner])
    return found + (_swin(model, names) if swin else [])


def finish(model: nn.Module, left_out: dict[str, Tensor], names: dict[str, str]) -> None:
    """Set the signs of all grids, and the offsets that the released network has not."""
    for name, quantizer in activation_quantizers(model).items():
        quantizer.signed, quantizer.initialized = not name.endswith(UNSIGNED), True


def _names(model: nn.Module, names: dict[str, str]) -> dict[str, str]:
    """Of a ViT, the names without those of Swin's modules."""
    return names if hasattr(model, "layers") else {name: names[name] for name in names if name not in SWIN}


def _entry(bits: int) -> Callable[[Tensor], Tensor]:
    return lambda table: table[bits - 2 : bits - 1]


def _beside(there: str, names: dict[str, str], bits: int, called: bool = True) -> list[Entry]:
    """Bits and flag of the quantizer whose table of scales is called `there`."""
    stem = there.rpartition(".")[0]
    flag = constant(1, "the scales were never set") if called else None
    return [Entry(stem + names[".bits"], (1,), reason="number of bits, as asked for", take=_rounds_to(bits)),
            Entry(stem + names[".initialized"], (1,), reason="flag that the scales were set", take=flag,
                  parameter=False)]


def _rounds_to(bits: int) -> Callable[[Tensor], Tensor]:
    def take(given: Tensor) -> Tensor:
        if round(given.item()) != bits:
            raise InputError(f"holds {given.item():g} bits, not {bits}")
        return given
    return take


def _swin(model: nn.Module, names: dict[str, str]) -> list[Entry]:
    image = renamed("patch_embed.proj.input_quantizer.scale", names)
    idle = "quantizer of the image, built there and never called"
    found = [Entry(image, (TABLE,), reason=idle)]
    found += [dataclasses.replace(entry, reason=idle) for entry in _beside(image, names, 8, called=False)]
    for name, module in model.named_modules():
        for buffer, why in (("relative_position_index", "relative positions are counted otherwise"),
                            ("attn_mask", "windows are shifted otherwise")):
            own = getattr(module, buffer, None)
            if isinstance(own, Tensor):
                found.append(Entry(renamed(f"{name}.{buffer}", names), tuple(own.shape), parameter=False,
                                   reason="buffers that follow from the windows, the same here",
                                   take=equal(torch.as_tensor(own), why)))
    return found
