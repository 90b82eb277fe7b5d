"""One layer from float to quantized: Aqer, the weight's grid, then Wqer, GPTQ or rounding to nearest."""

import time
from dataclasses import dataclass, fields

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from vitq.papers.erq2024 import rows
from vitq.papers.erq2024.aqer import aqer, ridge_strength
from vitq.papers.erq2024.collect import LayerData
from vitq.papers.erq2024.gptq import gptq
from vitq.papers.erq2024.grid import Grid
from vitq.papers.erq2024.moments import Moments
from vitq.papers.erq2024.options import ErqOptions
from vitq.papers.erq2024.prepare import weight_quantizer
from vitq.papers.erq2024.wqer import wqer


@dataclass
class LayerReport:
    """Errors are mean squared output errors over the mean squared output, on the calibration images.

    Attributes:
        name: Module path.
        kind: ``"linear"``, ``"vector"`` or ``"conv"``.
        inputs: Weights of a row.
        outputs: Rows.
        samples: Rows of data: tokens or positions.
        error_inputs: Of quantized inputs and float weights.
        error_nearest: Of quantized inputs and weights rounded to nearest, nothing corrected.
        error_aqer: Of quantized inputs and the corrected float weights.
        error: Of the layer as it is now.
        error_weight: Output change by rounding the corrected weights to nearest, on quantized inputs.
        error_weight_now: The same as the weights are now, with the corrected bias.
        seconds_aqer: Solving for Aqer.
        seconds_weights: Rounding the weights.
        flips: Rounding choices changed by refinement.
        rounds: Refinement rounds used, at most.
        stuck: Share of rows that ended on a weight that cannot move, in the first half.
    """

    name: str
    kind: str
    inputs: int
    outputs: int
    samples: int
    error_inputs: float
    error_nearest: float
    error_aqer: float
    error: float
    error_weight: float
    error_weight_now: float
    seconds_aqer: float = 0.0
    seconds_weights: float = 0.0
    flips: int = 0
    rounds: int = 0
    stuck: float = 0.0


FIELDS = [f.name for f in fields(LayerReport)]


def _change(moments: Moments, before: tuple[Tensor, Tensor | None], after: tuple[Tensor, Tensor | None]) -> float:
    """Mean squared output change between two versions of a layer on the same inputs."""
    weight = after[0] - before[0]
    bias = weight.new_zeros(weight.shape[:2]) if before[1] is None else after[1] - before[1]
    full = torch.cat([weight, bias.unsqueeze(-1)], -1)
    return max(((full @ moments.gram) * full).sum().item(), 0.0) / moments.count


def refines(name: str, kind: str, options: ErqOptions) -> bool:
    """Whether Wqer refines the rounding of this layer."""
    return (options.refine == "all" or (options.refine == "linear" and kind != "conv")
            or (options.refine == "qkv_fc1" and name.endswith((".qkv", ".fc1"))))


@torch.no_grad()
def correct_layer(name: str, data: LayerData, options: ErqOptions) -> LayerReport:
    """Correct and quantize one layer in place.

    Args:
        name: Module path.
        data: Moments of the layer.
        options: What to do.
    """
    module, moments = data.module, data.finish()
    weight, bias = module.weight.detach().clone(), module.bias
    start = _rows(module, weight, bias)
    energy = max(moments.energy.item() / moments.count, 1e-300)
    report = LayerReport(name, data.kind, start[0].shape[-1], len(weight), moments.count,
                         *[moments.residual_energy(*start) / energy] * 4, 0.0, 0.0)
    if options.weight_bits is not None:
        own = weight_quantizer(name, module, options)
        report.error_nearest = moments.residual_energy(rows.weight_rows(module, own(weight)), start[1]) / energy
    corrected = _aqer(module, data.kind, moments, start, options, report)
    if corrected is not start:
        report.error_aqer = report.error = moments.residual_energy(*corrected) / energy
    if options.weight_bits is not None:
        final, nearest = _round(name, module, data.kind, moments, options, report)
        report.error_weight = _change(moments, corrected, (nearest, corrected[1])) / energy
        plain = options.weights == "nearest"
        report.error_weight_now = report.error_weight if plain else _change(moments, corrected, final) / energy
        known = plain and corrected is start
        report.error = report.error_nearest if known else moments.residual_energy(*final) / energy
    return report


def _rows(module: nn.Module, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
    bias = None if bias is None else bias.detach().double()
    return rows.weight_rows(module, weight.double()), rows.bias_rows(module, bias)


def _store(module: nn.Module, weight: Tensor, bias: Tensor | None) -> None:
    module.weight.copy_(weight.reshape(module.weight.shape))
    if bias is not None:
        module.bias.copy_(bias.reshape(module.bias.shape))


def _aqer(module: nn.Module, kind: str, moments: Moments, start: tuple[Tensor, Tensor | None], options: ErqOptions,
          report: LayerReport) -> tuple[Tensor, Tensor | None]:
    """Corrected weight and bias as stored; a layer whose input is not quantized has nothing to correct."""
    if not options.aqer or not hasattr(module, "input_quantizer"):
        return start
    begin = time.perf_counter()
    strength = ridge_strength(options.coe, moments.count, options.lambda_mode, kind, "aqer",
                              options.vector_strength)
    _store(module, *aqer(*start, moments, strength))
    report.seconds_aqer = time.perf_counter() - begin
    return _rows(module, module.weight.detach(), module.bias)


def _round(name: str, module: nn.Module, kind: str, moments: Moments, options: ErqOptions, report: LayerReport):
    """Quantize the weight; returns (weight, bias) as stored and the weight rounded to nearest."""
    begin = time.perf_counter()
    quantizer = weight_quantizer(name, module, options)
    quantizer.initialize(module.weight.detach())
    grid = Grid.of(quantizer, module.weight.detach(), rows.groups(module))
    weight, bias = _rows(module, module.weight.detach(), module.bias)
    nearest = grid.nearest(weight)
    rounded = nearest
    if options.weights == "gptq":
        rounded = gptq(weight, moments, grid, options.damping, options.act_order)
    elif options.weights == "wqer":
        strength = ridge_strength(options.coe, moments.count, options.lambda_mode, kind, "wqer")
        found = wqer(weight, bias, moments, grid, strength, refine=refines(name, kind, options), correct=options.ridge,
                     rule=options.flip_rule, k=options.k, rounds=options.rounds, covariance=options.covariance)
        rounded, bias = found.weight, found.bias
        report.flips, report.rounds = sum(found.flips), max(found.rounds, default=0)
        report.stuck = found.stuck[0] if found.stuck else 0.0
    _store(module, rounded, bias)
    module.weight.copy_(quantizer(module.weight))  # the level itself, in the weight's own precision
    parametrize.register_parametrization(module, "weight", quantizer)
    report.seconds_weights = time.perf_counter() - begin
    return _rows(module, module.weight.detach(), module.bias), nearest
