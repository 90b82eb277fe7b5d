"""Properties that every quantizer must have, as assertions: a test is a few such lines."""

import copy

import torch
from torch import Tensor, nn

from vitq.quantizers.base import Quantizer


def assert_on_grid(quantizer: Quantizer, x: Tensor) -> None:
    """``quantizer(x)`` equals its dequantized codes exactly, and every code lies in ``qmin .. qmax``."""
    codes = quantizer.codes(x)
    if codes.min() < quantizer.qmin or codes.max() > quantizer.qmax:
        raise AssertionError(f"codes {codes.min()}..{codes.max()} leave the grid {quantizer.qmin}..{quantizer.qmax}")
    torch.testing.assert_close(quantizer(x), quantizer.dequantize(codes, x).to(x.dtype), rtol=0, atol=0)


def assert_ints_equal(a: Tensor, b: Tensor) -> None:
    """Two code tensors are the same integers in the same shape."""
    torch.testing.assert_close(a.to(torch.int64), b.to(torch.int64), rtol=0, atol=0)


def assert_straight_through(quantizer: Quantizer, x: Tensor) -> None:
    """Well inside the grid the gradient passes unchanged; far outside it is 0."""
    x = x.detach().clone().requires_grad_()
    upstream = torch.randn(x.shape, dtype=x.dtype, generator=torch.Generator().manual_seed(0))
    quantizer(x).backward(upstream)
    ratio = quantizer.position(x.detach()).detach()
    inside = (ratio > quantizer.qmin + 0.01) & (ratio < quantizer.qmax - 0.01)
    outside = (ratio < quantizer.qmin - 0.51) | (ratio > quantizer.qmax + 0.51)
    torch.testing.assert_close(x.grad[inside], upstream[inside], rtol=0, atol=0)
    if outside.any() and x.grad[outside].abs().max() != 0:
        raise AssertionError("a value outside the grid receives a gradient")


def assert_frozen_stays(quantizer: Quantizer, weight: Tensor, moves: int = 3) -> None:
    """Frozen entries keep their integer whatever the latent weight does, and send it no gradient."""
    frozen, before = quantizer.frozen, quantizer.codes(weight)
    generator = torch.Generator().manual_seed(0)
    for _ in range(moves):
        moved = (weight.detach() + torch.randn(weight.shape, generator=generator).to(weight)).requires_grad_()
        assert_ints_equal(quantizer.codes(moved)[frozen], before[frozen])
        quantizer(moved).sum().backward()
        if moved.grad[frozen].abs().max() != 0:
            raise AssertionError("a frozen entry receives a gradient")


def assert_same_after_reload(model: nn.Module, fresh: nn.Module, x: Tensor) -> None:
    """``fresh`` with the state dict of ``model``, loaded strictly, and a deep copy give the same output bit for bit."""
    fresh.load_state_dict(model.state_dict(), strict=True)
    model.eval(), fresh.eval()
    with torch.no_grad():
        expected = model(x)
        torch.testing.assert_close(fresh(x), expected, rtol=0, atol=0)
        torch.testing.assert_close(copy.deepcopy(model)(x), expected, rtol=0, atol=0)
