"""Layers as matrices: a product of rows is the layer's own output."""

import pytest
import torch
from timm.layers import Conv2dSame
from torch import nn

from vitq.papers.erq2024 import rows

LAYERS = {
    "tokens": (nn.Linear(12, 5), (2, 7, 12)),
    "map": (nn.Linear(12, 5, bias=False), (2, 3, 4, 12)),
    "vector": (nn.Linear(12, 5), (6, 12)),
    "patches": (nn.Conv2d(3, 8, 4, 4), (2, 3, 16, 16)),
    "padded": (nn.Conv2d(6, 8, 3, 2, 1, bias=False), (2, 6, 9, 9)),
    "depthwise": (nn.Conv2d(6, 6, 3, 1, 1, groups=6), (2, 6, 9, 9)),
    "grouped": (nn.Conv2d(6, 8, 3, 1, 2, dilation=2, groups=2), (2, 6, 9, 9)),
    "same": (Conv2dSame(6, 6, 3, 2, groups=6), (2, 6, 8, 8)),
    "word": (nn.Conv2d(6, 4, 3, padding="same"), (2, 6, 8, 8)),
    "reflected": (nn.Conv2d(6, 4, 3, padding=1, padding_mode="reflect"), (2, 6, 8, 8)),
}


@pytest.mark.parametrize("name", LAYERS)
def test_rows_give_the_output(name):
    torch.manual_seed(0)
    layer, shape = LAYERS[name]
    layer, x = layer.double(), torch.randn(shape, dtype=torch.float64)
    product = rows.input_rows(layer, x) @ rows.weight_rows(layer, layer.weight).mT
    if layer.bias is not None:
        product = product + rows.bias_rows(layer, layer.bias).unsqueeze(1)
    torch.testing.assert_close(product, rows.output_rows(layer, layer(x)))
    assert rows.kind(layer, x) == {"vector": "vector", "tokens": "linear", "map": "linear"}.get(name, "conv")
