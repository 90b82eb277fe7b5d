r"""ERQ and GPTQ for a layer with more inputs than rows of data, from the rows: N x N systems in place of I x I ones.

With the N rows :math:`A = [x_q, 1]` of the open columns, the ridge problem has one solution in two forms,

.. math:: (A^\top A + L I)^{-1} A^\top R = A^\top (A A^\top + L I)^{-1} R ,

and GPTQ's matrix on the columns still open is, with :math:`H = X^\top X / N + \mu I`,

.. math:: H^{-1} = \frac{1}{\mu} \left( I - X^\top (X X^\top + N \mu I)^{-1} X \right) .

For the first linear layer of a box head, 12,544 inputs and 1000 regions of one image, this takes a hundredth of the
memory. The methods are those of :mod:`vitq.papers.erq2024`, and so are the results, to rounding error.
"""

import time

import torch
from torch import Tensor
from torch.nn.utils import parametrize

from vitq.detection.collect import RegionData
from vitq.papers.erq2024.aqer import ridge_strength
from vitq.papers.erq2024.correct import LayerReport, _store, refines
from vitq.papers.erq2024.gptq import BLOCK
from vitq.papers.erq2024.grid import Grid
from vitq.papers.erq2024.moments import Moments, solve
from vitq.papers.erq2024.options import ErqOptions
from vitq.papers.erq2024.prepare import weight_quantizer
from vitq.papers.erq2024.refinement import refine_rounding
from vitq.papers.erq2024.schedule import half_sizes


@torch.no_grad()
def correct_wide(name: str, data: RegionData, options: ErqOptions) -> LayerReport:
    """Correct and quantize a linear layer with a bias in place; see :func:`vitq.papers.erq2024.correct.correct_layer`.

    Args:
        name: Module path.
        data: With rows kept.
        options: What to do.
    """
    module = data.module
    x, y = (torch.cat(parts).double() for parts in zip(*data.kept, strict=True))
    data.kept.clear()
    x = torch.cat([x, x.new_ones(len(x), 1)], 1)  # (N, I + 1)
    energy = max(y.square().sum().item(), 1e-300)

    def error(full: Tensor) -> float:
        return ((x @ full.mT - y).square().sum() / energy).item()

    def change(before: Tensor, after: Tensor) -> float:
        return ((x @ (after - before).mT).square().sum() / energy).item()

    start = corrected = _full(module)
    report = LayerReport(name, data.kind, module.in_features, len(module.weight), len(x), *[error(start)] * 4, 0.0, 0.0)
    if options.weight_bits is not None:
        nearest = weight_quantizer(name, module, options)(module.weight.detach())
        report.error_nearest = error(torch.cat([nearest.double(), start[:, -1:]], 1))
    if options.aqer and hasattr(module, "input_quantizer"):
        begin = time.perf_counter()
        strength = ridge_strength(options.coe, len(x), options.lambda_mode, data.kind, "aqer", options.vector_strength)
        _keep(module, start + ridge(x, strength, y - x @ start.mT).mT)
        corrected = _full(module)
        report.seconds_aqer = time.perf_counter() - begin
        report.error_aqer = report.error = error(corrected)
    if options.weight_bits is not None:
        nearest = _round(name, data, x, options, report)
        final = _full(module)
        report.error_weight = change(corrected, torch.cat([nearest, corrected[:, -1:]], 1))
        report.error_weight_now, report.error = change(corrected, final), error(final)
    return report


def _full(module: torch.nn.Linear) -> Tensor:
    """Weight with the bias as its last column, (O, I + 1), float64."""
    return torch.cat([module.weight.detach(), module.bias.detach()[:, None]], 1).double()


def _keep(module: torch.nn.Linear, full: Tensor) -> None:
    _store(module, full[:, :-1], full[:, -1])


def _round(name: str, data: RegionData, x: Tensor, options: ErqOptions, report: LayerReport) -> Tensor:
    """Quantize the weight; returns what rounding to nearest gives, (O, I)."""
    begin = time.perf_counter()
    module, step = data.module, data.step
    quantizer = weight_quantizer(name, module, options)
    quantizer.initialize(module.weight.detach())
    grid = Grid.of(quantizer, module.weight.detach())
    grid = Grid(grid.scale[0], grid.zero_point[0], grid.qmax)  # (O, 1 or I)
    full = _full(module)
    nearest = grid.nearest(full[:, :-1])
    if options.weights == "gptq":
        full[:, :-1] = gptq_rows(full[:, :-1], x[:, :-1], grid, options.damping, options.act_order)
    elif options.weights == "wqer":
        strength = ridge_strength(options.coe, len(x), options.lambda_mode, data.kind, "wqer")
        full = wqer_rows(full, x, grid, strength, options, refines(name, data.kind, options), step, report)
    else:
        full[:, :-1] = nearest
    _keep(module, full)
    module.weight.copy_(quantizer(module.weight))  # the level itself, in the weight's own precision
    parametrize.register_parametrization(module, "weight", quantizer)
    report.seconds_weights = time.perf_counter() - begin
    return nearest


