"""Rounding refinement: tests 12, 13 and 19 of the specification, and the three flip rules."""

import time

import pytest
import torch

from vitq.errors import InputError
from vitq.papers.erq2024.refinement import FLIP_RULES, refine_rounding

RULES = pytest.mark.parametrize("rule", FLIP_RULES)


def problem(one, columns=16):
    values, grid = one.weight[:, :columns][None], one.grid.columns(slice(0, columns))
    low, high = grid.candidates(values)
    return grid.nearest(values) - values, low - values, high - values, one.moments.second_moment[:, :columns, :columns]


def slow(d, low, high, c, rule, rounds):
    """One row, one flip at a time, everything recomputed."""
    d, proxies, stuck = d.clone(), [(d @ c @ d).item()], False
    for _ in range(rounds):
        g = 2 * d @ c
        other = torch.where(d == low, high, low)
        if rule == "exact_gain":
            gains = torch.stack([(d.index_put((torch.tensor(j),), other[j]) @ c
                                  @ d.index_put((torch.tensor(j),), other[j])) for j in range(len(d))]) - proxies[-1]
            j = gains.argmin()
            if gains[j] >= -1e-15:
                break
            new = other[j]
        else:
            score = torch.where(d * g > 0, g.abs(), -1)
            j = score.argmax()
            if score[j] < 0:
                break
            v = d[j] - g[j]
            snap = low[j] if (v - low[j]).abs() < (v - high[j]).abs() else high[j]
            new = snap if rule == "snap_code" else other[j]
            if new == d[j]:
                stuck = True
                break
        trial = d.clone()
        trial[j] = new
        value = (trial @ c @ trial).item()
        if value > proxies[-1]:
            break
        d = trial
        proxies.append(value)
    return d, proxies, stuck


@RULES
@pytest.mark.parametrize("spread", [0.3, 1.0])
def test_each_row_is_what_a_plain_loop_gives(layer, rule, spread):
    one = layer(spread=spread, bits=3)
    d, low, high, c = problem(one)
    found = refine_rounding(d, low, high, c, rule, rounds=40)
    expected = [slow(d[0, r], low[0, r], high[0, r], c[0], rule, 40) for r in range(24)]
    torch.testing.assert_close(found.error[0], torch.stack([e[0] for e in expected]), rtol=0, atol=0)
    torch.testing.assert_close(found.proxy[0], torch.tensor([e[1][-1] for e in expected], dtype=torch.float64))
    assert found.stuck == pytest.approx(sum(e[2] for e in expected) / 24)
    assert found.flips == sum(len(e[1]) - 1 for e in expected)


@RULES
@pytest.mark.parametrize("k", [1, 3])
def test_the_proxy_never_grows_and_every_entry_is_a_candidate(one, rule, k):
    d, low, high, c = problem(one)
    found = refine_rounding(d, low, high, c, rule, k=k, trace=True)
    assert (found.trace.diff(dim=0) <= 1e-15).all()
    assert ((found.error == low) | (found.error == high)).all()
    torch.testing.assert_close(found.trace[-1], ((found.error @ c) * found.error).sum(-1), rtol=1e-10, atol=1e-13)
    torch.testing.assert_close(found.proxy, found.trace[-1])
    assert refine_rounding(d, low, high, c, rule, k=k, rounds=0).error.equal(d)


@RULES
def test_order_of_rows_columns_and_size_of_the_batch_do_not_matter(one, rule):
    d, low, high, c = problem(one)
    found = refine_rounding(d, low, high, c, rule)
    for batch in (1, 7, 24):
        assert refine_rounding(d, low, high, c, rule, row_batch=batch).error.equal(found.error)
    order = torch.randperm(24, generator=torch.Generator().manual_seed(0))
    assert refine_rounding(*(t[:, order] for t in (d, low, high)), c, rule).error.equal(found.error[:, order])
    order = torch.randperm(16, generator=torch.Generator().manual_seed(1))
    permuted = refine_rounding(*(t[..., order] for t in (d, low, high)), c[:, order][:, :, order], rule)
    assert permuted.error.equal(found.error[..., order])


