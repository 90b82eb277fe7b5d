"""The integer program on tiny problems: test 14 of the specification."""

import itertools

import pytest
import torch

from vitq.errors import InputError
from vitq.papers.erq2024.mipq import brute_force, solve_mipq
from vitq.papers.erq2024.refinement import FLIP_RULES, refine_rounding


def problem(n, seed, clipped=False):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(40, n, dtype=torch.float64, generator=generator) @ torch.randn(n, n, dtype=torch.float64,
                                                                                     generator=generator)
    low = -torch.rand(n, dtype=torch.float64, generator=generator)
    high = low + 1
    if clipped:
        low[::3] = high[::3] = low[::3] - 0.5
    return low, high, x.T @ x / 40


def test_brute_force_is_the_least_of_all_choices():
    low, high, c = problem(6, 0)
    values = [d @ c @ d for d in (torch.where(torch.tensor(b), high, low)
                                  for b in itertools.product([False, True], repeat=6))]
    found = brute_force(low, high, c)
    assert found.value == pytest.approx(min(values).item(), rel=1e-12) and found.optimal
    torch.testing.assert_close(found.error @ c @ found.error, min(values))


@pytest.mark.parametrize("clipped", [False, True])
@pytest.mark.parametrize("n", [1, 4, 8])
def test_the_linear_program_finds_the_optimum(n, clipped):
    for seed in range(3):
        low, high, c = problem(n, seed, clipped)
        exact, found = brute_force(low, high, c), solve_mipq(low, high, c)
        assert found.value == pytest.approx(exact.value, rel=1e-9, abs=1e-12) and found.optimal
        assert found.choice.equal(exact.choice)
        if clipped:
            assert not found.choice[::3].any() and not exact.choice[::3].any()


def test_optimum_below_every_heuristic_below_nearest():
    ratio = {rule: [] for rule in (*FLIP_RULES, "nearest")}
    for seed in range(40):
        low, high, c = problem(10, seed)
        nearest = torch.where(high.abs() < low.abs(), high, low)
        start, optimum = (nearest @ c @ nearest).item(), brute_force(low, high, c).value
        ratio["nearest"].append(start / optimum)
        for rule in FLIP_RULES:
            value = refine_rounding(nearest[None], low[None], high[None], c, rule).proxy.item()
            assert optimum <= value * (1 + 1e-12) and value <= start * (1 + 1e-12)
            ratio[rule].append(value / optimum)
    mean = {rule: sum(values) / 40 for rule, values in ratio.items()}
    assert mean["exact_gain"] < mean["hard_paper"] <= mean["nearest"] and mean["exact_gain"] < mean["snap_code"]


def test_a_time_limit_ends_the_search():
    found = solve_mipq(*problem(16, 0), time_limit=1)
    nearest_low = problem(16, 0)[0]
    assert found.error.shape == nearest_low.shape and found.value >= brute_force(*problem(16, 0)).value - 1e-9


def test_wrong_shapes_are_refused():
    low, high, c = problem(5, 0)
    with pytest.raises(InputError, match="one row"):
        solve_mipq(low, high[:4], c)
    with pytest.raises(InputError, match="brute force"):
        brute_force(torch.zeros(30), torch.ones(30), torch.eye(30))
