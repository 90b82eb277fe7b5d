"""The data of layers piece by piece, against the whole at once."""

import pytest
import torch
from torch import nn

from vitq.convert import INPUT
from vitq.detection import collect as module
from vitq.detection.collect import RegionData, collect, strips
from vitq.errors import InputError
from vitq.papers.erq2024 import aqer, rows
from vitq.papers.erq2024.collect import LayerData
from vitq.quantizers.affine import Affine


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


CONVOLUTIONS = {
    "3x3": dict(kernel_size=3, padding=1), "1x1": dict(kernel_size=1), "patches": dict(kernel_size=4, stride=4),
    "strided": dict(kernel_size=3, stride=2, padding=1), "dilated": dict(kernel_size=3, dilation=2, padding=2),
    "groups": dict(kernel_size=3, padding=1, groups=2),
}


@pytest.mark.parametrize("name", CONVOLUTIONS)
@pytest.mark.parametrize("piece", [1, 700, 10**9])
def test_strips_are_the_unfolded_input_and_the_output(name, piece, monkeypatch):
    monkeypatch.setattr(module, "PIECE", piece)
    layer = nn.Conv2d(4, 6, **CONVOLUTIONS[name])
    x = normal(3, 4, 12, 20)
    parts = list(strips(layer, x, layer(x)))
    assert len(parts) > 1 or piece == 10**9
    for found, whole in zip((torch.cat(own, 1) for own in zip(*parts, strict=True)),
                            (rows.input_rows(layer, x), rows.output_rows(layer, layer(x))), strict=True):
        assert found.shape == whole.shape
        torch.testing.assert_close(found.sort(1).values, whole.sort(1).values)  # lines of several images mix
    weight, bias = rows.weight_rows(layer, layer.weight), rows.bias_rows(layer, layer.bias)
    for own, out in parts:
        torch.testing.assert_close(own @ weight.mT + bias[:, None], out, rtol=1e-4, atol=1e-5)
        assert own.numel() <= max(piece, own.shape[-1] * own.shape[0] * out.shape[1])


@pytest.mark.parametrize("kind", ["conv", "narrowing", "widening", "vectors"])
@pytest.mark.parametrize("bits", [None, 4])
def test_sums_are_those_of_the_whole(kind, bits, monkeypatch):
    monkeypatch.setattr(module, "PIECE", 500)
    layer, x = {"conv": (nn.Conv2d(6, 5, 3, padding=1), normal(2, 6, 14, 11)),
                "narrowing": (nn.Linear(24, 8), normal(2, 9, 7, 24)), "vectors": (nn.Linear(24, 8), normal(90, 24)),
                "widening": (nn.Linear(8, 24), normal(2, 9, 7, 8))}[kind]
    if bits is not None:
        layer.add_module(INPUT, Affine(bits))
        getattr(layer, INPUT).initialize(x + 0.3)
    pieces, whole = RegionData(layer), LayerData(layer)
    for part in (x, 2 * x[:1]):
        pieces.update(part, layer(part)), whole.update(part, layer(part))
    assert pieces.kind == whole.kind and pieces.by_inputs == whole.by_inputs == (kind == "widening")
    one, two = pieces.finish(), whole.finish()
    assert one.count == two.count
    for name in ("gram", "cross", "energy"):
        torch.testing.assert_close(getattr(one, name), getattr(two, name), rtol=1e-9, atol=1e-7)


def test_rows_of_a_wide_layer_are_kept_until_they_outnumber_the_inputs(monkeypatch):
    monkeypatch.setattr(module, "WIDE", 20)
    layer, x = nn.Linear(24, 8), normal(40, 24)
    data, whole = RegionData(layer), LayerData(layer)
    for part in (x[:10], x[10:24]):
        data.update(part, layer(part))
    assert data.moments is None and data.reached and [len(own) for own, _ in data.kept] == [10, 14]
    data.update(x[24:], layer(x[24:]))
    data.update(x[:3], layer(x[:3]))
    whole.update(torch.cat([x, x[:3]]), layer(torch.cat([x, x[:3]])))
    assert not data.kept and data.finish().count == 43
    torch.testing.assert_close(data.finish().gram, whole.finish().gram)
    torch.testing.assert_close(data.finish().energy, whole.finish().energy)


def test_a_layer_that_nothing_reaches_is_named():
    class Half(nn.Module):
        def __init__(self):
            super().__init__()
            self.used, self.idle = nn.Linear(3, 3), nn.Linear(3, 3)

        def forward(self, x):
            return self.used(x)

    with pytest.raises(InputError, match="idle was not reached"):
        collect(Half(), ["used", "idle"], [normal(2, 3)])
    found = collect(Half(), ["used"], [normal(2, 3), normal(5, 3)])
    assert found["used"].finish().count == 7


@pytest.mark.parametrize("strength", [1000.0, 1e-3])
def test_the_solution_at_sixty_thousand_tokens(strength):
    """The finest stage of one image: nearly dependent inputs with a mean, against orthogonal factors of the rows."""
    count, inputs, outputs = 60_800, 48, 16
    mixed = normal(count, 6) @ normal(6, inputs, seed=1) + 0.02 * normal(count, inputs, seed=2)
    torch.manual_seed(0)
    layer = nn.Linear(inputs, outputs)
    x = mixed + 2 * normal(inputs, seed=3)
    layer.add_module(INPUT, Affine(4))
    getattr(layer, INPUT).initialize(x)
    y = nn.functional.linear(x, layer.weight, layer.bias).detach()
    data = RegionData(layer)
    data.update(x[None], y[None])
    weight, bias = aqer(layer.weight.detach(), layer.bias.detach(), data.finish(), strength)
    full = torch.cat([layer.weight, layer.bias[:, None]], 1).detach().double()
    a = torch.cat([getattr(layer, INPUT)(x), torch.ones(count, 1)], 1).double()
    a = torch.cat([a, strength**0.5 * torch.eye(inputs + 1)])
    residual = torch.cat([y.double() - a[:count] @ full.T, torch.zeros(inputs + 1, outputs)])
    expected = torch.linalg.lstsq(a, residual).solution.T
    found = torch.cat([weight, bias[:, None]], 1) - full
    assert (found - expected).norm() < 1e-4 * expected.norm()
    best, own = ((a @ change.T - residual).square().sum() for change in (expected, found))
    assert own < best * (1 + 1e-9)
