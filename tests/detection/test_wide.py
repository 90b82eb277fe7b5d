"""Systems of the size of the rows against those of the size of the inputs."""

import copy

import pytest
import torch
from torch import nn

from vitq.convert import INPUT
from vitq.detection import collect as module
from vitq.detection.collect import RegionData
from vitq.detection.wide import correct_wide, gptq_rows, ridge
from vitq.papers.erq2024 import Grid, Moments, gptq
from vitq.papers.erq2024.correct import correct_layer
from vitq.papers.erq2024.options import ErqOptions
from vitq.quantizers.affine import Affine


def normal(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("count", [5, 40])
def test_the_ridge_problem_has_one_solution(count):
    x, target = normal(count, 20), normal(count, 3, seed=1)
    found = ridge(x, 0.7, target)
    torch.testing.assert_close(x.mT @ (target - x @ found), 0.7 * found)  # the gradient is 0


@pytest.mark.parametrize("act_order", [False, True])
@pytest.mark.parametrize("columns", [100, 300])
def test_gptq_from_rows(columns, act_order):
    x = normal(60, columns) @ (torch.eye(columns) + 0.2 * normal(columns, columns, seed=2))
    weight = normal(12, columns, seed=1)
    own = Affine(3, 0).double()
    own.initialize(weight)
    grid = Grid.of(own, weight)
    expected = gptq(weight, Moments(columns, 1).update(x, x[:, :1]), grid, 0.01, act_order)
    found = gptq_rows(weight, x, Grid(grid.scale[0], grid.zero_point[0], grid.qmax), 0.01, act_order)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
    assert not torch.equal(found, own(weight))


@pytest.mark.parametrize("options", [
    dict(aqer=True), dict(aqer=True, vector_strength=None), dict(aqer=False, weights="gptq"),
    dict(aqer=True, weights="nearest"), dict(aqer=False, refine="none"), dict(covariance="unbiased", ridge=False),
    dict(weight_bits=None), dict(lambda_mode="mean_paper", coe=0.1),
])
def test_a_layer_from_its_rows(options, monkeypatch):
    """The same weights, bias and report, whether rows or sums are kept."""
    monkeypatch.setattr(module, "WIDE", 50)
    settings = ErqOptions(**{"coe": 10.0, "rounds": 20, **options})
    torch.manual_seed(0)
    layer = nn.Linear(96, 16).double()
    x = normal(70, 96) @ (torch.eye(96) + 0.3 * normal(96, 96, seed=3))
    layer.add_module(INPUT, Affine(4).double())
    getattr(layer, INPUT).initialize(x)
    found = []
    for correct, wide in ((correct_wide, 50), (correct_layer, 1000)):
        monkeypatch.setattr(module, "WIDE", wide)
        own = copy.deepcopy(layer)
        data = RegionData(own)
        for part in x.split(40):
            data.update(part, nn.functional.linear(part, own.weight, own.bias))
        assert bool(data.kept) == (correct is correct_wide)
        found.append((correct("head", data, settings), own.weight.detach(), own.bias.detach()))
    (one, weight, bias), (two, expected, offset) = found
    torch.testing.assert_close(weight, expected, rtol=1e-7, atol=1e-7)
    torch.testing.assert_close(bias, offset, rtol=1e-7, atol=1e-7)
    assert (one.name, one.kind) == (two.name, two.kind)
    for name in ("inputs", "outputs", "samples", "error_inputs", "error_nearest", "error_aqer", "error", "flips",
                 "rounds", "stuck"):
        assert getattr(one, name) == pytest.approx(getattr(two, name), rel=1e-6, abs=1e-12), name
    if not settings.aqer:
        quantized = getattr(layer, INPUT)(x)
        changed = quantized @ (weight - layer.weight).T + bias - layer.bias
        energy = layer_output(layer, x).square().sum()
        assert one.error_weight_now == pytest.approx((changed.square().sum() / energy).item(), rel=1e-6)
        own = Affine(4, 0, settings.weight_percentiles).double()
        plain = (quantized @ (own(layer.weight.detach()) - layer.weight).T).square().sum() / energy
        assert one.error_weight == pytest.approx(plain.item(), rel=1e-6)


def layer_output(layer, x):
    return nn.functional.linear(x, layer.weight, layer.bias).detach()
