"""Percentile-searched affine quantizer: tests 1 and 3 of ERQ's specification."""

import pytest
import torch

from vitq.errors import InputError
from vitq.quantizers.affine import Affine
from vitq.quantizers.percentiles import ERQ_WEIGHTS, REPQ, affine_grid, search_affine, upper_quantiles
from vitq.testing import assert_on_grid

BOTH = pytest.mark.parametrize("dtype", [torch.float32, torch.float64])


def data(*shape, dtype=torch.float64, seed=0):
    return torch.randn(shape, dtype=dtype, generator=torch.Generator().manual_seed(seed)) * 2 + 0.7


@BOTH
@pytest.mark.parametrize("axis", [None, 0, -1])
def test_quantized_values_are_fixed_points_on_at_most_2_to_the_b_levels(axis, dtype):
    x = data(48, 40, dtype=dtype)
    q = Affine(3, axis).to(dtype)
    y = q(x)
    assert q(y).equal(y)
    assert_on_grid(q, x)
    rows = {None: [y], 0: y.unbind(0), -1: y.unbind(-1)}[axis]
    assert max(row.unique().numel() for row in rows) == 8


def test_a_fractional_zero_point_gives_one_level_more():
    x = torch.linspace(-3, 3, 1001, dtype=torch.float64)
    q = Affine(4).double()
    q.set_grid(torch.tensor([0.25]), torch.tensor([7.4]))
    assert q(x).unique().numel() == 17 and q.fractional
    q.set_grid(torch.tensor([0.25]), torch.tensor([7.0]))
    assert q(x).unique().numel() == 16 and not q.fractional and 0 in q(x)


@BOTH
@pytest.mark.parametrize("percentiles", [REPQ, ERQ_WEIGHTS])
def test_the_search_returns_the_least_error_of_the_candidates(percentiles, dtype):
    x = data(6, 3000, dtype=dtype)
    scale, zero = search_affine(x, 4, percentiles)
    for row, found in zip(x, zip(scale, zero, strict=True), strict=True):
        tried = []
        for p in percentiles:
            low, high = torch.quantile(row, 1 - p), torch.quantile(row, p)
            s, z = (high - low) / 15, torch.round(-low / ((high - low) / 15))
            codes = (torch.round(row / s) + z).clamp(0, 15)
            tried.append((((codes - z) * s - row) ** 2).mean().item())
        s, z = found
        own = ((((torch.round(row / s) + z).clamp(0, 15) - z) * s - row) ** 2).mean().item()
        assert own == pytest.approx(min(tried), rel=1e-5 if dtype == torch.float32 else 1e-12)


def test_quantiles_equal_those_of_torch():
    x = data(4, 777)
    for p in (1.0, 0.97, 0.5, 0.999):
        torch.testing.assert_close(upper_quantiles(x, (p,))[0], torch.quantile(x, p, dim=1))


def test_data_on_a_grid_is_reproduced_by_the_whole_range():
    x = (torch.arange(16, dtype=torch.float64) - 5) * 0.3
    x = x.repeat(40)
    q = Affine(4, percentiles=ERQ_WEIGHTS).double()
    torch.testing.assert_close(q(x), x, rtol=0, atol=1e-14)
    assert q.scale.item() == pytest.approx(0.3) and q.zero_point.item() == 5


def test_on_a_tie_the_earlier_percentile_wins():
    x = torch.tensor([[-1.0, 2.0]]).repeat(1, 500_000)
    assert search_affine(x, 2, REPQ)[0].item() == pytest.approx(1.0)


def test_equal_values_are_their_own_level():
    for value in (0.0, -3.5, 2e-3):
        x = torch.full((64,), value)
        assert Affine(4)(x).allclose(x, rtol=1e-6)
    low = torch.tensor([0.0, 1.0])
    assert affine_grid(low, low, 16)[0].tolist() == [1.0, 1.0]


def test_the_gradient_is_straight_through_inside_and_zero_outside():
    q = Affine(4).double()
    q.initialize(data(500))
    x = (data(300, seed=1) * 2).requires_grad_()
    q(x).sum().backward()
    position = q.position(x.detach())
    inside, outside = (position > 0) & (position < 15), (position < -0.51) | (position > 15.51)
    assert x.grad[inside].allclose(torch.ones(1, dtype=x.dtype)) and outside.any() and (x.grad[outside] == 0).all()


@pytest.mark.parametrize("percentiles", [(), (0.4,), (0.9, 1.1)])
def test_wrong_percentiles_are_refused(percentiles):
    with pytest.raises(InputError, match="percentiles="):
        Affine(4, percentiles=percentiles)
