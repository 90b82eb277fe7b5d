"""Dampening loss, against test 8 of the spec, and its schedule."""

import pytest
import torch

from vitq.errors import InputError
from vitq.papers.nagel2022 import Dampening, dampening_loss
from vitq.quantizers import LSQ

W = [-5, -4.2, -0.4, 0.5, 0.6, 2.9, 3.4, 10]


def unit_quantizer(bits=3):
    q = LSQ(bits)
    q.initialized = True
    return q


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_loss_and_gradient_of_the_spec(dtype):
    w, q = torch.tensor(W, dtype=dtype, requires_grad=True), unit_quantizer().to(dtype)
    loss = dampening_loss(w, q)
    loss.backward()
    assert loss.item() == pytest.approx(0.58, abs=1e-6)
    assert w.grad.tolist() == pytest.approx([0, 0, -0.8, 1.0, -0.8, -0.2, 0, 0], abs=1e-6)
    assert q.scale.grad is None or q.scale.grad.item() == 0


def test_equals_the_formula_through_autograd():
    q = LSQ(3, channel_axis=0)
    w = torch.randn(4, 3, 3, 3)
    q.initialize(w)
    a, b = w.clone().requires_grad_(), w.clone().requires_grad_()
    dampening_loss(a, q).backward()
    s = q.step_size(b)
    clipped = torch.minimum(torch.maximum(b, s * q.qmin), s * q.qmax)
    (q(b).detach() - clipped).pow(2).sum().backward()
    torch.testing.assert_close(a.grad, b.grad)


def test_zero_on_the_grid():
    w, q = torch.arange(-4.0, 4).requires_grad_(), unit_quantizer()
    dampening_loss(w, q).backward()
    assert w.grad.abs().max() == 0


def test_reductions():
    q, w = LSQ(3), torch.randn(4, 3, 3, 3)
    q.initialize(w)
    total = dampening_loss(w, q, "sum")
    torch.testing.assert_close(dampening_loss(w, q, "kernel_mean"), total / 27)
    torch.testing.assert_close(dampening_loss(w, q, "mean"), total / 108)
    with pytest.raises(InputError, match="reduction"):
        dampening_loss(w, q, "max")


def test_frozen_weights_are_pulled_to_their_frozen_value():
    q, w = unit_quantizer(), torch.tensor([0.4, 0.4])
    q.freeze(torch.tensor([True, False]), torch.tensor([1, 0], dtype=torch.int8))
    w.requires_grad_()
    dampening_loss(w, q).backward()
    assert w.grad.tolist() == pytest.approx([2 * (0.4 - 1), 2 * 0.4])


def test_schedule_of_the_spec():
    d = Dampening(0.0, 0.1, begin=0.25)
    values = {t: d.strength(t, 100) for t in (10, 40, 62.5, 80, 100)}
    assert values == pytest.approx({10: 0, 40: 0.0095492, 62.5: 0.05, 80: 0.0834565, 100: 0.1}, abs=1e-7)
    assert Dampening(0.3).strength(1, 100) == 0.3


def test_negative_strength_is_refused():
    with pytest.raises(InputError, match="final"):
        Dampening(0, -1)
