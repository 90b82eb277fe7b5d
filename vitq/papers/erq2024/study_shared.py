"""Several methods on one network at the price of little more than one: they share ranges, moments and corrections.

:func:`prepared` does what all methods with the same activations have in common. :func:`quantized` then gives, for one
set of options, the network that :func:`vitq.papers.erq2024.methods.run` would give, bit for bit; what an earlier call
on the same preparation computed for a layer (its Aqer correction, its grid) is not computed again.
"""

import copy
import time
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from vitq.papers.erq2024 import rows
from vitq.papers.erq2024.aqer import aqer, ridge_strength
from vitq.papers.erq2024.collect import LayerData, collect, rebatch
from vitq.papers.erq2024.correct import refines
from vitq.papers.erq2024.gptq import gptq
from vitq.papers.erq2024.grid import Grid
from vitq.papers.erq2024.moments import Moments, with_bias
from vitq.papers.erq2024.options import ErqOptions
from vitq.papers.erq2024.prepare import calibrate, layer_names, prepare, reparameterize, weight_quantizer
from vitq.papers.erq2024.wqer import wqer
from vitq.quantizers.affine import Affine

METHOD_OPTIONS = {  # as in `vitq.papers.erq2024.METHODS`
    "nearest": {"aqer": False, "weights": "nearest", "reparameterize": False},
    "repq": {"aqer": False, "weights": "nearest"},
    "gptq": {"aqer": False, "weights": "gptq"},
    "aqer": {"aqer": True, "weights": "nearest"},
    "wqer": {"aqer": False, "weights": "wqer"},
    "erq": {"aqer": True, "weights": "wqer"},
    "erq_plus": {"aqer": True, "weights": "wqer", "dual": True},
}
SHARED = ("act_bits", "image_bits", "reparameterize", "merge", "round_zero_point", "probability", "act_percentiles",
          "calibration_images")  # options that act before any weight is touched
CORRECTION = ("coe", "lambda_mode", "vector_strength")
Rows = tuple[Tensor, Tensor | None]


def method_options(method: str, **changes) -> ErqOptions:
    """Options of one of :data:`~vitq.papers.erq2024.METHODS`, with changes."""
    return ErqOptions.from_dict(METHOD_OPTIONS[method] | changes)


def shared_key(options: ErqOptions) -> tuple:
    """What two sets of options must have in common to share a preparation."""
    return tuple(getattr(options, name) for name in SHARED)


@dataclass
class Outcome:
    """One layer under one set of options: the share of rows that got stuck in its first half, the roundings that
    refinement changed, and whether it was refined at all."""

    name: str
    stuck: float = 0.0
    flips: int = 0
    refined: bool = False


@dataclass
class Layer:
    """A float layer, its moments, and what is known of it so far."""

    name: str
    kind: str
    module: nn.Module
    moments: Moments
    corrected: dict[tuple, Rows] = field(default_factory=dict)
    grids: dict[tuple, Affine] = field(default_factory=dict)

    @classmethod
    def of(cls, name: str, data: LayerData) -> "Layer":
        return cls(name, data.kind, data.module, data.finish())

    def correction(self, options: ErqOptions) -> tuple[tuple, Rows]:
        """Weight and bias after Aqer (or as they were), as stored in the layer's precision, and what names them."""
        acts = options.aqer and hasattr(self.module, "input_quantizer")
        key = tuple(getattr(options, name) for name in CORRECTION) if acts else ()
        if key not in self.corrected:
            weight, bias = self.module.weight.detach(), self.module.bias
            found = self.as_rows(weight, None if bias is None else bias.detach())
            if acts:
                strength = ridge_strength(options.coe, self.moments.count, options.lambda_mode, self.kind, "aqer",
                                          options.vector_strength)
                found = tuple(None if v is None else v.to(weight.dtype).double()
                              for v in aqer(*found, self.moments, strength))
            self.corrected[key] = found
        return key, self.corrected[key]

    def as_rows(self, weight: Tensor, bias: Tensor | None) -> Rows:
        offset = None if bias is None else rows.bias_rows(self.module, bias.double())
        return rows.weight_rows(self.module, weight.double()), offset

    def grid(self, key: tuple, found: Rows, options: ErqOptions) -> Affine:
        """Calibrated weight quantizer of a corrected weight."""
        key = (*key, options.weight_bits, options.dual, options.weight_percentiles)
        if key not in self.grids:
            quantizer = weight_quantizer(self.name, self.module, options)
            quantizer.initialize(self.in_shape(found[0]))
            self.grids[key] = quantizer
        return copy.deepcopy(self.grids[key])

    def in_shape(self, weight: Tensor) -> Tensor:
        return weight.reshape(self.module.weight.shape).to(self.module.weight.dtype)


@dataclass
class Prepared:
    """A network with calibrated activation quantizers and its layers; seconds by phase."""

    model: nn.Module
    layers: list[Layer]
    seconds: dict[str, float]


@torch.no_grad()
def prepared(model: nn.Module, images: Tensor, options: ErqOptions) -> Prepared:
    """Activation ranges, reparameterization and moments of all layers.

    Args:
        model: Float timm model; left as it was.
        images: Normalized calibration images (N, C, H, W).
        options: Only those of :data:`SHARED` and ``chunk`` matter.
    """
    begin = time.perf_counter()
    model = with_ranges(model, images, options)
    ranges = time.perf_counter()
    found = collect(model, layer_names(model), rebatch(images, options.chunk))
    layers = [Layer.of(name, data) for name, data in found.items()]
    return Prepared(model, layers, {"ranges": ranges - begin, "moments": time.perf_counter() - ranges})


