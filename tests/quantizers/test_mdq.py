"""The quantizers of VVTQ 2023, against tests T1 to T7 of the specification."""

import math

import pytest
import torch

from vitq.errors import InputError
from vitq.papers.vvtq2023 import bin_regularization
from vitq.quantizers import LSQ, MDQ, MDQActivation
from vitq.quantizers.mdq import FLOOR, least_squares_scale
from vitq.testing import assert_frozen_stays, assert_on_grid

BITS = [2, 3, 4, 8]


def ready(quantizer, scale=1.0):
    quantizer.scale.data = torch.full_like(quantizer.scale, scale)
    quantizer.initialized = True
    return quantizer


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("make", [MDQ, lambda b: MDQ(b, heads=4), lambda b: MDQ(b, heads=4, head_axis=1),
                                  MDQActivation, lambda b: MDQActivation(b, signed=False, offset=True)])
def test_idempotent_on_the_grid_and_equivariant(bits, make):
    torch.manual_seed(0)
    q, w = make(bits), torch.randn(16, 24)
    q.initialize(w)
    y = q(w).detach()
    torch.testing.assert_close(q(y), y)
    assert_on_grid(q, w)
    assert q.codes(w).unique().numel() <= 2**bits
    q.scale.data *= 4
    assert q(4 * w).equal(4 * y)


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_gradients_of_the_closed_form(bits, dtype):
    torch.manual_seed(0)
    q = ready(MDQActivation(bits, True, grad_scale="none", offset=True), 0.7).to(dtype)
    q.offset.data += 0.1
    x, upstream = 3 * torch.randn(50, 20, dtype=dtype), torch.randn(50, 20, dtype=dtype)
    x.requires_grad_()
    q(x).backward(upstream)
    z = ((x - 0.1) / 0.7).detach()
    below, above = z < q.qmin, z > q.qmax
    inside = ~below & ~above
    by_scale = torch.where(below, q.qmin, torch.where(above, q.qmax, z.round() - z))
    torch.testing.assert_close(x.grad, upstream * inside)
    torch.testing.assert_close(q.scale.grad, (upstream * by_scale).sum().reshape(1), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(q.offset.grad, (upstream * ~inside).sum().reshape(1), rtol=1e-4, atol=1e-4)


def test_exact_ties_pass_half_and_an_offset_without_clipping_gets_nothing():
    q = ready(MDQ(3, grad_scale="none"))
    w = torch.tensor([-4.0, 3.0, -4.1, 3.1, -3.9, 2.9], requires_grad=True)
    q(w).sum().backward()
    assert w.grad.tolist() == [0.5, 0.5, 0, 0, 1, 1]
    assert q.scale.grad.item() == pytest.approx(-4 / 2 + 3 / 2 - 4 + 3 - 0.1 + 0.1)
    q = ready(MDQActivation(4, True, offset=True))
    q(torch.rand(30)).sum().backward()
    assert q.offset.grad.item() == 0


def gradient(q, x):
    q.scale.grad = None
    q(x).sum().backward()
    return q.scale.grad


def test_the_gradient_scale_of_weights_follows_the_l1_norm():
    w = torch.randn(32, 32)
    for mode, expected in (("l1", (w.abs().sum() * 3).item() ** -0.5), ("lsq", (w.numel() * 3) ** -0.5)):
        q, plain = ready(MDQ(3, grad_scale=mode), 0.4), ready(MDQ(3, grad_scale="none"), 0.4)
        assert (gradient(q, w) / gradient(plain, w)).item() == pytest.approx(expected, rel=1e-4)
    q = MDQ(3)
    assert float(q.factor(4 * w)) == pytest.approx(float(q.factor(w)) / 2)
    ratio = float(q.factor(w)) / MDQ(3, grad_scale="lsq").factor(w)
    assert ratio == pytest.approx(w.abs().mean().item() ** -0.5, rel=1e-4)


def test_the_gradient_scale_of_activations_follows_the_batch():
    q, x = MDQActivation(3, True), torch.randn(4, 10, 8)
    assert q.factor(x) == pytest.approx(1 / (math.sqrt(320) * 3))
    assert q.factor(torch.cat([x, x])) == pytest.approx(q.factor(x) / math.sqrt(2))
    assert MDQActivation(3, True, grad_scale="lsq").factor(x) == pytest.approx((320 * 3) ** -0.5)


@pytest.mark.parametrize(("bits", "expected"), [(2, 1.042), (3, 0.603), (4, 0.341), (5, 0.189), (6, 0.106)])
def test_least_squares_start_of_normal_weights(bits, expected):
    torch.manual_seed(0)
    q, w = MDQ(bits), torch.randn(192, 192)
    q.initialize(w)
    scale = q.scale.item()
    assert scale == pytest.approx(expected, rel=0.01)
    codes = q.codes(w).double()
    assert abs(((w - scale * codes) * codes).sum() / (codes * codes).sum()).item() < 2e-5 * 10
    if bits <= 5:
        error = (w - q(w).detach()).square().mean().item()
        grid = [(w - s * (w / s).round().clamp(q.qmin, q.qmax)).square().mean().item()
                for s in torch.linspace(0.8, 1.2, 81) * scale]
        assert error <= 1.001 * min(grid)


def test_least_squares_is_capped_and_survives_zeros():
    rows = torch.randn(2, 1000)
    first = least_squares_scale(rows, -4, 3, steps=1)
    start = rows.abs().amax(1, keepdim=True) / 3
    codes = (rows / start).round().clamp(-4, 3)
    torch.testing.assert_close(first, (rows * codes).sum(1) / (codes * codes).sum(1))
    assert least_squares_scale(torch.zeros(1, 5), -4, 3).tolist() == [1.0]
    assert least_squares_scale(rows, -128, 127).isfinite().all()


@pytest.mark.parametrize(("bits", "expected"), [(2, 1.596), (3, 0.921), (4, 0.603), (8, 0.142)])
def test_start_of_normal_activations(bits, expected):
    torch.manual_seed(0)
    x = torch.randn(400, 400)
    for signed in (True, False):  # the signed grid's largest code even where the grid is unsigned
        q = MDQActivation(bits, signed)
        q.initialize(x)
        assert q.scale.item() == pytest.approx(expected, rel=0.01)
    q = MDQActivation(bits, False, init="corrected")
    q.initialize(x)
    ratio = math.sqrt((2**bits - 1) / (2 ** (bits - 1) - 1))
    assert q.scale.item() == pytest.approx(expected / ratio, rel=0.01)


@pytest.mark.parametrize("axis", [0, 1])
def test_heads_with_equal_scales_are_the_layer_and_permute_with_their_scales(axis):
    torch.manual_seed(0)
    w = torch.randn(32, 32)
    layer, head = ready(MDQ(3), 0.3), MDQ(3, heads=4, head_axis=axis)
    head.scale.data = torch.full((4,), 0.3)
    head.initialized = True
    assert head(w).equal(layer(w)) and head.codes(w).equal(layer.codes(w))
    loud = w.clone()
    loud.movedim(axis, 0)[8:16] *= 10  # head 1: output rows, or input columns
    head.initialize(loud)
    assert head.scale.argmax() == 1 and 7 < (head.scale[1] / head.scale[0]).item() < 14
    before, out = head.scale.detach().clone(), head(loud).detach()
    order = torch.tensor([2, 0, 3, 1])

    def permuted(x):
        return x.movedim(axis, 0).unflatten(0, (4, 8))[order].flatten(0, 1).movedim(0, axis)

    head.initialize(permuted(loud))
    assert head.scale.equal(before[order])
    torch.testing.assert_close(head(permuted(loud)), permuted(out))


def test_each_head_has_the_gradient_of_its_slice():
    torch.manual_seed(0)
    w, upstream = torch.randn(32, 16), torch.randn(32, 16)
    head = MDQ(3, heads=4)
    head.initialize(w)
    head(w).backward(upstream)
    for h in range(4):
        alone, rows = ready(MDQ(3), head.scale[h].item()), slice(8 * h, 8 * h + 8)
        alone(w[rows]).backward(upstream[rows])
        torch.testing.assert_close(head.scale.grad[h], alone.scale.grad[0], rtol=1e-4, atol=1e-6)


def test_bins_of_heads_are_apart():
    torch.manual_seed(0)
    w, head = torch.randn(32, 16), MDQ(3, heads=4)
    head.initialize(w)
    alone = [ready(MDQ(3), head.scale[h].item()) for h in range(4)]
    parts = [bin_regularization(w[8 * h : 8 * h + 8], q, "sum") for h, q in enumerate(alone)]
    torch.testing.assert_close(bin_regularization(w, head, "sum"), sum(parts))


def test_a_scale_below_the_floor_can_come_back():
    q, w = ready(MDQ(3), -1.0), torch.randn(8, 8)
    assert q.step_size(w).item() == pytest.approx(FLOOR)
    assert gradient(q, w).item() != 0


def test_frozen_weights_stay_and_state_reloads():
    q, w = MDQ(3, heads=2), torch.randn(8, 8)
    q.initialize(w)
    q.freeze(torch.rand(8, 8) > 0.5, q.codes(w))
    assert_frozen_stays(q, w)
    fresh = MDQ(3, heads=2)
    fresh.load_state_dict(q.state_dict())
    assert fresh(w).equal(q(w))


def test_forward_equals_lsq_at_one_scale():
    w = torch.randn(16, 16)
    lsq = LSQ(4)
    lsq.initialize(w)
    assert ready(MDQ(4), lsq.scale.item())(w).equal(lsq(w))


@pytest.mark.parametrize(("make", "word"), [
    (lambda: MDQ(3, grad_scale="l2"), "grad_scale"), (lambda: MDQ(3, channel_axis=0, heads=4), "heads"),
    (lambda: MDQ(3, heads=4, head_axis=2), "head_axis"), (lambda: MDQActivation(3, init="mse"), "init"),
    (lambda: MDQ(3, heads=5).initialize(torch.randn(8, 8)), "heads=5"),
])  # fmt: skip
def test_wrong_arguments_are_named(make, word):
    with pytest.raises(InputError, match=word):
        make()
