"""From a float timm model to a quantized one: ``quantize(model, spec)``, then ``calibrate(model, batches)``."""

import copy
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from vitq.errors import InputError
from vitq.numerics import check_bits
from vitq.quantizers import QUANTIZERS, Quantizer

if TYPE_CHECKING:
    import pandas

LAYERS = (nn.Conv2d, nn.Linear)
INPUT = "input_quantizer"


@dataclass(frozen=True)
class QuantSpec:
    """What is quantized, and how. ``None`` for a number of bits means floating point.

    The defaults follow Nagel 2022, section 5.1 (the released ``LSQ_paper`` set-up): per-tensor LSQ, first and last
    layer at 8 bit, the input of every layer quantized but the image; residual sums, pooling, normalization and logits
    stay in floating point.

    Args:
        weight_bits: Bits of the weights, 2 to 8 or None.
        act_bits: Bits of the layer inputs (and, in transformers, of query, key, value and probabilities).
        weight: Weight quantizer, a name in ``vitq.quantizers.QUANTIZERS``.
        act: Activation quantizer.
        first_last_bits: Bits of the first and last layer's weights and the last layer's input.
        attention: Quantize the operands of attention's matrix products too.
        weight_options: Further arguments of the weight quantizer, e.g. ``{"channel_axis": 0}``.
        act_options: Further arguments of the activation quantizer.
        overrides: ``{pattern: {"weight_bits": ..., "act_bits": ...}}``; the pattern is matched against the module path
            as a shell would (``"blocks.0.*"``), later entries win, and one that matches nothing is an error.
    """

    weight_bits: int | None = 4
    act_bits: int | None = None
    weight: str = "lsq"
    act: str = "lsq"
    first_last_bits: int | None = 8
    attention: bool = True
    weight_options: dict = field(default_factory=dict)
    act_options: dict = field(default_factory=dict)
    overrides: dict = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("weight_bits", "act_bits", "first_last_bits"):
            if getattr(self, name) is not None:
                check_bits(name, getattr(self, name))
        for name in ("weight", "act"):
            if getattr(self, name) not in QUANTIZERS:
                raise InputError(f"{name}={getattr(self, name)!r}: choose one of {', '.join(QUANTIZERS)}")
        for pattern, entry in self.overrides.items():
            for key, bits in entry.items():
                if key not in ("weight_bits", "act_bits"):
                    raise InputError(f"overrides[{pattern!r}] has {key!r}: only weight_bits and act_bits can be set")
                if bits is not None:
                    check_bits(f"overrides[{pattern!r}][{key!r}]", bits)
        for name in ("weight", "act"):
            try:
                QUANTIZERS[getattr(self, name)](8, **getattr(self, f"{name}_options"))
            except TypeError as error:
                raise InputError(f"{name}_options={getattr(self, f'{name}_options')!r}: {error}") from None

    @classmethod
    def from_dict(cls, values: dict) -> "QuantSpec":
        """Build from a mapping (YAML, checkpoint metadata); an unknown key is refused with the list of valid ones."""
        unknown = set(values) - set(cls.__dataclass_fields__)
        if unknown:
            raise InputError(f"quant has unknown {sorted(unknown)}: choose from {', '.join(cls.__dataclass_fields__)}")
        return cls(**values)

    def to_dict(self) -> dict:
        return asdict(self)

    def weight_quantizer(self, bits: int) -> Quantizer:
        return QUANTIZERS[self.weight](bits, **{"signed": True, **self.weight_options})

    def act_quantizer(self, bits: int, signed: bool | None = None) -> Quantizer:
        return QUANTIZERS[self.act](bits, **{"signed": signed, **self.act_options})


@dataclass(frozen=True)
class WeightSite:
    """One quantized weight: its module path, module and quantizer."""

    name: str
    module: nn.Module
    quantizer: Quantizer

    @property
    def latent(self) -> nn.Parameter:
        """The full-precision weight that the optimizer moves."""
        return self.module.parametrizations.weight.original

    @torch.no_grad()
    def codes(self) -> Tensor:
        """Integer codes of the weight now, same shape as the weight."""
        return self.quantizer.codes(self.latent)

    @property
    def kind(self) -> str:
        """``depthwise``, ``pointwise``, ``conv`` or ``linear``."""
        if isinstance(self.module, nn.Linear):
            return "linear"
        if self.module.groups > 1 and self.module.groups == self.module.in_channels:
            return "depthwise"
        return "pointwise" if self.module.kernel_size == (1, 1) else "conv"


