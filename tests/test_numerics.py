"""Rounding, fake quantization and packing: pure functions."""

import pytest
import torch

from vitq.errors import InputError
from vitq.numerics import (
    blend,
    check_bits,
    fake_quantize,
    grad_scale,
    integer_codes,
    pack_codes,
    round_ste,
    unpack_codes,
)

# x, q, dq/dx, dq/ds at 3 bit signed, s = 1 (spec of Nagel 2022, test 9)
RELEASED = [(-5, -4, 0, -4), (-4.5, -4, 1, 0.5), (-0.5, 0, 1, 0.5), (0.5, 0, 1, -0.5), (1.5, 2, 1, 0.5),
            (2.3, 2, 1, -0.3), (3.2, 3, 1, -0.2), (3.49, 3, 1, -0.49), (3.5, 3, 0, 3), (4, 3, 0, 3)]
PAPER = [(-5, -4, 0, -4), (-4.5, -4, 0, -4), (-0.5, 0, 1, 0.5), (0.5, 0, 1, -0.5), (1.5, 2, 1, 0.5),
         (2.3, 2, 1, -0.3), (3.2, 3, 0, 3), (3.49, 3, 0, 3), (3.5, 3, 0, 3), (4, 3, 0, 3)]
DTYPES = [torch.float32, torch.float64]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("variant", "table"), [("released", RELEASED), ("paper", PAPER)])
def test_values_and_gradients_of_the_spec(variant, table, dtype):
    for value, q, dx, ds in table:
        x = torch.tensor([value], dtype=dtype, requires_grad=True)
        s = torch.ones(1, dtype=dtype, requires_grad=True)
        y = fake_quantize(x, s, -4, 3, variant)
        y.backward()
        assert (y.item(), x.grad.item()) == (q, dx), value
        assert s.grad.item() == pytest.approx(ds, abs=1e-6), value


def test_per_channel_scale_gradient_equals_per_tensor_on_each_row():
    x, s = torch.randn(3, 5, 2), torch.tensor([0.1, 0.3, 0.5])
    g = torch.randn_like(x)
    a, sa = x.clone().requires_grad_(), s.reshape(3, 1, 1).clone().requires_grad_()
    fake_quantize(a, sa, -4, 3).backward(g)
    for i in range(3):
        b, sb = x[i].clone().requires_grad_(), s[i : i + 1].clone().requires_grad_()
        fake_quantize(b, sb, -4, 3).backward(g[i])
        torch.testing.assert_close(a.grad[i], b.grad, rtol=0, atol=0)
        torch.testing.assert_close(sa.grad[i].flatten(), sb.grad, rtol=1e-4, atol=1e-5)


def test_channels_last_gives_the_same_gradients():
    x, g = torch.randn(2, 3, 4, 5), torch.randn(2, 3, 4, 5)
    grads = []
    for fmt in (torch.contiguous_format, torch.channels_last):
        a, s = x.to(memory_format=fmt, copy=True).requires_grad_(), torch.full((1,), 0.3, requires_grad=True)
        fake_quantize(a, s, -4, 3).backward(g.to(memory_format=fmt))
        grads.append((a.grad, s.grad))
    torch.testing.assert_close(grads[0], grads[1])


def test_half_precision_is_quantized_in_float32():
    x = torch.linspace(-2, 2, 101).bfloat16()
    expected = fake_quantize(x.float(), torch.tensor([0.123]), -8, 7).bfloat16()
    torch.testing.assert_close(fake_quantize(x, torch.tensor([0.123]), -8, 7), expected, rtol=0, atol=0)


def test_rounding_is_half_to_even_and_straight_through():
    x = torch.tensor([0.5, 1.5, 2.5, -4.5, 3.5], requires_grad=True)
    y = round_ste(x)
    y.sum().backward()
    assert y.tolist() == [0, 2, 2, -4, 4]
    assert x.grad.tolist() == [1] * 5


def test_grad_scale_keeps_the_value_and_scales_the_gradient():
    x = torch.tensor([2.0], requires_grad=True)
    (grad_scale(x, 0.25) * 3).backward()
    assert grad_scale(x, 0.25).item() == 2.0
    assert x.grad.item() == 0.75


@pytest.mark.parametrize("bits", range(1, 9))
@pytest.mark.parametrize("signed", [True, False])
def test_packing_round_trips_and_is_dense(bits, signed):
    low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1)) if signed else (0, 2**bits)
    codes = torch.randint(low, high, (7, 5, 3), generator=torch.Generator().manual_seed(bits))
    packed = pack_codes(codes, bits)
    assert packed.numel() == -(-codes.numel() * bits // 8)
    assert torch.equal(unpack_codes(packed, bits, (7, 5, 3), signed).long(), codes)


def test_unpacking_refuses_another_shape():
    with pytest.raises(InputError, match="shape"):
        unpack_codes(torch.zeros(3, dtype=torch.uint8), 4, (7,), True)


@pytest.mark.parametrize("bits", [0, 1, 9, 2.5, "4", True, None])
def test_wrong_bits_are_named(bits):
    with pytest.raises(InputError, match="weight_bits"):
        check_bits("weight_bits", bits)


def test_codes_have_the_narrowest_type():
    x = torch.tensor([-9.0, 300.0])
    assert integer_codes(x, torch.ones(1), -8, 7).dtype == torch.int8
    assert integer_codes(x, torch.ones(1), 0, 255).tolist() == [0, 255]


@pytest.mark.parametrize("dtype", [torch.int8, torch.int16, torch.float32, torch.float64])
def test_blend_is_where(dtype):
    a, b = (torch.randint(-128, 128, (1000,)).to(dtype) / (1 if not dtype.is_floating_point else 7) for _ in range(2))
    a, b, mask = a.to(dtype), b.to(dtype), torch.rand(1000) < 0.5
    assert torch.equal(blend(mask, a, b), torch.where(mask, a, b))


def test_blend_sends_each_gradient_to_its_side():
    a, b, mask = torch.ones(2, requires_grad=True), torch.ones(2, requires_grad=True), torch.tensor([True, False])
    (blend(mask, a, b) * torch.tensor([2.0, 3.0])).sum().backward()
    assert (a.grad.tolist(), b.grad.tolist()) == ([2, 0], [0, 3])
