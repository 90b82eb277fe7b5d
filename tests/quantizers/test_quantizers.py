"""Properties of every quantizer, and the range estimators."""

import copy

import pytest
import torch

from vitq.errors import InputError
from vitq.quantizers import LSQ, Uniform
from vitq.quantizers.ranges import lsq_scale, max_scale, mse_scale
from vitq.testing import assert_frozen_stays, assert_ints_equal, assert_on_grid, assert_straight_through

MAKE = {
    "lsq": lambda **k: LSQ(3, **k),
    "lsq-paper": lambda **k: LSQ(3, variant="paper", **k),
    "lsq-channel": lambda **k: LSQ(4, channel_axis=0, init="lsq", **k),
    "lsq-unsigned": lambda **k: LSQ(4, signed=False, **k),
    "uniform": lambda **k: Uniform(3, **k),
    "affine": lambda **k: Uniform(4, symmetric=False, **k),
    "affine-channel": lambda **k: Uniform(8, symmetric=False, channel_axis=0, **k),
}


@pytest.fixture(params=MAKE)
def quantizer(request):
    return MAKE[request.param]()


@pytest.fixture(params=[torch.float32, torch.float64])
def x(request):
    return torch.randn(6, 4, 3, 3, generator=torch.Generator().manual_seed(1)).to(request.param)


def test_outputs_are_on_the_grid(quantizer, x):
    quantizer.to(x.dtype)
    quantizer(x)
    assert_on_grid(quantizer, x)


def test_straight_through(x):
    for name in ("lsq", "lsq-paper", "lsq-channel", "lsq-unsigned", "uniform"):
        quantizer = MAKE[name]()
        quantizer.initialize(x)
        assert_straight_through(quantizer, x)


def test_idempotent(quantizer, x):
    once = quantizer(x).detach()
    torch.testing.assert_close(quantizer(once), once)


def test_state_survives_reload_copy_and_dtype(quantizer, x):
    quantizer(x)
    quantizer.freeze(x > 1, torch.ones_like(x, dtype=torch.int8))
    fresh = copy.deepcopy(quantizer)
    fresh.unfreeze()
    fresh.load_state_dict(quantizer.state_dict())
    assert torch.equal(fresh(x), quantizer(x))
    assert torch.equal(copy.deepcopy(quantizer)(x), quantizer(x))
    assert quantizer.double()(x.double()).dtype == torch.float64


def test_frozen_weights_stay(x):
    quantizer = LSQ(3)
    quantizer.initialize(x)
    quantizer.freeze(x > 0.5, torch.full_like(x, 2).to(torch.int8))
    assert_frozen_stays(quantizer, x)


def test_freezing_is_in_the_integer_domain(x):
    # spec test 6: doubling s doubles the value, dL/dw = 0, dq/ds = the stored integer
    quantizer = LSQ(3)
    quantizer.initialize(x)
    mask = torch.zeros_like(x, dtype=torch.bool)
    mask[0, 0, 0, 0] = True
    quantizer.freeze(mask, torch.full_like(x, 2).to(torch.int8))
    before = quantizer(x)[0, 0, 0, 0].item()
    w = x.clone().requires_grad_()
    quantizer(w)[0, 0, 0, 0].backward()
    assert w.grad.abs().max() == 0
    assert quantizer.scale.grad.item() == 2
    quantizer.scale.data.mul_(2)
    assert quantizer(x)[0, 0, 0, 0].item() == 2 * before
    assert quantizer.codes(x)[0, 0, 0, 0] == 2


def test_signedness_is_chosen_from_the_data_and_saved():
    q = LSQ(4, signed=None)
    q(torch.rand(10))
    assert (q.qmin, q.qmax) == (0, 15)
    other = LSQ(4, signed=None)
    other.load_state_dict(q.state_dict())
    assert (other.qmin, other.qmax, other.initialized) == (0, 15, True)
    q.initialize(-torch.rand(10))
    assert (q.qmin, q.qmax) == (-8, 7)


def test_lsq_gradient_scale_is_one_over_sqrt_p_n():
    # spec 2.2: 3 bit signed, N = 1000 -> 0.0182574
    x, grads = torch.randn(1000), []
    for mode in ("none", "lsq"):
        q = LSQ(3, grad_scale=mode)
        q.initialize(x)
        q(x).pow(2).sum().backward()
        grads.append(q.scale.grad.item())
    assert grads[1] / grads[0] == pytest.approx(0.0182574, rel=1e-5)


@pytest.mark.parametrize(("x", "bits", "signed", "scale"), [
    (torch.linspace(-1, 1, 2001), 3, True, 0.275),
    (torch.linspace(-1, 1, 2001), 4, True, 0.93 / 7),
    (torch.linspace(0, 1, 1001), 4, False, 0.065),
])
def test_mse_range_of_the_spec(x, bits, signed, scale):
    # spec test 10: thresholds 0.825, 0.93, 0.975; one candidate more or less is allowed
    q = LSQ(bits, signed=None)
    q.initialize(x)
    assert q.signed is signed
    assert q.scale.item() * q.qmax == pytest.approx(scale * q.qmax, abs=0.0151)


def test_mse_range_equals_brute_force():
    x = torch.randn(3, 500, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    for row, found in zip(x, mse_scale(x, -4, 3, 0), strict=True):
        grid = (row.abs().max() + 0.5) * torch.arange(1, 101) / 100 / 3
        errors = torch.stack([((row / s).round().clamp(-4, 3) * s - row).pow(2).sum() for s in grid])
        assert found.item() == pytest.approx(grid[errors.argmin()].item())


def test_other_ranges():
    x = torch.tensor([[1.0, -3.0], [0.5, 0.5]])
    assert max_scale(x, 3, 0).tolist() == pytest.approx([1.0, 0.5 / 3])
    assert lsq_scale(x, 4).tolist() == pytest.approx([2 * 1.25 / 2])


def test_affine_range_covers_the_data_and_keeps_zero():
    x = torch.linspace(-0.3, 2.7, 500)
    q = Uniform(4, symmetric=False)
    y = q(x)
    assert (y - x).abs().max() <= q.scale.item() / 2 + 1e-6
    assert q(torch.zeros(1)).item() == 0
    assert_ints_equal(q.codes(x).aminmax()[1], torch.tensor(15))


def test_all_zero_data_stays_finite():
    for q in (LSQ(3), LSQ(3, channel_axis=0), Uniform(3), Uniform(4, symmetric=False)):
        assert torch.isfinite(q(torch.zeros(4, 4))).all()


@pytest.mark.parametrize(("arguments", "named"), [
    ({"bits": 1}, "bits"), ({"bits": 2.5}, "bits"), ({"bits": 4, "variant": "best"}, "variant"),
    ({"bits": 4, "init": "guess"}, "init"), ({"bits": 4, "grad_scale": 2}, "grad_scale"),
])
def test_wrong_arguments_are_named(arguments, named):
    with pytest.raises(InputError, match=named):
        LSQ(**arguments)


def test_nan_is_refused():
    with pytest.raises(InputError, match="NaN"):
        LSQ(4).initialize(torch.tensor([1.0, float("nan")]))


def test_bits_of_a_checkpoint_must_match():
    with pytest.raises(InputError, match="bits"):
        LSQ(4).load_state_dict(LSQ(3).state_dict())
