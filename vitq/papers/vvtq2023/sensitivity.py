"""Leave-one-out sensitivity of modules (VVTQ 2023, first level of variation): quantize all but one group and compare.

Groups: ``"ffn"``, ``"mhsa"``, ``"query"``, ``"key"``, ``"value"`` and ``"head 0"``, ``"head 1"``, ... Leaving one out
frees its weights, the activations that feed them, and the operands of attention's products that it makes:

- ffn: both layers and their inputs.
- mhsa: query, key, value, projection, the inputs of all four, and the four operands (query, key, value, probabilities).
- query, key or value: the layer, its input (the other two keep it quantized, with a quantizer each) and its operand.
- head: its rows of query, key and value, its columns of the projection, their input, and its share of the operands. The
  input of query, key and value, which all heads read, stays quantized.

All networks have separate query, key and value layers, so that they differ in the group alone. What exactly the paper
freed with each group is not known.
"""

import copy
import re
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from vitq.convert import INPUT, QuantSpec, _quantize_input, calibrate, quantize, weight_quantizers
from vitq.errors import InputError
from vitq.papers.vvtq2023.parts import QUERY_KEY_VALUE, Part, parts
from vitq.quantizers import Quantizer
from vitq.train.evaluation import evaluation_mode

if TYPE_CHECKING:
    import pandas

MODULES = ("ffn", "mhsa", *QUERY_KEY_VALUE)
OPERANDS = (*QUERY_KEY_VALUE, "probability")
FLOAT = {"weight_bits": None, "act_bits": None}


def groups_of(model: nn.Module) -> list[str]:
    """The groups of a network: modules, then single heads where every layer has equally many."""
    heads = {part.heads for part in parts(model) if part.heads}
    if not heads:
        raise InputError("model has no attention, so it has none of the groups " + ", ".join(MODULES))
    return [*MODULES, *(f"head {h}" for h in range(heads.pop() if len(heads) == 1 else 0))]


def spec_without(model: nn.Module, spec: QuantSpec, group: str | None, block: str | None = None) -> QuantSpec:
    """The spec with overrides that leave a group of modules in floating point; a plain configuration for training.

    It cannot express single heads, nor that query, key or value alone lose the input that they share: use
    :func:`leave_one_out` for these.

    Args:
        model: The float network.
        spec: What is quantized otherwise.
        group: One of ``MODULES``; None or a head leaves nothing out.
        block: Only in this part of the network, e.g. ``"blocks.0"``.

    Raises:
        InputError: An unknown group, or none of it in ``block``.
    """
    found, overrides = parts(model), dict(spec.overrides)
    kinds = {"ffn": ("ffn",), "mhsa": (*QUERY_KEY_VALUE, "projection")}.get(group, (group,))
    for part in inside(found, block):
        if part.kind not in kinds:
            continue
        overrides[part.name] = FLOAT if group in ("ffn", "mhsa") else {"weight_bits": None}
        attention = part.name.rpartition(".")[0]
        if spec.act_bits is not None and spec.attention:
            operands = {"ffn": (), "mhsa": OPERANDS}.get(group, (group,))
            overrides |= {f"{attention}.{name}_quantizer": {"act_bits": None} for name in operands}
    return replace(spec, query_key="separate", overrides=overrides)


def inside(found: list[Part], block: str | None) -> list[Part]:
    """The parts in a part of the network, all if `block` is None."""
    kept = [p for p in found if block is None or p.name.startswith(f"{block}.")]
    if not kept:
        raise InputError(f"block={block!r}: no layer's path starts with it; the last one is {found[-1].name}")
    return kept


def leave_one_out(model: nn.Module, spec: QuantSpec, group: str | None, block: str | None = None) -> nn.Module:
    """A quantized copy of a network with one group left in floating point; activation ranges are still to be set.

    Args:
        model: The float network, with timm's attention.
        spec: What is quantized otherwise; its ``query_key`` becomes ``"separate"``.
        group: One of :func:`groups_of`, or None for nothing left out.
        block: Only in this part of the network, e.g. ``"blocks.0"``.
    """
    if group is not None and group not in groups_of(model):
        raise InputError(f"group={group!r}: choose one of {', '.join(groups_of(model))}")
    quantized = quantize(model, spec_without(model, spec, group, block))
    attentions = {p.name.rpartition(".")[0]: p for p in inside(parts(quantized), block) if p.heads}
    for name, part in attentions.items():
        attention = quantized.get_submodule(name)
        if group in QUERY_KEY_VALUE:
            _free_input(attention, group)
        elif group is not None and group.startswith("head"):
            change_head(attention, int(re.sub(r"\D", "", group)), part.heads, _keep_float)
    return quantized


def _free_input(attention: nn.Module, group: str) -> None:
    """The shared input quantizer becomes one each of the two layers that keep it."""
    shared, attention.input_quantizer = attention.input_quantizer, None
    for name in QUERY_KEY_VALUE:
        if shared is not None and name != group:
            layer = getattr(attention, name)
            layer.add_module(INPUT, copy.deepcopy(shared))
            layer.register_forward_pre_hook(_quantize_input)


