"""The toy regression: T14 of the specification, with what it shows and what it does not."""

import pytest
import torch

from vitq.errors import InputError
from vitq.papers.ofq2023.toy import scale_derivative, toy_regression
from vitq.quantizers import LSQ, StatsQ

SMALL = {"rows": 32, "steps": 600}


def test_the_derivative_jumps_by_one_at_each_threshold_and_is_that_of_lsq():
    v = torch.tensor([-3.0, -1.501, -1.499, -0.501, -0.499, 0.0, 0.499, 0.501, 2.0])
    expected = torch.tensor([-2, -0.499, 0.499, -0.499, 0.499, 0, -0.499, 0.499, 1])
    torch.testing.assert_close(scale_derivative(v, -2, 1), expected)
    quantizer = LSQ(2, variant="paper")
    quantizer.initialized = True  # s = 1
    found = [torch.autograd.grad(quantizer(x).sum(), quantizer.scale)[0].item() for x in v]
    assert found == pytest.approx(expected.tolist(), abs=1e-6)


def test_a_learned_scale_is_restless_and_moves_codes():
    learned, held, statistical = (toy_regression(*given, **SMALL, learn_scale_for=steps).late()
                                  for given, steps in ((["lsq"], None), (["lsq"], 300), (["statsq"], None)))
    assert learned["variance"] > 3 * statistical["variance"] > 0 == held["variance"]
    assert learned["by_scale"] > 1.3 * statistical["by_scale"] > 0 == held["by_scale"]


def test_all_methods_oscillate_around_the_same_problem():
    runs = [toy_regression(name, **SMALL) for name in ("lsq", "statsq")]
    assert torch.equal(runs[0].latent[0], runs[1].latent[0])
    for run, quantizer in zip(runs, (LSQ(2), StatsQ(2)), strict=True):
        assert run.latent.shape == run.codes.shape == (601, 32, 8) and run.step_size.shape == (601, 32)
        assert run.codes.dtype == torch.int8 and run.codes.min() == quantizer.qmin and run.codes.max() == quantizer.qmax
        assert 0.05 < run.late()["reversals"] < 0.5
        assert run.error[-100:].mean() < 0.5 * run.error[0]


def test_the_scale_stands_still_where_it_is_held():
    run = toy_regression("lsq", rows=4, steps=40, learn_scale_for=20)
    assert (run.step_size[:20] != run.step_size[1:21]).any() and (run.step_size[20:] == run.step_size[20]).all()
    assert not run.by_scale[20:].any()


def test_wrong_arguments():
    for given in ({"method": "lsq+"}, {"method": "lsq", "rows": 0}, {"method": "lsq", "steps": -1}):
        with pytest.raises(InputError, match="method|rows|steps"):
            toy_regression(**given)
    with pytest.raises(InputError, match="share"):
        toy_regression("statsq", rows=2, steps=4).late(0)
