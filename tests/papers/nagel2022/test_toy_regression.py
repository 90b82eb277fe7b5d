"""The toy problem, against section 1 of the spec."""

import pytest
import torch

from vitq.errors import InputError
from vitq.papers.nagel2022 import estimator_gradient, toy_regression

TARGET, S = 0.7107, 1 / 15


def test_the_exact_sequence():
    run = toy_regression()
    below = (run.latent < 0.7).nonzero().flatten().tolist()
    assert [i for i in below if i < 60] == [*range(11, 54, 3), 55, 58]
    assert run.latent[11].item() == pytest.approx(0.699304, abs=5e-7)
    assert run.latent[12].item() == pytest.approx(0.705865, abs=5e-7)


@pytest.mark.parametrize(("step", "share", "switches", "amplitude"), [
    (0.5, 0.3395, 0.6790, 0.033317), (0.149, 0.3395, 0.6789, 0.009928),
    (0.05, 0.3395, 0.6789, 0.003332), (0.01, 0.3395, 0.6789, 0.000666),
])
def test_steady_state_does_not_depend_on_the_learning_rate(step, share, switches, amplitude):
    run = toy_regression(TARGET, learning_rate=step, iterations=40_000)
    assert run.far_share(5000).item() == pytest.approx(share, abs=5e-4)
    assert run.switch_rate(5000).item() == pytest.approx(switches, abs=1e-3)
    assert run.amplitude(5000).item() == pytest.approx(amplitude, rel=2e-3)


def test_share_is_linear_in_the_distance():
    d = torch.tensor([0.5, 0.4, 0.34, 0.25, 0.1, 0.05, 0.02], dtype=torch.float64)
    run = toy_regression((11 - d) * S, 11.4 * S, learning_rate=0.05, iterations=40_000)
    torch.testing.assert_close(run.far_share(5000)[1:], d[1:], atol=1e-3, rtol=0)
    torch.testing.assert_close(run.switch_rate(5000)[1:], 2 * d[1:], atol=2e-3, rtol=0)


def test_the_latent_stays_in_its_band_and_the_mean_reaches_the_target():
    step, d = 0.05, 11 * S - TARGET
    run = toy_regression(learning_rate=step, iterations=40_000)
    late = run.latent[5000:]
    threshold = 10.5 * S
    assert threshold - step * d - 1e-12 <= late.min() and late.max() < threshold + step * (S - d) + 1e-12
    assert run.quantized[5000:].mean().item() == pytest.approx(TARGET, abs=1e-4)


@pytest.mark.parametrize(("estimator", "strength", "share"), [
    ("ewgs", 0.2, 0.3398), ("psg", 1e-4, 0.3365), ("dsq", 2.0, 0.339), ("dsq", 10.0, 0.267),
])
def test_multiplicative_estimators_oscillate_for_ever(estimator, strength, share):
    run = toy_regression(TARGET, learning_rate=0.05, estimator=estimator, strength=strength, iterations=60_000)
    assert run.far_share(20_000).item() == pytest.approx(share, abs=3e-3)
    assert run.switch_rate(50_000).item() > 0.4


def test_dampening_stops_the_oscillation_from_its_threshold_on():
    strengths = torch.tensor([0, 0.1, 0.2, 0.3, 0.33, 0.345], dtype=torch.float64)
    rates = toy_regression(TARGET, learning_rate=0.05, estimator="dampening", strength=strengths,
                           iterations=40_000).switch_rate(10_000)
    torch.testing.assert_close(rates, torch.tensor([0.679, 0.603, 0.476, 0.222, 0.083, 0.0], dtype=torch.float64),
                               atol=2e-3, rtol=0)


def test_strong_dampening_traps_the_wrong_level():
    run = toy_regression(TARGET, 0.6667, learning_rate=0.05, estimator="dampening", strength=torch.tensor([0.65, 0.67]),
                         iterations=5000)
    assert run.quantized[:, -1].tolist() == pytest.approx([11 * S, 10 * S])


@pytest.mark.parametrize(("estimator", "strength"), [("ewgs", 0.2), ("psg", 1e-4), ("dsq", 5.0)])
def test_a_positive_factor_keeps_the_sign(estimator, strength):
    w = torch.rand(1000, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    target = torch.tensor(TARGET, dtype=torch.float64)
    _, g = estimator_gradient(w, target, S)
    _, other = estimator_gradient(w, target, S, estimator=estimator, strength=strength)
    assert torch.equal(g.sign(), other.sign())


def test_wrong_arguments():
    with pytest.raises(InputError, match="estimator"):
        toy_regression(estimator="magic")
    with pytest.raises(InputError, match="scale"):
        toy_regression(scale=0)
