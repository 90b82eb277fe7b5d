import pytest
import torch

from vitq.detection.masks import encode_masks, paste_masks


def test_a_full_mask_fills_its_box_by_pixel_centres():
    """Sampling falls to .5 at the box's edge: pixels with centres inside are set, edges stay continuous."""
    boxes = torch.tensor([[2.0, 3.0, 6.0, 9.0], [2.4, 3.6, 6.6, 9.4]])
    masks = paste_masks(torch.ones(2, 28, 28), boxes, (12, 10))
    assert masks.shape == (2, 12, 10) and masks.dtype == torch.bool
    assert masks[0].nonzero().amin(0).tolist() == [3, 2] and masks[0].nonzero().amax(0).tolist() == [8, 5]
    assert masks[0].sum() == 4 * 6
    assert masks[1].nonzero().amin(0).tolist() == [4, 2] and masks[1].nonzero().amax(0).tolist() == [8, 6]


def test_the_threshold_is_reached_at_exactly_one_half():
    probability, box = torch.full((1, 4, 4), 0.5), torch.tensor([[0.0, 0.0, 4.0, 4.0]])
    assert paste_masks(probability, box, (8, 8)).sum() == 16
    assert paste_masks(probability - 1e-6, box, (8, 8)).sum() == 0


def test_a_ramp_is_cut_where_it_crosses_one_half():
    ramp = ((torch.arange(28) + 0.5) / 28).expand(1, 28, 28)
    mask, = paste_masks(ramp, torch.tensor([[0.0, 0.0, 100.0, 20.0]]), (20, 100))
    assert mask[10].nonzero().min() == 50  # centre 50.5 is at .505


def test_boxes_outside_or_without_area():
    boxes = torch.tensor([[-5.0, -5.0, 3.0, 3.0], [4.0, 4.0, 4.0, 8.0], [20.0, 20.0, 30.0, 30.0]])
    masks = paste_masks(torch.ones(3, 28, 28), boxes, (10, 10))
    assert masks[0].sum() == 9 and masks[2].sum() == 0
    assert masks[1].nonzero().tolist() == [[row, column] for row in range(4, 8) for column in (3, 4)]
    assert paste_masks(torch.ones(0, 28, 28), torch.zeros(0, 4), (10, 10)).shape == (0, 10, 10)


def test_run_lengths():
    coder = pytest.importorskip("pycocotools.mask")
    masks = paste_masks(torch.ones(1, 28, 28), torch.tensor([[2.0, 3.0, 6.0, 9.0]]), (12, 10))
    runs, = encode_masks(masks)
    assert runs["size"] == [12, 10] and isinstance(runs["counts"], str)
    assert coder.area({**runs, "counts": runs["counts"].encode()}) == 24
    assert (coder.decode(runs) == masks[0].numpy()).all()
