"""Log-sqrt2 quantizer: test 2 of ERQ's specification."""

import copy

import pytest
import torch

from vitq.quantizers.log_sqrt2 import LogSqrt2
from vitq.testing import assert_on_grid


def unit(bits=4, dtype=torch.float64):
    q = LogSqrt2(bits).to(dtype)
    q.initialized = True
    return q


def test_golden_values():
    x = torch.tensor([1, 0.7, 0.5, 0.006, 0.005, 0.0045, 0, 3], dtype=torch.float64)
    expected = torch.tensor([1, 0.5**0.5, 0.5, 2**-7.5, 2**-7.5, 0, 0, 1], dtype=torch.float64)
    torch.testing.assert_close(unit()(x), expected, rtol=1e-12, atol=0)
    assert unit()(x)[3].item() == pytest.approx(0.0055243, abs=5e-8)


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_levels_are_powers_of_sqrt2_and_zero(bits):
    x = torch.logspace(-12, 0.3, 20_001, base=10, dtype=torch.float64)
    q = unit(bits)
    y = q(x)
    assert y.unique().numel() == min(2**bits, 80) + 1 if bits < 8 else y.unique().numel() <= 2**bits + 1
    assert (y.diff() >= 0).all()
    codes = q.codes(x).double()
    torch.testing.assert_close(y[codes < 2**bits], 2 ** (-codes[codes < 2**bits] / 2), rtol=1e-12, atol=0)
    assert (y[codes == 2**bits] == 0).all()
    shift = torch.ceil(codes / 2)
    odd = 1 + (codes % 2) * (2**0.5 - 1)
    torch.testing.assert_close(y, torch.where(codes < 2**bits, 2**-shift * odd, 0), rtol=1e-12, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_fixed_points_on_the_grid_of_the_best_quantile(dtype):
    x = torch.randn(8, 3, 50, 60, dtype=dtype, generator=torch.Generator().manual_seed(0)).mul(3).softmax(-1)
    q = LogSqrt2(4).to(dtype)
    y = q(x)
    assert q(y).equal(y)
    assert_on_grid(q, x)
    errors = {}
    for p in q.percentiles:
        other = unit(4, dtype)
        other.scale = torch.quantile(x.flatten(), p).reshape(1)
        errors[p] = (other(x) - x).double().square().mean().item()
    assert (y - x).double().square().mean().item() == pytest.approx(min(errors.values()), rel=1e-5)


def test_all_zero_stays_zero_and_state_survives_a_copy():
    q = LogSqrt2(4)
    assert q(torch.zeros(3, 5)).equal(torch.zeros(3, 5)) and q.scale.item() == 1
    other = LogSqrt2(4)
    q.scale = torch.tensor([0.3])
    other.load_state_dict(copy.deepcopy(q.state_dict()))
    assert other(torch.tensor([0.3])).equal(torch.tensor([0.3]))
