import pytest
import torch

from vitq.detection.anchors import STRIDES, all_anchors, base_anchors, level_anchors


def test_anchors_are_unrounded_and_centred_on_the_corner():
    expected = [[-22.627417, -11.313708, 22.627417, 11.313708], [-16, -16, 16, 16],
                [-11.313708, -22.627417, 11.313708, 22.627417]]
    torch.testing.assert_close(base_anchors(4), torch.tensor(expected))
    areas = [(base_anchors(s)[:, 2:] - base_anchors(s)[:, :2]).prod(1) for s in STRIDES]
    torch.testing.assert_close(torch.stack(areas), torch.tensor([[float(8 * s) ** 2] * 3 for s in STRIDES]))


def test_strides_are_fixed_at_800_x_1216():
    """13 rows of P6 at 800 pixels: 64 apart, not 800 // 13 = 61."""
    maps = [torch.empty(1, 3, -(-800 // s), -(-1216 // s), device="meta") for s in STRIDES]
    assert [tuple(m.shape[-2:]) for m in maps] == [(200, 304), (100, 152), (50, 76), (25, 38), (13, 19)]
    assert [len(a) for a in all_anchors(maps)] == [182_400, 45_600, 11_400, 2_850, 741]
    p6 = level_anchors((13, 19), 64)
    centres = (p6[:, :2] + p6[:, 2:]) / 2
    assert centres[-1].tolist() == [18 * 64, 12 * 64]
    assert centres[:7:3].tolist() == [[0, 0], [64, 0], [128, 0]]  # row by row, three of a cell together
    assert p6[-2].tolist() == [18 * 64 - 256, 12 * 64 - 256, 18 * 64 + 256, 12 * 64 + 256]


def propose(model, logits, deltas, anchors, size=(64, 64), **limits):
    return model.rpn.propose([logits[None]], [deltas[None]], [anchors], [size], **limits)[0]


def spread_anchors(count):
    x = torch.arange(count) * 10.0
    return torch.stack([x, x * 0, x + 5, x * 0 + 5], 1)


def test_the_best_of_each_level_by_sigmoid(tiny):
    model = tiny()
    logits = torch.linspace(-3, 3, 40)[torch.randperm(40, generator=torch.Generator().manual_seed(0))]
    found = propose(model, logits, torch.zeros(40, 4), spread_anchors(40), (64, 1000), before=10)
    assert len(found) == 10
    torch.testing.assert_close(found[:, 4], logits.sigmoid().sort(descending=True).values[:10])
    assert len(propose(model, logits, torch.zeros(40, 4), spread_anchors(40), (64, 1000), after=7)) == 7


def test_boxes_are_clipped_to_the_image_without_padding_and_stay_without_area(tiny):
    """Two anchors beyond the image's right border lose their area; release 2.11 keeps them all the same."""
    found = propose(tiny(), torch.tensor([2.0, 1.0, 0.0]), torch.zeros(3, 4),
                    torch.tensor([[0.0, 0.0, 20.0, 20.0], [60.0, 0.0, 80.0, 20.0], [70.0, 0.0, 90.0, 20.0]]), (64, 50))
    assert found[:, :4].tolist() == [[0, 0, 20, 20], [50, 0, 50, 20], [50, 0, 50, 20]]


def test_suppression_is_at_07_inside_levels(tiny):
    rpn = tiny().rpn
    boxes = torch.tensor([[0.0, 0.0, 10.0, 10.0], [0.0, 0.0, 10.0, 7.5], [0.0, 0.0, 10.0, 6.5]])  # IoU .75 and .65
    one = rpn.propose([torch.tensor([[3.0, 2.0, 1.0]])], [torch.zeros(1, 3, 4)], [boxes], [(64, 64)])[0]
    assert one[:, 3].tolist() == [10, 6.5]
    two = rpn.propose([torch.tensor([[3.0]]), torch.tensor([[2.0]])], [torch.zeros(1, 1, 4)] * 2,
                      [boxes[:1], boxes[1:2]], [(64, 64)])[0]
    assert len(two) == 2


def test_published_limits():
    from vitq.detection import MODELS
    assert {c.proposals for c in MODELS.values()} == {1000} and {c.detections for c in MODELS.values()} == {100}
    assert {c.score_threshold for c in MODELS.values()} == {0.05} and {c.anchor_scale for c in MODELS.values()} == {8}


@torch.no_grad()
def test_outputs_are_in_the_order_of_the_anchors(tiny):
    rpn = tiny().rpn
    maps = [torch.randn(2, 16, 4, 6)]
    logits, deltas = rpn.head(maps)
    ordered = rpn(maps)
    assert ordered[0][0].shape == (2, 72) and ordered[1][0].shape == (2, 72, 4)
    place = (2 * 6 + 5) * 3 + 1  # row 2, column 5, anchor 1
    assert ordered[0][0][1, place] == logits[0][1, 1, 2, 5]
    assert torch.equal(ordered[1][0][1, place], deltas[0][1, 4:8, 2, 5])


@torch.no_grad()
def test_p6_is_every_second_cell_of_p5(tiny):
    maps = tiny().features(torch.randn(1, 3, 160, 224))
    assert torch.equal(maps[4], maps[3][:, :, ::2, ::2]) and len(maps) == 5
    assert pytest.approx(maps[3].shape[-1]) == 7
