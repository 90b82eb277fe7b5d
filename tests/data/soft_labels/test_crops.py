"""Crops: drawn like torchvision's, cut like crop-then-resize."""

import numpy as np
import pytest
import torch
from torchvision.transforms import InterpolationMode
from torchvision.transforms.functional import resized_crop

from vitq.data.soft_labels import crop_resize, draw_crops, pixel_boxes
from vitq.data.soft_labels.layout import from_fractions, to_fractions
from vitq.errors import InputError


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("size", [7, 16, 40], ids=["smaller", "alike", "larger"])
def test_crop_resize_is_crop_then_resize(size, interpolation):
    torch.manual_seed(0)
    images = torch.randn(3, 2, 20, 29)
    boxes = torch.tensor([[[0, 0, 20, 29], [3, 5, 9, 12]], [[19, 28, 1, 1], [10, 1, 10, 28]], [[2, 2, 7, 16]] * 2])
    flips = torch.tensor([[False, True], [False, False], [True, False]])
    got = crop_resize(images, boxes, flips, size, interpolation)
    assert got.shape == (3, 2, 2, size, size)
    for image, some_boxes, some_flips, crops in zip(images, boxes, flips, got, strict=True):
        for box, flip, crop in zip(some_boxes, some_flips, crops, strict=True):
            mode = InterpolationMode(interpolation)
            wanted = resized_crop(image, *box.tolist(), [size, size], mode, antialias=True)
            wanted = wanted.flip(-1) if flip else wanted
            assert torch.allclose(crop, wanted, atol=2e-5)


def test_unknown_interpolation_is_refused():
    with pytest.raises(InputError, match="interpolation"):
        crop_resize(torch.zeros(1, 3, 4, 4), torch.tensor([[[0, 0, 2, 2]]]), torch.tensor([[False]]), 4, "nearest")


def test_drawn_crops_fit_and_have_the_asked_area_and_aspect():
    boxes, flips = draw_crops(4000, 300, 400, seed=0, row=3, scale=(0.08, 0.936))
    top, left, height, width = boxes.T
    assert (boxes >= 0).all() and (top + height <= 300).all() and (left + width <= 400).all()
    area, aspect = height * width / (300 * 400), width / height
    assert 0.075 < area.min() < 0.1 and 0.9 < area.max() < 0.945
    assert 0.74 < aspect.min() < 0.77 and 1.3 < aspect.max() < 1.35
    assert abs(flips.mean() - 0.5) < 0.03 and top.min() == 0 and (left + width).max() == 400


def test_area_has_torchvisions_distribution():
    from torchvision.transforms import RandomResizedCrop

    torch.manual_seed(0)
    image = torch.empty(3, 300, 400)
    theirs = np.array([RandomResizedCrop.get_params(image, (0.08, 1.0), (3 / 4, 4 / 3)) for _ in range(4000)])
    ours = draw_crops(4000, 300, 400, seed=0, row=0, scale=(0.08, 1.0))[0]
    quantiles = np.linspace(0.05, 0.95, 10)
    for column in range(4):
        a, b = np.quantile(ours[:, column], quantiles), np.quantile(theirs[:, column], quantiles)
        assert np.abs(a - b).max() < 10  # pixels; about three standard errors


def test_crops_depend_on_seed_and_image_alone():
    first = draw_crops(8, 40, 40, 1, 5)
    assert all((a == b).all() for a, b in zip(first, draw_crops(8, 40, 40, 1, 5), strict=True))
    assert (first[0] != draw_crops(8, 40, 40, 1, 6)[0]).any() and (first[0] != draw_crops(8, 40, 40, 2, 5)[0]).any()


def test_an_aspect_that_never_fits_gives_the_centre():
    boxes, _ = draw_crops(3, 10, 1000, 0, 0, scale=(0.9, 1.0))
    assert boxes.tolist() == [[0, 493, 10, 13]] * 3


def test_stored_shares_give_back_the_same_pixels():
    rng = np.random.default_rng(0)
    for height, width in ((32, 32), (375, 500), (4321, 3001)):
        boxes, _ = draw_crops(500, height, width, int(rng.integers(1000)), 0)
        assert (pixel_boxes(from_fractions(to_fractions(boxes, height, width)), height, width) == boxes).all()


def test_boxes_from_elsewhere_are_kept_inside():
    boxes = pixel_boxes(np.array([[0.999, 0.999, 0.5, 0.5], [0, 0, 0.0001, 1.2]]), 10, 20)
    assert boxes.tolist() == [[9, 19, 1, 1], [0, 0, 1, 20]]
