"""From a float timm model to a quantized one: ``quantize(model, spec)``, then ``calibrate(model, batches)``."""

import copy
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from vitq.errors import InputError
from vitq.quantizers import Quantizer
from vitq.spec import QuantSpec

__all__ = ["QuantSpec", "ComputedWeight", "WeightSite", "activation_quantizers", "calibrate", "quantize",
           "scale_parameters", "weight_quantizers"]

LAYERS = (nn.Conv2d, nn.Linear)
INPUT = "input_quantizer"
HEAD_AXES = {"query": 0, "key": 0, "value": 0, "proj": 1}  # of attention's layers: the axis that the heads divide


class ComputedWeight(nn.Module):
    """Base of layers whose quantized weight is computed from parameters in each forward pass.

    A subclass has ``kind``, ``shape`` and ``latent``, the weight before quantization, differentiable in its parameters.
    """

    kind = "computed"

    def __init__(self, quantizer: Quantizer) -> None:
        super().__init__()
        self.quantizer = quantizer

    @property
    def weight(self) -> Tensor:
        """The quantized weight."""
        return self.quantizer(self.latent)


@dataclass(frozen=True)
class WeightSite:
    """One quantized weight: its module path, module and quantizer."""

    name: str
    module: nn.Module
    quantizer: Quantizer

    @property
    def is_parameter(self) -> bool:
        """Whether the latent weight is a parameter itself, not computed from others (query-key products)."""
        return not isinstance(self.module, ComputedWeight)

    @property
    def latent(self) -> Tensor:
        """The full-precision weight: the parameter that the optimizer moves, or what is computed from such."""
        return self.module.parametrizations.weight.original if self.is_parameter else self.module.latent

    @property
    def shape(self) -> torch.Size:
        return self.latent.shape if self.is_parameter else self.module.shape

    @torch.no_grad()
    def codes(self) -> Tensor:
        """Integer codes of the weight now, same shape as the weight."""
        return self.quantizer.codes(self.latent)

    @property
    def kind(self) -> str:
        """``depthwise``, ``pointwise``, ``conv``, ``linear`` or the kind of a computed weight."""
        if not self.is_parameter:
            return self.module.kind
        if isinstance(self.module, nn.Linear):
            return "linear"
        if self.module.groups > 1 and self.module.groups == self.module.in_channels:
            return "depthwise"
        return "pointwise" if self.module.kernel_size == (1, 1) else "conv"


def _quantize_input(module: nn.Module, args: tuple) -> tuple:
    return (getattr(module, INPUT)(args[0]), *args[1:])


def _first_and_last(model: nn.Module, names: list[str]) -> tuple[str, set[str]]:
    """First layer and last layers; a network that gives features, its classifier being an identity, has no last one."""
    heads = model.get_classifier() if hasattr(model, "get_classifier") else None
    heads = heads if isinstance(heads, (tuple, list)) else (heads,)
    if all(isinstance(head, nn.Identity) for head in heads):
        return names[0], set()
    return names[0], {n for n in names if any(model.get_submodule(n) is head for head in heads)} or {names[-1]}


def _layer_bits(model: nn.Module, names: list[str], spec: QuantSpec,
                sites: list[str]) -> dict[str, tuple[int | None, int | None]]:
    """(weight bits, input bits) of each layer path; ``overrides`` may match ``sites`` instead of layers."""
    first, last = _first_and_last(model, names)
    bits = {n: (spec.weight_bits, spec.act_bits) for n in names}
    image = None if spec.act_bits is None else spec.image_bits
    if spec.first_last_bits is not None:
        act = None if spec.act_bits is None else spec.first_last_bits
        weight = None if spec.weight_bits is None else spec.first_last_bits
        bits |= {n: (weight, act) for n in last}
        bits[first] = (weight, image)
    else:
        bits[first] = (spec.weight_bits, image)
    for pattern, entry in spec.overrides.items():
        hits = [n for n in names if fnmatchcase(n, pattern)]
        if not hits and not any(fnmatchcase(n, pattern) for n in sites):
            raise InputError(f"overrides: {pattern!r} matches no layer; the layers are {', '.join(names[:4])}, ...")
        for n in hits:
            bits[n] = (entry.get("weight_bits", bits[n][0]), entry.get("act_bits", bits[n][1]))
    return bits