def change_head(attention: nn.Module, head: int, heads: int, change: Callable[[nn.Module | None, tuple], None]
                ) -> None:
    """Call ``change(quantizer, index of the head in what it quantizes)`` for all that a head has."""
    width = attention.proj.weight.shape[1] // heads
    own, everything = slice(head * width, (head + 1) * width), slice(None)
    for name in QUERY_KEY_VALUE:
        change(_weight_quantizer(getattr(attention, name)), (own,))
    change(_weight_quantizer(attention.proj), (everything, own))
    change(getattr(attention.proj, INPUT, None), (..., own))
    for name in OPERANDS:
        change(getattr(attention, f"{name}_quantizer", None), (everything, slice(head, head + 1)))


def _weight_quantizer(layer: nn.Module) -> nn.Module | None:
    return layer.parametrizations.weight[0] if hasattr(layer, "parametrizations") else None


def _keep_float(quantizer: nn.Module | None, part: tuple) -> None:
    """Let an indexed part of what a quantizer is given pass unchanged; ``float_part`` tells remedies to skip it."""
    if isinstance(quantizer, Quantizer):
        quantizer.float_part = part
        quantizer.register_forward_hook(_restore)


def _restore(quantizer: Quantizer, args: tuple, output: Tensor) -> Tensor:
    output = output.clone()
    output[quantizer.float_part] = args[0][quantizer.float_part]
    return output


def inventory(model: nn.Module) -> dict[str, float]:
    """What a quantized network quantizes: weights, layer inputs and attention operands; single heads as fractions."""
    sites, found = weight_quantizers(model), parts(model)
    count = {"weights": 0, "inputs": 0.0, "operands": 0.0}
    for part in found:
        layer, heads = model.get_submodule(part.layer), part.heads or 1
        if part.name in sites:
            latent, free = sites[part.name].latent, getattr(sites[part.name].quantizer, "float_part", None)
            count["weights"] += latent.numel() - (0 if free is None else latent[free].numel())
        around = model.get_submodule(part.name.rpartition(".")[0]) if part.kind in QUERY_KEY_VALUE else None
        count["inputs"] += _share(getattr(layer, INPUT, None) or getattr(around, INPUT, None), heads)
    attentions = {part.name.rpartition(".")[0]: part.heads for part in found if part.heads}
    for name, heads in attentions.items():
        attention = model.get_submodule(name)
        count["operands"] += sum(_share(getattr(attention, f"{n}_quantizer", None), heads) for n in OPERANDS)
    return count


def _share(quantizer: nn.Module | None, heads: int) -> float:
    if not isinstance(quantizer, Quantizer):
        return 0.0
    return 1 - 1 / heads if hasattr(quantizer, "float_part") else 1.0


def outputs(model: nn.Module, images: Tensor, batch_size: int = 32) -> Tensor:
    """Logits or features (N, C) in evaluation mode."""
    device = next(model.parameters()).device
    with evaluation_mode(model):
        return torch.cat([model(some.to(device)).float().cpu() for some in images.split(batch_size)])


def agreement(a: Tensor, b: Tensor, features: bool = False) -> float:
    """Share of the images with the same largest logit, or with the same nearest other image by cosine of features."""
    if features:
        a, b = ((y @ y.T).fill_diagonal_(-2) for y in (nn.functional.normalize(y) for y in (a, b)))
    return (a.argmax(1) == b.argmax(1)).double().mean().item()


def compared(now: Tensor, expected: Tensor, features: bool = False) -> dict[str, float]:
    """Signal-to-quantization-noise ratio in decibels, and agreement, of two outputs (N, C)."""
    noise = (now - expected).double().square().sum()
    return {"sqnr_db": 10 * torch.log10(expected.double().square().sum() / noise).item(),
            "agreement": agreement(now, expected, features)}


def leave_one_out_sensitivity(model: nn.Module, images: Tensor, spec: QuantSpec, groups: list[str] | None = None,
                              calibration: Tensor | None = None, block: str | None = None,
                              batch_size: int = 32) -> "pandas.DataFrame":
    """Quantize without training, leave one group out at a time, and compare the output with the full-precision one.

    Args:
        model: A float transformer of timm's, with a classifier or without (then its features are compared).
        images: Normalised images (N, 3, H, W).
        spec: What is quantized.
        groups: By default :func:`groups_of`.
        calibration: Images that set the activation ranges; by default the first ``batch_size`` of ``images``.
        block: Leave the groups out in this part of the network only.
        batch_size: Images at a time.

    Returns:
        One row a network, the first with all quantized: group; freed_weights, freed_inputs (of layers) and
        freed_operands; sqnr_db, the signal-to-quantization-noise ratio of the output in decibels; agreement, see
        :func:`agreement`; gain_db over the first row, and the same for each million freed weights.
    """
    import pandas

    calibration = images[:batch_size] if calibration is None else calibration
    features = not any(part.kind == "classifier" for part in parts(model))
    expected, rows, whole = outputs(model, images, batch_size), [], None
    for group in (None, *(groups_of(model) if groups is None else groups)):
        quantized = calibrate(leave_one_out(model, spec, group, block), [calibration])
        now, held = outputs(quantized, images, batch_size), inventory(quantized)
        row = compared(now, expected, features)
        whole = whole or (row, held)
        freed = {f"freed_{key}": value - held[key] for key, value in whole[1].items()}
        gain = row["sqnr_db"] - whole[0]["sqnr_db"]
        per_million = gain / (freed["freed_weights"] / 1e6) if freed["freed_weights"] else float("nan")
        rows.append({"group": group or "nothing"} | freed | row | {"gain_db": gain, "gain_db_per_million": per_million})
    return pandas.DataFrame(rows)
