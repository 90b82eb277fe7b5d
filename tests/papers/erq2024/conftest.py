"""A layer with correlated inputs, 4-bit activations and a weight grid, in float64."""

from types import SimpleNamespace

import pytest
import torch

from vitq.papers.erq2024.grid import Grid
from vitq.papers.erq2024.moments import Moments
from vitq.quantizers.affine import Affine
from vitq.quantizers.percentiles import ERQ_WEIGHTS


def make_layer(rows=24, inputs=32, samples=800, bits=4, seed=0, correlation=1.0, spread=1.0, act_bits=4):
    """x = z + correlation * (mixture of a quarter as many factors) + a mean."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, dtype=torch.float64, generator=generator)

    mixing = normal(max(inputs // 4, 1), inputs)
    mean = 0.3 * normal(inputs) * correlation

    def draw(count):
        return (normal(count, inputs) + correlation * normal(count, len(mixing)) @ mixing * 0.7 + mean) * spread

    x, held_out = draw(samples), draw(samples)
    weight, bias = normal(rows, inputs) * 0.1, normal(rows) * 0.1
    quantizer = Affine(act_bits).double()
    x_q = quantizer(x)
    held_out_q = quantizer(held_out)
    y = x @ weight.T + bias
    own = Affine(bits, 0, ERQ_WEIGHTS).double()
    own.initialize(weight)
    return SimpleNamespace(
        x=x, x_q=x_q, y=y, held_out=held_out, held_out_q=held_out_q, weight=weight, bias=bias, quantizer=own,
        grid=Grid.of(own, weight), moments=Moments(inputs, rows).update(x_q, y), act=quantizer,
    )


@pytest.fixture
def layer():
    return make_layer


@pytest.fixture
def one(layer):
    return layer()
