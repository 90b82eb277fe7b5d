"""Wqer: tests 15 to 21 of the specification, and GPTQ on the same grids."""

import pytest
import torch

from vitq.errors import InputError
from vitq.papers.erq2024.gptq import gptq
from vitq.papers.erq2024.grid import Grid
from vitq.papers.erq2024.moments import Moments
from vitq.papers.erq2024.refinement import FLIP_RULES
from vitq.papers.erq2024.schedule import half_sizes
from vitq.papers.erq2024.wqer import output_error, wqer
from vitq.quantizers.dual_uniform import DualUniform


def error(one, weight, bias=None, held_out=False):
    bias = one.bias if bias is None else bias
    x = one.held_out_q if held_out else one.x_q
    return ((x @ (weight - one.weight).T + bias - one.bias) ** 2).mean().item()


@pytest.mark.parametrize(("inputs", "rounds"), [(192, 8), (384, 9), (768, 10), (1536, 11), (3072, 12), (1, 1), (2, 2)])
def test_schedule(inputs, rounds):
    sizes = half_sizes(inputs)
    assert sum(sizes) == inputs and len(sizes) == rounds
    assert sum(half_sizes(inputs, False)) == inputs and half_sizes(inputs, False)[-1] == 1
    assert half_sizes(192) == [96, 48, 24, 12, 6, 3, 2, 1]


def test_one_ridge_step_is_augmented_least_squares(one):
    strength, s = 20.0, 16
    grid = Grid(one.grid.scale, one.grid.zero_point, one.grid.qmax)
    whole = wqer(one.weight, one.bias, one.moments, grid, strength, refine=False)
    d = one.grid.nearest(one.weight)[0][:, :s] - one.weight[:, :s]
    x = torch.cat([one.x_q, torch.ones(len(one.x_q), 1, dtype=torch.float64)], 1)
    ridge = strength**0.5 * torch.eye(33 - s, dtype=torch.float64)
    target = torch.cat([-x[:, :s] @ d.T, torch.zeros(33 - s, 24, dtype=x.dtype)])
    step = torch.linalg.lstsq(torch.cat([x[:, s:], ridge]), target).solution.T
    corrected = torch.cat([one.weight, one.bias[:, None]], 1)[:, s:] + step
    second = corrected[:, :8]
    torch.testing.assert_close(whole.weight[:, s:s + 8], one.grid.nearest(second)[0], rtol=1e-9, atol=1e-9)
    after = ((x[:, :s] @ d.T + x[:, s:] @ step.T) ** 2).sum() + strength * step.square().sum()
    assert after <= ((x[:, :s] @ d.T) ** 2).sum()


@pytest.mark.parametrize("rule", FLIP_RULES)
@pytest.mark.parametrize("bias", [True, False])
def test_every_weight_ends_on_the_grid(one, rule, bias):
    found = wqer(one.weight, one.bias if bias else None, one.moments, one.grid, 10.0, rule=rule)
    assert one.grid.off_grid(found.weight) < 1e-12
    assert one.quantizer(found.weight).allclose(found.weight, rtol=0, atol=1e-12)
    assert one.quantizer.codes(found.weight).equal(one.quantizer.codes(one.quantizer(found.weight)))
    assert (found.bias is None) == (not bias)


def test_without_anything_it_is_nearest_rounding(one):
    plain = wqer(one.weight, one.bias, one.moments, one.grid, 1.0, refine=False, correct=False)
    assert plain.weight.equal(one.grid.nearest(one.weight)[0]) and plain.bias.equal(one.bias)
    assert wqer(one.weight, one.bias, one.moments, one.grid, 1.0, correct=False, rounds=0).weight.equal(plain.weight)


def test_uncorrelated_inputs_leave_nearest_rounding(one):
    moments = Moments(32, 24)
    moments.gram[0] = torch.diag(torch.rand(33, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) + 1)
    moments.count = 1
    found = wqer(one.weight, one.bias, moments, one.grid, 1.0)
    assert found.weight.equal(one.grid.nearest(one.weight)[0]) and found.bias.equal(one.bias)


def test_a_single_column_takes_one_round(layer):
    one = layer(inputs=1)
    found = wqer(one.weight, one.bias, one.moments, one.grid, 0.0)
    assert len(found.flips) == 1 and found.weight.equal(one.grid.nearest(one.weight)[0])


@pytest.mark.parametrize("bits", [3, 4])
@pytest.mark.parametrize("strength", [1e2, 1e3])
def test_each_part_helps_and_both_help_most(layer, bits, strength):
    one = layer(rows=64, inputs=128, samples=4000, bits=bits)
    found = {}
    for name, refine, correct in (("nearest", 0, 0), ("refine", 1, 0), ("ridge", 0, 1), ("both", 1, 1)):
        new = wqer(one.weight, one.bias, one.moments, one.grid, strength, refine=bool(refine), correct=bool(correct))
        found[name] = error(one, new.weight, new.bias, held_out=True)
    assert found["nearest"] > found["refine"] > found["both"] and found["nearest"] > found["ridge"] > found["both"]


