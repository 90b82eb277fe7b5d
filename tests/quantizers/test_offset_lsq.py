"""LSQ as OFQ uses it: T10 of the specification, offsets, scales over several axes."""

import copy

import pytest
import torch

from vitq.errors import InputError
from vitq.quantizers import LSQ, OffsetLSQ
from vitq.testing import assert_on_grid

X = torch.tensor([[1.0, -2.0, 0.5, 0.1], [0.3, 0.2, -0.1, 4.0]])


def test_signed_two_bits_of_the_specification():
    quantizer, x = OffsetLSQ(2, True, -2), X.clone().requires_grad_()
    y = quantizer(x)
    torch.testing.assert_close(quantizer.scale.detach(), torch.tensor([1.8, 2.3]))
    torch.testing.assert_close(y, torch.tensor([[1.8, -1.8, 0, 0], [0, 0, 0, 2.3]]))
    y.sum().backward()
    torch.testing.assert_close(quantizer.scale.grad, torch.tensor([0.1111, 0.4130]), atol=1e-4, rtol=0)
    assert x.grad.tolist() == [[1, 1, 1, 1], [1, 1, 1, 0]]


def test_unsigned_two_bits_of_the_specification():
    quantizer = OffsetLSQ(2, False, -2, offset_axis=None)
    y = quantizer(X.abs())
    torch.testing.assert_close(quantizer.scale.detach(), torch.tensor([2.0785, 2.6558]), atol=1e-4, rtol=0)
    torch.testing.assert_close(y, torch.tensor([[0, 2.0785, 0, 0], [0, 0, 0, 5.3116]]), atol=1e-4, rtol=0)


def test_weight_baseline_of_the_specification():
    quantizer = LSQ(2, channel_axis=0, init="lsq", grad_scale="lsq", variant="paper")
    assert quantizer(torch.tensor([[0.5, -0.1, 0.2, -1.2]])).tolist() == [[0, 0, 0, -1]]
    assert quantizer.scale.item() == 1.0


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("shape", "axes", "offsets"), [
    ((3, 5, 8), -2, -1), ((3, 5, 2, 4), (1, 2), (2, 3)), ((3, 2, 5, 4), (1, 3), (1, 3)), ((3, 6), None, -1),
    ((2, 3, 4, 4), 1, (2, 3)), ((2, 2, 5, 5), -2, None),
])
def test_gradients_equal_those_of_autograd(shape, axes, offsets, dtype):
    torch.manual_seed(0)
    quantizer = OffsetLSQ(3, True, axes, offsets)
    x = torch.randn(shape, dtype=dtype)
    quantizer.initialize(x)
    quantizer.to(dtype)
    if offsets is not None:
        for offset in (quantizer.pre_offset, quantizer.post_offset):
            offset.data = torch.randn_like(offset) / 3
    x, upstream = x.requires_grad_(), torch.randn(shape, dtype=dtype)
    quantizer(x).backward(upstream)
    found = [x.grad] + [p.grad for p in quantizer.parameters()]
    plain = copy.deepcopy(quantizer)
    y = x.detach().requires_grad_()
    values = y if offsets is None else y + plain._offsets(y)[0]
    ratio = values / plain.step_size(y)
    clipped = ratio.clamp(plain.qmin, plain.qmax)
    out = (clipped + (clipped.round() - clipped).detach()) * plain.step_size(y)
    out = out if offsets is None else out + plain._offsets(y)[1]
    torch.testing.assert_close(quantizer(x), out)
    plain.zero_grad()
    out.backward(upstream)
    for a, b in zip(found, [y.grad] + [p.grad for p in plain.parameters()], strict=True):
        torch.testing.assert_close(a, b)
    assert_on_grid(quantizer, x.detach())


def test_columns_share_a_scale():
    x = torch.randn(2, 12, 6)  # 3 rows of 4 columns
    columns, full = OffsetLSQ(3, True, -2, columns=4), OffsetLSQ(3, True, -2)
    expected = full(x.view(2, 3, 4, 6)).view(2, 12, 6)
    torch.testing.assert_close(columns(x), expected)
    assert columns.scale.numel() == 4
    assert_on_grid(columns, x)


def test_state_and_other_image_sizes():
    quantizer, fresh = OffsetLSQ(4, None, -2), OffsetLSQ(4, None, -2)
    x = torch.randn(2, 5, 3)
    expected = quantizer(x)
    fresh.load_state_dict(quantizer.state_dict())
    assert torch.equal(fresh(x), expected)
    with pytest.raises(InputError, match="image size"):
        quantizer(torch.randn(2, 7, 3))
    assert quantizer(x.bfloat16()).dtype == torch.bfloat16


def test_a_vanishing_scale_keeps_its_gradient():
    quantizer = OffsetLSQ(2, True, offset_axis=None)
    quantizer.initialize(X)
    quantizer.scale.data.fill_(-1.0)
    quantizer(X).sum().backward()
    assert torch.isfinite(quantizer(X)).all() and quantizer.scale.grad.abs().item() > 0