def test_the_gain_formula_is_the_recomputed_difference(one):
    d, low, high, c = (t[0] for t in problem(one))
    g, proxy = 2 * d @ c, ((d @ c) * d).sum(1)
    other = low + high - d
    gains = (other - d) * g + (other - d) ** 2 * c.diagonal()
    for j in range(16):
        moved = d.clone()
        moved[:, j] = other[:, j]
        torch.testing.assert_close(((moved @ c) * moved).sum(1) - proxy, gains[:, j], rtol=1e-10, atol=1e-12)


def test_exact_gain_ends_where_no_single_flip_helps(one):
    d, low, high, c = problem(one)
    found = refine_rounding(d, low, high, c, rounds=1000)
    change = low + high - 2 * found.error
    gains = change * (2 * found.error @ c) + change**2 * c.diagonal(dim1=-2, dim2=-1)[:, None]
    assert gains.min() > -1e-12 and found.stuck == 0


def test_a_clipped_weight_stops_the_released_rules_but_not_ours():
    c = torch.tensor([[1.0, 0.9], [0.9, 1.0]], dtype=torch.float64)
    d = torch.tensor([[2.0, 0.5]], dtype=torch.float64)  # the first is clipped
    low, high = torch.tensor([[2.0, -0.5]]).double(), torch.tensor([[2.0, 0.5]]).double()
    for rule in ("snap_code", "hard_paper"):
        found = refine_rounding(d, low, high, c, rule)
        assert found.stuck == 1 and found.error.equal(d)
    assert refine_rounding(d, low, high, c).error.tolist() == [[2.0, -0.5]]


def test_the_released_rule_depends_on_the_scale_of_the_inputs(layer):
    choices = {rule: [] for rule in FLIP_RULES}
    for factor in (1.0, 0.05):
        d, low, high, c = problem(layer())
        for rule, found in choices.items():
            found.append(refine_rounding(d, low, high, c * factor, rule).error)
    assert choices["exact_gain"][0].equal(choices["exact_gain"][1])
    assert choices["hard_paper"][0].equal(choices["hard_paper"][1])
    assert not choices["snap_code"][0].equal(choices["snap_code"][1])


def test_diagonal_moments_leave_the_nearest_rounding(one):
    d, low, high, _ = problem(one)
    c = torch.diag(torch.rand(16, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) + 0.1)[None]
    for rule in FLIP_RULES:
        assert refine_rounding(d, low, high, c, rule).error.equal(d)


def test_groups_use_their_own_moments(one):
    d, low, high, c = problem(one)
    two = torch.cat([c, torch.eye(16, dtype=c.dtype)[None]])
    both = refine_rounding(*(torch.cat([t, t]) for t in (d, low, high)), two, row_batch=9)
    assert both.error[0].equal(refine_rounding(d, low, high, c).error[0]) and both.error[1].equal(d[0])


@pytest.mark.slow
def test_ten_times_as_fast_as_a_loop_over_rows(layer):
    one = layer(rows=384, inputs=1536, samples=2000)
    d, low, high, c = problem(one, 768)
    begin = time.perf_counter()
    refine_rounding(d, low, high, c)
    batched = time.perf_counter() - begin
    begin = time.perf_counter()
    for row in range(2):  # each row with the same incremental search, in numpy: the loop that one would write
        loop_row(*(t[0, row].numpy() for t in (d, low, high)), c[0].numpy())
    assert (time.perf_counter() - begin) * 192 > 10 * batched


def loop_row(d, low, high, c):
    for _ in range(100):
        g = 2 * d @ c
        other = low + high - d
        gains = (other - d) * g + (other - d) ** 2 * c.diagonal()
        j = gains.argmin()
        if gains[j] >= 0:
            break
        d = d.copy()
        d[j] = other[j]
    return d


@pytest.mark.parametrize(("name", "value"), [("k", 0), ("rounds", -1), ("row_batch", 0), ("rule", "soft")])
def test_wrong_arguments_are_refused(one, name, value):
    with pytest.raises(InputError):
        refine_rounding(*problem(one), **{name: value})
