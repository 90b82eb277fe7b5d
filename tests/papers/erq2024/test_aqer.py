"""Aqer: tests 7 to 10 of the specification."""

import pytest
import torch

from vitq.errors import InputError
from vitq.papers.erq2024.aqer import aqer, ridge_strength
from vitq.papers.erq2024.moments import Moments


def objective(one, weight, bias, strength):
    change = torch.cat([weight - one.weight, (bias - one.bias)[:, None]], 1)
    return (one.x_q @ weight.T + bias - one.y).square().sum().item() + strength * change.square().sum().item()


@pytest.mark.parametrize("strength", [0.1, 100.0, 1e4])
def test_correction_is_least_squares_on_augmented_rows(one, strength):
    weight, bias = aqer(one.weight, one.bias, one.moments, strength)
    a = torch.cat([one.x_q, torch.ones(len(one.x_q), 1, dtype=torch.float64)], 1)
    residual = one.y - a @ torch.cat([one.weight, one.bias[:, None]], 1).T
    ridge = strength**0.5 * torch.eye(33, dtype=torch.float64)
    b = torch.linalg.lstsq(torch.cat([a, ridge]), torch.cat([residual, torch.zeros(33, 24, dtype=a.dtype)])).solution
    torch.testing.assert_close(weight - one.weight, b[:-1].T, rtol=1e-9, atol=1e-11)
    torch.testing.assert_close(bias - one.bias, b[-1], rtol=1e-9, atol=1e-11)


def test_printed_form_equals_the_released_one_without_bias(one):
    count, lam = len(one.x_q), 0.02
    moments = Moments(32, 24).update(one.x_q, one.x @ one.weight.T)
    weight, bias = aqer(one.weight, None, moments, ridge_strength(lam, count, "mean_paper"))
    delta = one.x_q - one.x
    right = delta.T @ one.x_q / count
    inverse = torch.linalg.inv(one.x_q.T @ one.x_q / count + lam * torch.eye(32, dtype=torch.float64))
    torch.testing.assert_close(weight, one.weight - one.weight @ right @ inverse, rtol=1e-12, atol=1e-12)
    assert bias is None


def test_error_grows_with_the_strength_and_never_above_no_change(one):
    before = objective(one, one.weight, one.bias, 0)
    errors = []
    for strength in (1e-3, 1.0, 1e2, 1e3, 1e4, 1e6):
        new = aqer(one.weight, one.bias, one.moments, strength)
        assert objective(one, *new, strength) <= before
        errors.append(objective(one, *new, 0))
    assert errors == sorted(errors) and errors[0] < 0.95 * before


def test_limits_leave_the_weight_alone(layer, one):
    weight, bias = aqer(one.weight, one.bias, one.moments, 1e14)
    assert (weight - one.weight).abs().max() < 1e-9 and (bias - one.bias).abs().max() < 1e-9
    changes = []
    for bits in (4, 6, 8):
        fine = layer(act_bits=bits)
        changes.append((aqer(fine.weight, fine.bias, fine.moments, 1.0)[0] - fine.weight).norm().item())
    assert changes[0] > 2 * changes[1] > 4 * changes[2]
    exact = Moments(32, 24).update(one.x, one.y)
    assert (aqer(one.weight, one.bias, exact, 1.0)[0] - one.weight).abs().max() < 1e-12


def test_reference_magnitudes_of_the_specification(layer):
    wide = layer(rows=64, inputs=192, samples=6304, correlation=0.0)
    mse = {0: (wide.x_q @ wide.weight.T + wide.bias - wide.y).square().mean().item()}
    for strength in (0.1, 1e2, 1e3, 1e4):
        weight, bias = aqer(wide.weight, wide.bias, wide.moments, strength)
        mse[strength] = (wide.x_q @ weight.T + bias - wide.y).square().mean().item()
    ratios = [mse[s] / mse[0] for s in (0.1, 1e2, 1e3, 1e4)]
    assert ratios == sorted(ratios) and 0.8 < ratios[0] < 0.97 and 0.93 < ratios[3] < 1


def test_error_falls_on_data_that_the_correction_has_not_seen(layer):
    gains = []
    for seed in range(8):
        one = layer(seed=seed, samples=1500)
        weight, bias = aqer(one.weight, one.bias, one.moments, 100.0)
        y = one.held_out @ one.weight.T + one.bias
        before = (one.held_out_q @ one.weight.T + one.bias - y).square().mean()
        gains.append(((one.held_out_q @ weight.T + bias - y).square().mean() / before).item())
    assert max(gains) < 1


def test_streaming_and_whole_data_give_the_same_correction(one):
    parts = Moments(32, 24)
    for x, y in zip(one.x_q.split(100), one.y.split(100), strict=True):
        parts.update(x, y, one.act.scale.item())
    for a, b in zip(aqer(one.weight, one.bias, parts, 100.0), aqer(one.weight, one.bias, one.moments, 100.0),
                    strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


def test_groups_are_corrected_apart(one):
    both = Moments(32, 24, 2).update(torch.stack([one.x_q, one.x_q * 2]), torch.stack([one.y, one.y]))
    weight, bias = aqer(torch.stack([one.weight, one.weight]), torch.stack([one.bias, one.bias]), both, 1.0)
    single = aqer(one.weight, one.bias, one.moments, 1.0)
    torch.testing.assert_close(weight[0], single[0])
    torch.testing.assert_close(bias[0], single[1])
    assert not weight[1].allclose(weight[0])


def test_strength_rules():
    assert ridge_strength(1e4, 6304) == 1e3 and ridge_strength(1e4, 32, kind="vector") == 0.1
    assert ridge_strength(1e4, 32, kind="vector", step="wqer") == 1e3 and ridge_strength(1e4, 9, kind="conv") == 1e4
    assert ridge_strength(0.5, 100, "mean_paper", "vector") == 50
    with pytest.raises(InputError, match="coe=-1"):
        ridge_strength(-1, 10)
    with pytest.raises(InputError, match="lambda_mode"):
        ridge_strength(1, 10, "means")