def _quantize_input(module: nn.Module, args: tuple) -> tuple:
    return (getattr(module, INPUT)(args[0]), *args[1:])


def _layer_bits(model: nn.Module, names: list[str], spec: QuantSpec) -> dict[str, tuple[int | None, int | None]]:
    """(weight bits, input bits) of each layer path."""
    heads = model.get_classifier() if hasattr(model, "get_classifier") else None
    heads = heads if isinstance(heads, (tuple, list)) else (heads,)
    last = {n for n in names if any(model.get_submodule(n) is head for head in heads)} or {names[-1]}
    bits = {n: (spec.weight_bits, spec.act_bits) for n in names}
    if spec.first_last_bits is not None:
        act = None if spec.act_bits is None else spec.first_last_bits
        weight = None if spec.weight_bits is None else spec.first_last_bits
        bits |= {n: (weight, act) for n in last}
        bits[names[0]] = (weight, None)
    else:
        bits[names[0]] = (spec.weight_bits, None)  # the image itself stays in floating point
    for pattern, entry in spec.overrides.items():
        hits = [n for n in names if fnmatchcase(n, pattern)]
        if not hits:
            raise InputError(f"overrides: {pattern!r} matches no layer; the layers are {', '.join(names[:4])}, ...")
        for n in hits:
            bits[n] = (entry.get("weight_bits", bits[n][0]), entry.get("act_bits", bits[n][1]))
    return bits


def quantize(model: nn.Module, spec: QuantSpec) -> nn.Module:
    """Return a quantized copy of a float model; ``model`` is left as it was.

    Every convolution and linear layer gets a weight quantizer as a parametrization of ``weight`` and, if activations
    are quantized, an ``input_quantizer``; attention modules get four more (:mod:`vitq.attention`). Weight ranges are
    set at once; activation ranges by :func:`calibrate`.

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
    for name, (weight_bits, act_bits) in _layer_bits(model, names, spec).items():
        module = model.get_submodule(name)
        if weight_bits is not None:
            quantizer = spec.weight_quantizer(weight_bits)
            try:
                quantizer.initialize(module.weight)
            except InputError as error:
                raise InputError(f"model: {name}.weight: {error}") from None
            quantizer.to(module.weight.device)
            parametrize.register_parametrization(module, "weight", quantizer)
        if act_bits is not None:
            module.add_module(INPUT, spec.act_quantizer(act_bits).to(next(module.parameters()).device))
            module.register_forward_pre_hook(_quantize_input)
    if spec.act_bits is not None and spec.attention:
        _quantize_attention(model, spec)
    model.quant_spec = spec
    return model


def _quantize_attention(model: nn.Module, spec: QuantSpec) -> None:
    from vitq import attention

    for module in model.modules():
        if type(module) in attention.ATTENTION:
            signs = {name: None for name in attention.SITES} | {"probability_quantizer": False}
            device = module.qkv.bias.device if module.qkv.bias is not None else next(module.parameters()).device
            attention.attach(module, {n: spec.act_quantizer(spec.act_bits, s).to(device) for n, s in signs.items()})


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


def describe(model: nn.Module) -> "pandas.DataFrame":
    """One row a layer: what is quantized and how; ``float`` where it is not."""
    import pandas

    def text(q: Quantizer | None) -> str:
        if q is None:
            return "float"
        sign = {True: "signed", False: "unsigned", None: "open"}[q.signed]
        return f"{q.bits} bit {sign} {type(q).__name__.lower()}"

    sites, rows = weight_quantizers(model), []
    for name, module in model.named_modules():
        if isinstance(module, LAYERS):
            kind = WeightSite(name, module, None).kind
            weight, act = sites[name].quantizer if name in sites else None, getattr(module, INPUT, None)
            numel = module.parametrizations.weight.original.numel() if name in sites else module.weight.numel()
            rows.append({"layer": name, "kind": kind, "weights": numel, "weight": text(weight), "input": text(act)})
        elif hasattr(module, "query_quantizer"):
            rows.append({"layer": name, "kind": "attention", "weights": 0, "weight": "none",
                         "input": f"q, k, v: {text(module.query_quantizer)}; "
                                  f"probabilities: {text(module.probability_quantizer)}"})
    return pandas.DataFrame(rows)