@torch.no_grad()
def with_ranges(model: nn.Module, images: Tensor, options: ErqOptions) -> nn.Module:
    """A copy with calibrated, reparameterized activation quantizers and float weights."""
    model = prepare(model, options)
    if options.act_bits is not None:
        calibrate(model, images[: options.calibration_images])
        reparameterize(model, options)
    return model


@torch.no_grad()
def quantized(base: Prepared, options: ErqOptions) -> tuple[nn.Module, list[Outcome]]:
    """The network of these options, in evaluation mode, and what became of its layers.

    Args:
        base: Of :func:`prepared`, with options of the same :func:`shared_key`; it stays usable.
        options: What to do; ``weight_bits`` must be set, the data path is that of the float network.
    """
    model, outcomes = copy.deepcopy(base.model), []
    for layer in base.layers:
        outcomes.append(_finish(layer, model.get_submodule(layer.name), options))
    return model, outcomes


def _finish(layer: Layer, module: nn.Module, options: ErqOptions) -> Outcome:
    key, found = layer.correction(options)
    outcome = Outcome(layer.name)
    quantizer = layer.grid(key, found, options)
    grid = Grid.of(quantizer, layer.in_shape(found[0]), rows.groups(layer.module))
    weight, bias = found
    if options.weights == "nearest":
        weight = grid.nearest(weight)
    elif options.weights == "gptq":
        weight = gptq(weight, layer.moments, grid, options.damping, options.act_order)
    else:
        outcome.refined = refines(layer.name, layer.kind, options)
        strength = ridge_strength(options.coe, layer.moments.count, options.lambda_mode, layer.kind, "wqer")
        result = wqer(weight, bias, layer.moments, grid, strength, refine=outcome.refined, correct=options.ridge,
                      rule=options.flip_rule, k=options.k, rounds=options.rounds, covariance=options.covariance)
        weight, bias = result.weight, result.bias
        outcome.flips, outcome.stuck = sum(result.flips), result.stuck[0] if result.stuck else 0.0
    _install(module, quantizer, layer.in_shape(weight), bias)
    return outcome


def _install(module: nn.Module, quantizer: Affine, weight: Tensor, bias: Tensor | None) -> None:
    module.weight.copy_(quantizer(weight))
    if bias is not None:
        module.bias.copy_(bias.reshape(module.bias.shape))
    parametrize.register_parametrization(module, "weight", quantizer)


@torch.no_grad()
def rounded(model: nn.Module, images: Tensor, options: ErqOptions) -> nn.Module:
    """Weights rounded to nearest, without moments: what ``weights="nearest"`` without Aqer gives."""
    model = with_ranges(model, images, options)
    for name in layer_names(model):
        module = model.get_submodule(name)
        quantizer = weight_quantizer(name, module, options)
        _install(module, quantizer, module.weight.detach().clone(), None)
    return model


@torch.no_grad()
def layer_errors(base: Prepared, model: nn.Module, options: ErqOptions, held_out: Tensor) -> list[dict]:
    """What each step of ERQ leaves of each layer's output error, on the calibration images and on others.

    Args:
        base: Of :func:`prepared`.
        model: Of :func:`quantized` with ``options``.
        options: With Aqer and ``weights="wqer"``.
        held_out: Normalized images (N, C, H, W).

    Returns:
        One row a layer and set of images (``"calibration"``, ``"held out"``): mean squared errors over the mean squared
        output, of float weights on quantized inputs (``inputs``), the same after Aqer (``aqer``), then rounded to
        nearest (``nearest``) or by Wqer (``wqer``); and what rounding alone changes in the output of the corrected
        layer, to nearest (``rounding_nearest``) or by Wqer (``rounding_wqer``).
    """
    others = collect(base.model, [layer.name for layer in base.layers], rebatch(held_out, options.chunk))
    table = []
    for layer in base.layers:
        module = model.get_submodule(layer.name)
        start = layer.correction(ErqOptions(aqer=False))[1]
        key, corrected = layer.correction(options)
        nearest = layer.grid(key, corrected, options)(layer.in_shape(corrected[0]))
        nearest = rows.weight_rows(layer.module, nearest.double()), corrected[1]
        final = layer.as_rows(module.weight.detach(), None if module.bias is None else module.bias.detach())
        for name, moments in (("calibration", layer.moments), ("held out", others.pop(layer.name).finish())):
            energy = max(moments.energy.item() / moments.count, 1e-300)
            steps = {"inputs": start, "aqer": corrected, "nearest": nearest, "wqer": final}
            row = {step: moments.residual_energy(*found) / energy for step, found in steps.items()}
            row |= {f"rounding_{step}": _change(moments, corrected, steps[step]) / energy
                    for step in ("nearest", "wqer")}
            table.append({"layer": layer.name, "images": name, **row})
    return table


def _change(moments: Moments, before: Rows, after: Rows) -> float:
    bias = None if before[1] is None else after[1] - before[1]
    full = with_bias(after[0] - before[0], bias, keep=True)
    return max(((full @ moments.gram) * full).sum().item(), 0.0) / moments.count
