import pytest
import torch

from vitq.detection.boxes import decode
from vitq.detection.heads import select_deltas
from vitq.detection.pooling import as_rois, pool, roi_levels
from vitq.detection.roi import STDS


def test_level_of_a_region():
    sides = [8, 111.9, 112, 223, 224, 447, 448, 5000, 0]
    rois = torch.tensor([[0, 0, 0, side, side] for side in sides], dtype=torch.float32)
    assert roi_levels(rois).tolist() == [0, 0, 1, 1, 2, 2, 3, 3, 0]
    just_below = 112 * (1 - 2e-7)  # 1e-6 is added to side / 56 before the logarithm
    assert roi_levels(torch.tensor([[0, 0, 0, just_below, just_below]])).tolist() == [1]


def test_pooling_is_aligned_and_samples_as_densely_as_the_map():
    """On a map that holds its column number, a bin centred at pixel c reads c / 4 - 0.5, not c / 4."""
    ramp = torch.arange(64.0).expand(1, 1, 64, 64)
    maps = (ramp, *[torch.zeros(1, 1, 64 // 2**n, 64 // 2**n) for n in (1, 2, 3)])
    roi = torch.tensor([[0, 40.0, 40.0, 96.0, 96.0]])
    centres = 40 + 8 * (torch.arange(7) + 0.5)
    torch.testing.assert_close(pool(maps, roi, 7)[0, 0, 3], centres / 4 - 0.5)
    stripes = (torch.arange(64) % 2).float().expand(1, 1, 64, 64)  # two samples a bin would see one phase only
    wide = pool((stripes, *maps[1:]), torch.tensor([[0, 2.0, 2.0, 100.0, 100.0]]), 7)
    torch.testing.assert_close(wide, torch.full_like(wide, 0.5), atol=0.15, rtol=0)


def test_coordinates_keep_their_precision_on_maps_of_16_bits():
    """At 1001 pixels bfloat16 has steps of 4; the map itself may be rounded, where it is read may not."""
    ramp = (torch.arange(304.0) % 16).expand(1, 1, 200, 304)  # small integers: exact in 16 bits
    maps = (ramp, *[torch.zeros(1, 1, 200 // 2**n, 304 // 2**n) for n in (1, 2, 3)])
    roi = torch.tensor([[0, 1001.3, 601.7, 1030.3, 630.7]])
    narrow = pool(tuple(level.bfloat16() for level in maps), roi, 7)
    assert narrow.dtype == torch.bfloat16
    torch.testing.assert_close(narrow.float(), pool(maps, roi, 7), atol=0.04, rtol=0)


def test_regions_read_their_own_level_and_image():
    maps = tuple(torch.full((2, 1, 64 // 2**n, 64 // 2**n), float(n)) for n in range(5))
    maps[0][1] = 10
    rois = as_rois([torch.tensor([[0.0, 0, 50, 50], [0, 0, 250, 250]]), torch.tensor([[0.0, 0, 50, 50]])])
    assert rois[:, 0].tolist() == [0, 0, 1]
    assert pool(maps, rois, 7)[:, 0, 3, 3].tolist() == [0, 2, 10]


def test_heads_have_the_background_last_and_move_boxes_class_by_class(tiny):
    for cascade in (False, True):
        head = tiny(cascade=cascade).roi.box_heads[0]
        logits, deltas = head(torch.randn(5, 16, 7, 7))
        assert logits.shape == (5, 4) and deltas.shape == (5, 12)
    assert select_deltas(torch.arange(24.0).view(2, 12), torch.tensor([2, 0])).tolist() == [[8, 9, 10, 11],
                                                                                          [12, 13, 14, 15]]
    kinds = [type(m).__name__ for m in tiny(cascade=True).roi.box_heads[2].modules()]
    assert (kinds.count("Conv2d"), kinds.count("BatchNorm2d"), kinds.count("Linear")) == (4, 4, 3)
    kinds = [type(m).__name__ for m in tiny().roi.modules()]
    assert (kinds.count("Conv2d"), kinds.count("ConvTranspose2d"), kinds.count("Linear")) == (5, 1, 4)


def test_heads_begin_small(tiny):
    head = tiny(hidden=512).roi.box_heads[0]
    assert head.logits.weight.std().item() == pytest.approx(0.01, rel=0.1)
    assert head.deltas.weight.std().item() == pytest.approx(0.001, rel=0.1)
    assert not head.logits.bias.any() and not head.deltas.bias.any()


def test_stds_of_the_three_stages():
    assert STDS == ((0.1, 0.1, 0.2, 0.2), (0.05, 0.05, 0.1, 0.1), (0.033, 0.033, 0.067, 0.067))


class Fixed(torch.nn.Module):
    """A head that gives the same logits and deltas whatever it sees, and remembers what it saw."""

    def __init__(self, logits, deltas=None):
        super().__init__()
        self.out, self.seen = (logits if deltas is None else (logits, deltas)), []

    def forward(self, regions):
        self.seen.append(regions)
        return self.out


def test_cascade_averages_logits_and_moves_by_the_best_foreground_class(tiny):
    model = tiny(cascade=True, score_threshold=0.05)
    logits = torch.tensor([[[1.0, 2.0, 0.0, 5.0]], [[0.0, 3.0, 0.0, -1.0]], [[0.5, 1.0, 0.0, -7.0]]])
    deltas = torch.randn(3, 1, 12, generator=torch.Generator().manual_seed(1))
    model.roi.box_heads = torch.nn.ModuleList(Fixed(x, d) for x, d in zip(logits, deltas, strict=True))
    start = torch.tensor([[20.0, 20.0, 60.0, 50.0]])
    maps = tuple(torch.zeros(1, 16, 64 // 2**n, 64 // 2**n) for n in range(4))
    (boxes, scores, labels), = model.roi.detect_boxes(maps, [start], [(64, 64)], torch.ones(1, 4))
    box = start
    for stage in (0, 1):  # class 1 has the largest foreground logit in both, the background does not count
        box = decode(box, deltas[stage, :, 4:8], STDS[stage], (64, 64))
    expected = logits.mean(0).softmax(1)[0]
    assert not torch.allclose(expected, logits.softmax(-1).mean(0)[0], atol=0.05)
    order = expected[:3].argsort(descending=True)
    torch.testing.assert_close(scores, expected[:3][order])
    assert labels.tolist() == order.tolist()
    torch.testing.assert_close(boxes, decode(box, deltas[2], STDS[2], (64, 64)).view(3, 4)[order])


def test_boxes_are_divided_by_the_scale_before_suppression(tiny):
    """Clipped to the network's image (64, 100), then divided by width and height scales; suppressed at the end."""
    model = tiny(score_threshold=0.05)
    boxes = torch.tensor([[0.0, 0.0, 40.0, 40.0], [40.0, 0.0, 80.0, 20.0]])
    logits = torch.tensor([[9.0, 0.0, 0.0, 0.0], [8.0, 0.0, 0.0, 0.0]])
    model.roi.box_heads = torch.nn.ModuleList([Fixed(logits, torch.zeros(2, 12))])
    maps = tuple(torch.zeros(1, 16, 64 // 2**n, 64 // 2**n) for n in range(4))
    scales = torch.tensor([[2.0, 4.0, 2.0, 4.0]])
    (found, scores, _), = model.roi.detect_boxes(maps, [boxes], [(64, 100)], scales)
    assert found.tolist() == [[0, 0, 20, 10], [20, 0, 40, 5]] and scores[0] == pytest.approx(0.9996, abs=1e-3)


def test_masks_are_those_of_the_final_boxes_and_the_predicted_class(tiny):
    model = tiny(cascade=True)
    logits = torch.randn(3, 2, 3, 28, 28)
    model.roi.mask_heads = torch.nn.ModuleList(Fixed(x) for x in logits)
    ramp = torch.arange(64.0).expand(1, 1, 64, 64)
    maps = (ramp, *[torch.zeros(1, 1, 64 // 2**n, 64 // 2**n) for n in (1, 2, 3)])
    boxes = torch.tensor([[10.0, 10.0, 24.0, 24.0], [5.0, 5.0, 12.0, 12.0]])
    masks, = model.roi.detect_masks(maps, [boxes], [torch.tensor([2, 0])], torch.tensor([[4.0, 4.0, 4.0, 4.0]]))
    expected = logits.sigmoid().mean(0)
    torch.testing.assert_close(masks, torch.stack([expected[0, 2], expected[1, 0]]))
    seen = model.roi.mask_heads[0].seen[0]  # box 10 .. 24, times 4, over stride 4: cells 10 .. 24
    torch.testing.assert_close(seen[0, 0, 0], 10 + torch.arange(14) + 0.5 - 0.5)


def test_no_boxes_no_masks(tiny):
    maps = tuple(torch.zeros(1, 16, 8, 8) for _ in range(4))
    masks, = tiny().roi.detect_masks(maps, [torch.zeros(0, 4)], [torch.zeros(0, dtype=int)], torch.ones(1, 4))
    assert masks.shape == (0, 28, 28)