@pytest.mark.parametrize("rule", ["snap_code", "hard_paper"])
def test_ordering_of_the_specification_with_the_published_rules(layer, rule):
    one = layer(rows=64, inputs=128, samples=4000, bits=4)
    found = {}
    for name, refine, correct in (("nearest", 0, 0), ("refine", 1, 0), ("ridge", 0, 1), ("both", 1, 1)):
        new = wqer(one.weight, one.bias, one.moments, one.grid, 1e2, refine=bool(refine), correct=bool(correct),
                   rule=rule)
        found[name] = error(one, new.weight, new.bias)
    assert found["nearest"] > found["refine"] > found["both"] and found["nearest"] > found["ridge"] > found["both"]


def test_exact_gain_is_not_worse_than_the_released_rule(layer):
    for seed in range(5):
        one = layer(rows=48, inputs=64, bits=3, seed=seed)
        ours, theirs = (wqer(one.weight, one.bias, one.moments, one.grid, 1e2, rule=rule)
                        for rule in ("exact_gain", "snap_code"))
        assert error(one, ours.weight, ours.bias) <= error(one, theirs.weight, theirs.bias)


def test_rows_are_independent(one):
    whole = wqer(one.weight, one.bias, one.moments, one.grid, 10.0)
    order = torch.randperm(24, generator=torch.Generator().manual_seed(0))
    grid = Grid(one.grid.scale[:, order], one.grid.zero_point[:, order], one.grid.qmax)
    moved = wqer(one.weight[order], one.bias[order], one.moments, grid, 10.0)
    torch.testing.assert_close(moved.weight, whole.weight[order], rtol=0, atol=1e-12)
    part = wqer(one.weight[5:9], one.bias[5:9], one.moments, one.grid.rows(slice(5, 9)), 10.0)
    torch.testing.assert_close(part.weight, whole.weight[5:9], rtol=0, atol=1e-12)


def test_the_last_column_of_a_layer_without_bias_is_rounded_too(one):
    moments = Moments(32, 24).update(one.x_q, one.x @ one.weight.T)
    found = wqer(one.weight, None, moments, one.grid, 10.0)
    assert one.grid.off_grid(found.weight) < 1e-12
    nearest = one.grid.nearest(one.weight)[0]
    assert error(one, found.weight) < error(one, nearest) and found.weight[:, -1].ne(one.weight[:, -1]).any()


def test_dual_grids_keep_the_scale_of_each_column(layer):
    one = layer(rows=60, inputs=32)
    weight = one.weight.clone()
    weight[:, [2, 9, 30]] *= 10
    quantizer = DualUniform(3).double()
    quantizer.initialize(weight)
    grid = Grid.of(quantizer, weight)
    low, high = grid.candidates(weight)
    step = quantizer.step_size(weight)
    inside = (high - low)[0] > 0
    torch.testing.assert_close((high - low)[0][inside], step[inside])
    assert step[:, quantizer.outlier].median() > 3 * step[:, ~quantizer.outlier].median()
    found = wqer(weight, one.bias, one.moments, grid, 10.0)
    assert quantizer(found.weight).allclose(found.weight, rtol=0, atol=1e-12)
    nearest = grid.nearest(weight)[0]
    assert output_error(weight, found.weight, one.moments) < output_error(weight, nearest, one.moments)


def test_groups_are_apart(one):
    both = Moments(32, 24, 2).update(torch.stack([one.x_q, one.x_q]), torch.stack([one.y, one.y]))
    grid = Grid(one.grid.scale.repeat(2, 1, 1), one.grid.zero_point.repeat(2, 1, 1), one.grid.qmax)
    two = wqer(torch.stack([one.weight] * 2), torch.stack([one.bias] * 2), both, grid, 10.0)
    whole = wqer(one.weight, one.bias, one.moments, one.grid, 10.0)
    for group in (0, 1):
        torch.testing.assert_close(two.weight[group], whole.weight, rtol=0, atol=1e-12)


@pytest.mark.parametrize("act_order", [False, True])
def test_gptq_is_on_the_grid_and_better_than_nearest(layer, act_order):
    one = layer(rows=48, inputs=200, samples=3000, bits=3)
    found = gptq(one.weight, one.moments, one.grid, act_order=act_order)
    assert one.grid.off_grid(found) < 1e-12
    assert error(one, found) < 0.8 * error(one, one.grid.nearest(one.weight)[0])


def test_gptq_equals_plain_column_by_column_elimination(one):
    inverse = torch.linalg.inv(one.moments.second_moment[0] + 0.01 * one.moments.second_moment[0].diagonal().mean()
                               * torch.eye(32, dtype=torch.float64))
    weight = one.weight.clone()
    for j in range(32):
        level = one.grid.nearest(weight[:, j:j + 1])[0]
        change = (weight[:, j:j + 1] - level) / inverse[j, j]
        weight = weight - change * inverse[j]
        weight[:, j:j + 1] = level
        inverse = inverse - inverse[:, j:j + 1] * inverse[j] / inverse[j, j]
    torch.testing.assert_close(gptq(one.weight, one.moments, one.grid), weight)


def test_gptq_on_uncorrelated_inputs_is_nearest_rounding_and_dead_inputs_are_no_trouble(one):
    moments = Moments(32, 24)
    moments.gram[0], moments.count = torch.eye(33, dtype=torch.float64), 1
    assert gptq(one.weight, moments, one.grid).equal(one.grid.nearest(one.weight)[0])
    moments.gram.zero_()
    assert gptq(one.weight, moments, one.grid).equal(one.grid.nearest(one.weight)[0])
    with pytest.raises(InputError, match="damping=0"):
        gptq(one.weight, moments, one.grid, damping=0)
