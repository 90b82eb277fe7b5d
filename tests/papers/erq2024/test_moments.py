"""Streaming moments: test 10 (streaming part) and 11 of the specification."""

import pytest
import torch

from vitq.errors import InputError
from vitq.papers.erq2024.moments import Moments, solve


def test_parts_and_the_whole_give_the_same_sums(one):
    parts = Moments(32, 24)
    for x, y in zip(one.x_q.split(130), one.y.split(130), strict=True):
        parts.update(x, y)
    augmented = torch.cat([one.x_q, torch.ones(len(one.x_q), 1, dtype=torch.float64)], 1)
    for moments in (parts, one.moments):
        torch.testing.assert_close(moments.gram[0], augmented.T @ augmented, rtol=1e-12, atol=1e-9)
        torch.testing.assert_close(moments.cross[0], augmented.T @ one.y, rtol=1e-12, atol=1e-9)
        assert moments.count == len(one.x_q)


def test_integer_products_are_exact(one):
    step = one.act.scale.item()
    exact = Moments(32, 24).update(one.x_q, one.y, step)
    torch.testing.assert_close(exact.gram, one.moments.gram, rtol=1e-12, atol=1e-9)
    codes = (one.x_q / step).round().to(torch.int64)
    expected = (codes.T @ codes).double() * step**2
    assert exact.gram[0, :-1, :-1].equal(expected)
    shuffled = Moments(32, 24)
    for part in torch.randperm(len(one.x_q)).split(77):
        shuffled.update(one.x_q[part], one.y[part], step)
    torch.testing.assert_close(shuffled.gram[0, :-1, :-1], expected, rtol=1e-14, atol=1e-12)


def test_float32_inputs_are_added_up_in_float64():
    x = torch.full((2**20, 1), 0.1)
    moments = Moments(1, 1)
    for part in x.split(2**16):
        moments.update(part, part)
    assert moments.gram[0, 0, 0].item() == pytest.approx(2**20 * x[0].double().item() ** 2, rel=1e-12)


def test_the_proxy_is_an_identity(one):
    d = torch.randn(24, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    direct = (one.x_q @ d.T).square().mean(0)
    moment = one.moments.second_moment[0]
    torch.testing.assert_close(((d @ moment) * d).sum(1), direct, rtol=1e-12, atol=1e-12)
    unbiased = one.moments.unbiased_moment[0]
    torch.testing.assert_close(unbiased - one.x_q.mean(0).outer(one.x_q.mean(0)), one.x_q.T.cov())
    gap = ((d @ unbiased) * d).sum(1) / direct - 1
    assert (gap > 0).all() and (gap <= 1.001 / (len(one.x_q) - 1)).all()


def test_projection_equals_the_outputs(one):
    ours = Moments(32, 32).update(one.x_q, one.x).project(one.weight[None], one.bias[None])
    torch.testing.assert_close(ours.cross, one.moments.cross, rtol=1e-11, atol=1e-9)


def test_groups_are_apart(one):
    both = Moments(32, 24, 2).update(torch.stack([one.x_q, one.x]), torch.stack([one.y, one.y]))
    torch.testing.assert_close(both.gram[0], one.moments.gram[0])
    torch.testing.assert_close(both.cross[1], Moments(32, 24).update(one.x, one.y).cross[0])


def test_output_error_of_a_weight(one):
    w = one.grid.nearest(one.weight)
    direct = (one.x_q @ w[0].T + one.bias - one.y).square().sum(1).mean().item()
    assert one.moments.residual_energy(w, one.bias[None]) == pytest.approx(direct, rel=1e-9)


def test_solve_survives_a_singular_matrix():
    x = torch.ones(5, 4, dtype=torch.float64)
    assert torch.isfinite(solve((x.T @ x)[None], 0.0, torch.ones(1, 4, 1, dtype=torch.float64))).all()
    with pytest.raises(InputError, match="NaN"):
        solve(torch.full((1, 2, 2), torch.nan, dtype=torch.float64), 1.0, torch.ones(1, 2, 1, dtype=torch.float64))


def test_rows_that_do_not_fit_are_refused(one):
    with pytest.raises(InputError, match="do not fit"):
        Moments(31, 24).update(one.x_q, one.y)
