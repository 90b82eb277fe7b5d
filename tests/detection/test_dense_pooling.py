import pytest
import torch
from torchvision.ops import roi_align

from vitq.detection.dense_pooling import dense_roi_align, shares, suits


def _regions(count, images):
    """Boxes of all sizes, some over the border, some without area."""
    torch.manual_seed(0)
    centres, sides = torch.rand(count, 2) * 150 - 10, torch.exp(torch.rand(count, 2) * 5)
    sides[::7] = 0
    index = torch.arange(count)[:, None] * images // count
    return torch.cat([index, centres - sides / 2, centres + sides / 2], 1)


@pytest.mark.parametrize("size", [7, 14])
def test_values_and_gradients_are_those_of_torchvision(size):
    level = torch.randn(3, 5, 24, 32, dtype=torch.float64, requires_grad=True)
    rois = _regions(60, 3).double()
    aim = torch.randn(60, 5, size, size, dtype=torch.float64)
    found = []
    for result in (roi_align(level, rois, size, 0.25, 0, True), dense_roi_align(level, rois, size, 0.25)):
        found.append((result, torch.autograd.grad(result, level, aim)[0]))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other)


def test_an_image_without_regions_and_autocast():
    level, rois = torch.randn(3, 4, 16, 16), torch.tensor([[0.0, 3, 4, 40, 30], [2.0, 10, 10, 30, 50]])
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(dense_roi_align(level, rois, 7, 0.25), roi_align(level, rois, 7, 0.25, 0, True))


def test_shares_inside_the_map_add_up_to_one():
    weights = shares(torch.tensor([2.3, 0.0]), torch.tensor([9.1, 15.0]), 7, 16)
    torch.testing.assert_close(weights.sum(-1), torch.ones(2, 7))


def test_it_serves_training_on_small_maps_alone():
    small = torch.zeros(1, 2, 32, 32)
    assert not suits(small) and suits(small.requires_grad_()) and not suits(torch.zeros(1, 2, 32, 304).requires_grad_())
