"""Put ERQ's quantizers into a timm model: inputs of layers, attention operands, weights."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from vitq.convert import INPUT, LAYERS, _quantize_input, activation_quantizers
from vitq.errors import InputError
from vitq.papers.erq2024.options import ErqOptions
from vitq.papers.erq2024.repq import Pair, make_room, norm_pairs, reparameterize_layernorm
from vitq.quantizers.affine import Affine
from vitq.quantizers.base import Quantizer
from vitq.quantizers.dual_uniform import DualUniform
from vitq.quantizers.log_sqrt2 import LogSqrt2


def layer_names(model: nn.Module) -> list[str]:
    """Paths of the linear layers and convolutions, in model order."""
    return [name for name, module in model.named_modules() if isinstance(module, LAYERS)]


def prepare(model: nn.Module, options: ErqOptions) -> nn.Module:
    """A copy of a float model with uncalibrated activation quantizers; weights stay in floating point.

    Raises:
        InputError: The model has no layer to quantize, is quantized already, or hides its layers.
    """
    names = layer_names(model)
    if not names:
        raise InputError("model has no convolution or linear layer to quantize")
    for name, module in model.named_modules():
        if parametrize.is_parametrized(module) or isinstance(module, Quantizer):
            raise InputError(f"model: {name} is quantized already; give the float model")
        if isinstance(module, nn.MultiheadAttention):
            raise InputError(f"model: {name} is torch.nn.MultiheadAttention, which hides its layers; use a timm model")
    model = copy.deepcopy(model).eval().requires_grad_(False)
    if options.act_bits is not None:
        _attach_attention(model, options)
    channelwise = {pair.linear for pair in pairs(model, options)}
    for name in names:
        bits = options.image_bits if name == names[0] else options.act_bits
        if bits is not None:
            module = model.get_submodule(name)
            axis = -1 if name in channelwise else None
            module.add_module(INPUT, Affine(bits, axis, options.act_percentiles).to(module.weight))
            module.register_forward_pre_hook(_quantize_input)
    model.erq_options = options
    return model


def pairs(model: nn.Module, options: ErqOptions) -> list[Pair]:
    """What is reparameterized under these options."""
    if options.act_bits is None or not options.reparameterize:
        return []
    return norm_pairs(model, options.merge)


def _attach_attention(model: nn.Module, options: ErqOptions) -> None:
    from vitq import attention, convert_attention

    for _, module in convert_attention.modules(model):
        like = module.proj.weight
        quantizers = {name: Affine(options.act_bits, None, options.act_percentiles).to(like)
                      for name in ("query", "key", "value", "probability")}
        if options.probability == "log_sqrt2":
            quantizers["probability"] = LogSqrt2(options.act_bits, options.act_percentiles).to(like)
        attention.attach(module, "fused", quantizers)


@torch.no_grad()
def calibrate(model: nn.Module, images: Tensor) -> None:
    """Set all activation ranges in one pass; later layers see quantized inputs.

    Args:
        model: From :func:`prepare`.
        images: (N, C, H, W), on the model's device.
    """
    found, at = activation_quantizers(model), [""]
    handles = [q.register_forward_pre_hook(lambda *_, name=name: at.__setitem__(0, name)) for name, q in found.items()]
    try:
        model(images)
    except InputError as error:
        raise InputError(f"{at[0]}: {error}; check the weights and the images") from None
    finally:
        for handle in handles:
            handle.remove()
    missing = [name for name, q in found.items() if not q.initialized]
    if missing:
        raise InputError(f"model: {missing[0]} was not reached by the forward pass, so it has no range")


def reparameterize(model: nn.Module, options: ErqOptions) -> None:
    """Fold all channel-wise input ranges of a calibrated model, in place."""
    for pair in pairs(model, options):
        linear = model.get_submodule(pair.linear)
        reparameterize_layernorm(model.get_submodule(pair.norm), linear, getattr(linear, INPUT),
                                 options.round_zero_point, pair.padded)


def weight_quantizer(name: str, module: nn.Module, options: ErqOptions) -> Affine:
    """An uncalibrated weight quantizer: one grid for each output channel, two for qkv and fc1 under ``dual``."""
    if options.dual and name.endswith((".attn.qkv", ".mlp.fc1")):
        return DualUniform(options.weight_bits, options.weight_percentiles).to(module.weight)
    return Affine(options.weight_bits, 0, options.weight_percentiles).to(module.weight)


def rebuild(model: nn.Module, options: ErqOptions) -> nn.Module:
    """The quantized structure of a float model, ready to take the state of one that was quantized before."""
    model = prepare(model, options)
    for pair in pairs(model, options):
        linear = model.get_submodule(pair.linear)
        make_room(model.get_submodule(pair.norm), linear, pair.padded)
        getattr(linear, INPUT).channel_axis = None
    if options.weight_bits is not None:
        for name in layer_names(model):
            module = model.get_submodule(name)
            quantizer = weight_quantizer(name, module, options)
            quantizer.initialize(module.weight)
            parametrize.register_parametrization(module, "weight", quantizer)
    return model


@contextmanager
def floating(model: nn.Module) -> Iterator[None]:
    """Let activations pass unquantized inside this block."""
    found = list(activation_quantizers(model).values())
    for quantizer in found:
        quantizer.forward = _pass
    try:
        yield
    finally:
        for quantizer in found:
            del quantizer.forward


def _pass(x: Tensor) -> Tensor:
    return x