def ridge(x: Tensor, strength: float, target: Tensor) -> Tensor:
    """B of least :math:`\\lVert x B - t \\rVert^2 + L \\lVert B \\rVert^2`, (columns, outputs), by the smaller system.

    Args:
        x: (N, columns).
        strength: L.
        target: t, (N, outputs).
    """
    if x.shape[0] < x.shape[1]:
        return x.mT @ solve(x @ x.mT, strength, target)
    return solve(x.mT @ x, strength, x.mT @ target)


def wqer_rows(full: Tensor, x: Tensor, grid: Grid, strength: float, options: ErqOptions, refine: bool,
              step: float | None, report: LayerReport) -> Tensor:
    """:func:`~vitq.papers.erq2024.wqer.wqer` from rows: weight on its grid and corrected bias, (O, I + 1).

    Args:
        full: (O, I + 1), weight and bias.
        x: (N, I + 1), quantized inputs and ones.
        grid: Of the weight.
        strength: L.
        options: Of the search.
        refine: Refine the rounding.
        step: Of the inputs, see :class:`RegionData`.
        report: Gets flips, rounds and the share of stuck rows.
    """
    full, begin = full.clone(), 0
    for number in half_sizes(x.shape[1] - 1):
        now, later = slice(begin, begin + number), slice(begin + number, x.shape[1])
        own, values = grid.columns(now), full[:, now]
        error = own.nearest(values) - values
        if refine:
            moments = Moments(number, 1).update(x[:, now], x[:, -1:], step)
            moment = moments.second_moment if options.covariance == "biased" else moments.unbiased_moment
            low, high = own.candidates(values)
            found = refine_rounding(error, low - values, high - values, moment, options.flip_rule, options.k,
                                    options.rounds)
            error = found.error
            report.flips, report.rounds = report.flips + found.flips, max(report.rounds, found.rounds)
            report.stuck = found.stuck if begin == 0 else report.stuck
        full[:, now] = own.nearest(values + error)  # removes the rounding of the addition
        if options.ridge:
            full[:, later] -= ridge(x[:, later], strength, x[:, now] @ error.mT).mT
        begin += number
    return full


def gptq_rows(weight: Tensor, x: Tensor, grid: Grid, damping: float = 0.01, act_order: bool = False) -> Tensor:
    """:func:`~vitq.papers.erq2024.gptq.gptq` from rows: the weight on its grid, (O, I).

    Args:
        weight: (O, I).
        x: (N, I), quantized inputs.
        grid: Of the weight.
        damping: Added to the diagonal of H, as a share of its mean.
        act_order: Go through the columns by falling energy.
    """
    count, columns = x.shape
    energy = x.square().sum(0)
    order = energy.argsort(descending=True, stable=True) if act_order else torch.arange(columns, device=x.device)
    mean = energy.mean().item() / count
    share = damping * mean if mean > 0 else 1.0  # mu
    x, weight, grid = x[:, order], weight[:, order].clone(), grid.columns(order)
    kernel = x @ x.mT + count * share * torch.eye(count, dtype=x.dtype, device=x.device)
    for begin in range(0, columns, BLOCK):
        end = min(begin + BLOCK, columns)
        own, width = x[:, begin:end], end - begin
        inverse = -(solve(kernel, 0.0, own).mT @ x[:, begin:]) / share  # (block, open): rows of the inverse of H
        inverse[:, :width] += torch.eye(width, dtype=x.dtype, device=x.device) / share
        corner = torch.linalg.cholesky((inverse[:, :width] + inverse[:, :width].mT) / 2, upper=True)
        upper = torch.linalg.solve_triangular(corner.mT, inverse, upper=False)  # rows of the factor U
        errors = torch.empty_like(weight[:, begin:end])
        for column in range(width):
            value = weight[:, begin + column, None]
            level = grid.columns(slice(begin + column, begin + column + 1)).nearest(value)
            errors[:, column, None] = (value - level) / corner[column, column]
            weight[:, begin + column + 1:end] -= errors[:, column, None] * corner[column, column + 1:]
            weight[:, begin + column, None] = level
        weight[:, end:] -= errors @ upper[:, width:]
        kernel -= own @ own.mT
    return weight[:, order.argsort()]
