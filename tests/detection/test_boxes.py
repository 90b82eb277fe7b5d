import math

import pytest
import torch

from vitq.detection import boxes as module
from vitq.detection.boxes import batched_nms, decode, encode, multiclass_nms


def test_deltas_are_multiplied_by_their_stds_and_clamped_on_both_sides():
    box = torch.tensor([[10.0, 20.0, 30.0, 60.0]])  # centre (20, 40), sides 20 and 40
    moved = decode(box, torch.tensor([[1.0, -1.0, 0.0, 0.0]]), (0.1, 0.1, 0.2, 0.2))
    torch.testing.assert_close(moved, torch.tensor([[12.0, 16.0, 32.0, 56.0]]))
    grown = decode(box, torch.tensor([[0.0, 0.0, 9.0, -9.0]]))
    assert grown[0, 2] - grown[0, 0] == pytest.approx(20 * 1000 / 16, rel=1e-5)
    assert grown[0, 3] - grown[0, 1] == pytest.approx(40 * 16 / 1000, rel=1e-4)
    assert math.log(1000 / 16) == module.LARGEST


def test_encode_is_the_inverse():
    generator = torch.Generator().manual_seed(0)
    low = torch.rand(50, 2, 2, generator=generator) * 50
    both = torch.cat([low, low + 1 + torch.rand(50, 2, 2, generator=generator) * 20], -1)
    a, b = both.unbind(1)
    stds = (0.1, 0.1, 0.2, 0.2)
    torch.testing.assert_close(decode(a, encode(a, b, stds), stds), b)


def test_boxes_are_clipped_to_height_and_width_themselves():
    clipped = decode(torch.tensor([[-5.0, -5.0, 500.0, 500.0]]), torch.zeros(1, 4), size=(100, 150))
    assert clipped.tolist() == [[0, 0, 150, 100]]


def make(count=60, groups=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    low = torch.rand(count, 2, generator=generator) * 40
    boxes = torch.cat([low, low + 5 + torch.rand(count, 2, generator=generator) * 30], 1)
    return boxes, torch.rand(count, generator=generator), torch.randint(groups, (count,), generator=generator)


def test_suppression_stays_inside_groups_and_sorts_by_score():
    boxes, scores, groups = make()
    kept = batched_nms(boxes, scores, groups, 0.5)
    expected = []
    for row in scores.argsort(descending=True).tolist():
        if all(groups[row] != groups[other] or iou(boxes[row], boxes[other]) <= 0.5 for other in expected):
            expected.append(row)
    assert kept.tolist() == expected and len(expected) < 60


def iou(a, b):
    inter = (torch.minimum(a[2:], b[2:]) - torch.maximum(a[:2], b[:2])).clamp(min=0).prod()
    return inter / ((a[2:] - a[:2]).prod() + (b[2:] - b[:2]).prod() - inter)


def test_many_boxes_are_suppressed_class_by_class_with_the_same_result(monkeypatch):
    boxes, scores, groups = make(200, 5)
    together = batched_nms(boxes, scores, groups, 0.5)
    assert module.LOOP_ABOVE == 10_000
    monkeypatch.setattr(module, "LOOP_ABOVE", 10)
    assert torch.equal(batched_nms(boxes, scores, groups, 0.5), together)


def test_scores_must_exceed_005_and_100_boxes_stay():
    boxes = torch.zeros(150, 8)
    boxes[:, 0::4] = boxes[:, 1::4] = torch.arange(150.0)[:, None] * 10
    boxes[:, 2::4] = boxes[:, 3::4] = torch.arange(150.0)[:, None] * 10 + 5
    scores = torch.tensor([[0.05, 0.06, 0.89]]).expand(150, 3)  # the last is the background
    found, score, labels = multiclass_nms(boxes, scores, 0.05, 0.5, 100)
    assert len(found) == 100 and set(labels.tolist()) == {1} and score.eq(0.06).all()
    assert len(multiclass_nms(boxes, scores, 0.05, 0.5, 1000)[0]) == 150  # 0.05 itself is not enough
    assert len(multiclass_nms(boxes[:0], scores[:0], 0.05, 0.5, 100)[0]) == 0


def test_tiny_boxes_stay():
    boxes = torch.tensor([[1.0, 1.0, 1.0, 1.0], [5.0, 5.0, 5.001, 5.001]])
    assert len(multiclass_nms(boxes, torch.tensor([[0.9, 0.1], [0.8, 0.2]]), 0.05, 0.5, 100)[0]) == 2