def quantize(model: nn.Module, spec: QuantSpec) -> nn.Module:
    """Return a quantized copy of a float model; ``model`` is left as it was.

    Every convolution and linear layer gets a weight quantizer as a parametrization of ``weight`` and, if activations
    are quantized, an ``input_quantizer``; attention modules get more (:mod:`vitq.attention`). Weight ranges are set at
    once; activation ranges by :func:`calibrate`.

    Raises:
        InputError: The model is quantized already, holds NaN, or has a module that cannot be quantized faithfully.
    """
    model = copy.deepcopy(model)
    names = [n for n, m in model.named_modules() if isinstance(m, LAYERS)]
    if not names:
        raise InputError("model has no convolution or linear layer to quantize")
    for name, module in model.named_modules():
        if parametrize.is_parametrized(module):
            raise InputError(f"model: {name} is parametrized already; quantize the float model")
        if isinstance(module, nn.MultiheadAttention):
            raise InputError(f"model: {name} is torch.nn.MultiheadAttention, which hides its layers; use a timm model")
    first, last = _first_and_last(model, names)
    sites, taken = [], set()
    inside_attention = spec.query_key != "fused" or (spec.act_bits is not None and spec.attention)
    if inside_attention:
        from vitq import convert_attention

        if spec.query_key != "fused":
            convert_attention.split(model, spec)
            names = [n for n, m in model.named_modules() if isinstance(m, LAYERS)]
        sites = convert_attention.site_names(model, spec)
    bits = _layer_bits(model, names, spec, sites)
    if inside_attention:
        taken = convert_attention.quantize(model, spec, bits)
    for name, (weight_bits, act_bits) in bits.items():
        if name in taken:
            continue
        module = model.get_submodule(name)
        if weight_bits is not None:
            quantizer = spec.weight_quantizer(weight_bits, name == first or name in last)
            if spec.weight_scales == "head":
                _divide_by_heads(model, name, quantizer)
            set_weight_range(name, module.weight, quantizer)
            parametrize.register_parametrization(module, "weight", quantizer)
        if act_bits is not None and not _shares_input(model, name):
            quantizer = _input_quantizer(model, name, act_bits, spec, "image" if name == first else
                                         "head" if name in last else "linear")
            module.add_module(INPUT, quantizer.to(next(module.parameters()).device))
            module.register_forward_pre_hook(_quantize_input)
    model.quant_spec = spec
    return model


def _shares_input(model: nn.Module, name: str) -> bool:
    """Whether the layer's input is quantized by the attention module around it."""
    parent, _, own = name.rpartition(".")
    return own in ("query", "key", "value") and getattr(model.get_submodule(parent), "form", "fused") != "fused"


def _divide_by_heads(model: nn.Module, name: str, quantizer: Quantizer) -> None:
    """Give the weight of an attention layer one scale a head."""
    parent, _, own = name.rpartition(".")
    heads = getattr(model.get_submodule(parent), "num_heads", None)
    if heads is not None and own in HEAD_AXES:
        quantizer.set_heads(heads, HEAD_AXES[own])


def _input_quantizer(model: nn.Module, name: str, bits: int, spec: QuantSpec, site: str) -> Quantizer:
    module, options = model.get_submodule(name), {}
    if isinstance(module, nn.Conv2d) and site == "linear":
        site = "conv"
    elif site == "linear" and spec.act == "offset_lsq" and spec.activation_scales == "token":
        from vitq.convert_attention import input_site

        options = input_site(model, name)
    after_gelu = name.endswith(".mlp.fc2")
    quantizer = spec.act_quantizer(bits, False if spec.unsigned_gelu and after_gelu else None, site, **options)
    if spec.gelu_offset and after_gelu:
        quantizer.add_offset()
    return quantizer


def set_weight_range(name: str, weight: Tensor, quantizer: Quantizer) -> None:
    """Set the quantizer's range from a weight; an error names the weight."""
    try:
        quantizer.initialize(weight)
    except InputError as error:
        raise InputError(f"model: {name}.weight: {error}") from None
    quantizer.to(weight.device)


@torch.no_grad()
def calibrate(model: nn.Module, batches: Iterable[Tensor]) -> nn.Module:
    """Set every activation range from ``batches`` of images (N, C, H, W); later layers see quantized inputs.

    Runs in evaluation mode without gradients; one batch is what the paper's code uses. With several batches the first
    sets the range and the rest are not needed, so only the first is read.

    Raises:
        InputError: No batch was given, or an activation is NaN or infinite (the layer is named).
    """
    was_training = model.training
    model.eval()
    open_sites = {n: q for n, q in activation_quantizers(model).items()}
    for quantizer in open_sites.values():
        quantizer.initialized = False
    handles = [q.register_forward_pre_hook(_naming_hook(n)) for n, q in open_sites.items()]
    images = next(iter(batches), None)
    if images is None:
        raise InputError("batches is empty: calibration needs at least one batch of images")
    try:
        model(images.to(next(model.parameters()).device))
    finally:
        for handle in handles:
            handle.remove()
        model.train(was_training)
    missing = [n for n, q in open_sites.items() if not q.initialized]
    if missing:
        raise InputError(f"model: {missing[0]} was not reached by the forward pass, so it has no range")
    return model


def _naming_hook(name: str):
    def hook(quantizer: Quantizer, args: tuple) -> None:
        if not torch.isfinite(args[0]).all():
            raise InputError(f"activations of {name} hold NaN or infinity: check the checkpoint and the images")

    return hook


def _sites(model: nn.Module) -> Iterator[WeightSite]:
    for name, module in model.named_modules():
        if isinstance(module, LAYERS) and parametrize.is_parametrized(module, "weight"):
            first = module.parametrizations.weight[0]
            if isinstance(first, Quantizer):
                yield WeightSite(name, module, first)
        elif isinstance(module, ComputedWeight):
            yield WeightSite(name, module, module.quantizer)


def weight_quantizers(model: nn.Module) -> dict[str, WeightSite]:
    """Quantized weights by module path, in model order."""
    return {site.name: site for site in _sites(model)}


def activation_quantizers(model: nn.Module) -> dict[str, Quantizer]:
    """Activation quantizers by path: layer inputs and attention operands."""
    weights = {id(site.quantizer) for site in _sites(model)}
    return {n: m for n, m in model.named_modules() if isinstance(m, Quantizer) and id(m) not in weights}


def scale_parameters(model: nn.Module) -> list[nn.Parameter]:
    """All trained scales, weights' and activations', for an optimizer of their own."""
    return [p for m in model.modules() if isinstance(m, Quantizer) for p in m.parameters(recurse=False)]
