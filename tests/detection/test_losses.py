import math

import pytest
import torch

from vitq.detection import losses as module
from vitq.detection.assign import Sampled, assign, choose, sample_regions
from vitq.detection.boxes import encode
from vitq.detection.losses import DetectionLoss, box_loss, mask_targets, usable_anchors
from vitq.detection.roi import STDS
from vitq.detection.targets import Target, Targets


def target(size=(64, 64), count=2):
    boxes = torch.tensor([[5.0, 5.0, 29.0, 29.0], [30.0, 20.0, 62.0, 60.0]])[:count]
    masks = torch.zeros(count, *size, dtype=torch.bool)
    for mask, (left, top, right, bottom) in zip(masks, boxes.int().tolist(), strict=True):
        mask[top:bottom, left:right] = True
    return Target(boxes, torch.arange(count), masks, size)


def test_assignment_in_numbers():
    overlaps = torch.tensor([[0.8, 0.1], [0.5, 0.2], [0.2, 0.1], [0.2, 0.35], [0.75, 0.35], [0.0, 0.0]])
    assert assign(overlaps, 0.7, 0.3, 0.3, False).tolist() == [1, -1, 0, -1, 1, 0]
    assert assign(overlaps, 0.7, 0.3, 0.3, True).tolist() == [1, -1, 0, 2, 2, 0]  # both that are best for the second
    assert assign(overlaps, 0.7, 0.3, 0.4, True).tolist() == [1, -1, 0, -1, 1, 0]  # its best is too low
    assert assign(overlaps[:, :0], 0.7, 0.3, 0.3, True).tolist() == [0] * 6


def test_thresholds_themselves_and_the_last_of_two_objects():
    overlaps = torch.tensor([[0.75], [0.25], [0.125]])
    assert assign(overlaps, 0.75, 0.25, 0.25, False).tolist() == [1, -1, 0]  # from .75 on; below .25
    assert assign(overlaps[1:], 0.75, 0.25, 0.25, True).tolist() == [1, 0]  # .25 is enough for the best of an object
    both = torch.tensor([[0.5, 0.5], [0.125, 0.125]])
    assert assign(both, 0.75, 0.25, 0.25, True).tolist() == [2, 0]
    assert assign(torch.tensor([[0.875, 0.5]]), 0.75, 0.25, 0.25, True).tolist() == [2]  # whatever it had


def test_a_share_is_rounded_down():
    assigned = torch.cat([torch.ones(10, dtype=int), torch.zeros(10, dtype=int)])
    positives, negatives = choose(assigned, 7, 0.25)
    assert (len(positives), len(negatives)) == (1, 6)


def test_the_best_proposal_of_an_object_is_positive_from_the_threshold_on_alone():
    own = target(count=1)
    for bottom, positives in ((17.0, 2), (16.0, 1)):  # IoU 12 / 24 and 11 / 24
        proposals = torch.tensor([[5.0, 5.0, 29.0, bottom]])
        assert sample_regions(proposals, own.boxes, own.labels, 80, 0.5, True).positives == positives


def test_sampling_keeps_shares_and_adds_the_objects_own_boxes():
    assigned = torch.cat([torch.ones(300, dtype=int), torch.zeros(900, dtype=int), torch.full((50,), -1)])
    positives, negatives = choose(assigned, 512, 0.25)
    assert len(positives) == 128 and len(negatives) == 384 and (assigned[negatives] == 0).all()
    assert len(set(negatives.tolist())) == 384
    positives, negatives = choose(assigned[290:], 512, 0.25)
    assert len(positives) == 10 and len(negatives) == 502  # negatives fill up
    own = target()
    found = sample_regions(torch.tensor([[0.0, 0.0, 4.0, 4.0]]), own.boxes, own.labels, 80, 0.5, True)
    assert found.positives == 2 and found.given.tolist() == [True, True, False]
    assert found.labels.tolist() == [*found.objects.tolist(), 80]
    nothing = sample_regions(torch.tensor([[0.0, 0.0, 4.0, 4.0]]), own.boxes[:0], own.labels[:0], 80, 0.5, True)
    assert nothing.positives == 0 and nothing.labels.tolist() == [80]


def test_anchors_of_the_own_cells_or_inside_the_image(tiny):
    model = tiny(anchor_scale=2)
    maps = [torch.zeros(1, 1, -(-128 // s), -(-128 // s)) for s in (4, 8, 16, 32, 64)]
    anchors = model.rpn.anchors(maps)
    own = usable_anchors(anchors, maps, (60, 128), False).split([len(a) for a in anchors])
    assert [flags.sum().item() for flags in own] == [3 * r * c for r, c in ((16, 32), (8, 16), (4, 8), (2, 4), (1, 2))]
    inside = torch.cat(anchors)[usable_anchors(anchors, maps, (60, 128), True)]
    assert inside.min() == 0 and inside[:, 2].max() < 128 and inside[:, 3].max() < 60 and len(inside) > 100
    *_, last = usable_anchors(anchors, maps, (60, 70), False).split([len(a) for a in anchors])
    assert last.sum() == 3 * 1 * 2  # 64 x 96 with its padding: cells that are begun count


def test_samples_of_the_proposal_loss(tiny, monkeypatch):
    model, asked = tiny(), []
    monkeypatch.setattr(module, "assign", lambda *a: asked.append(a[1:]) or assign(*a))
    monkeypatch.setattr(module, "choose", lambda *a: asked.append(a[1:]) or choose(*a))
    maps = tuple(torch.zeros(1, 16, -(-64 // s), -(-64 // s)) for s in (4, 8, 16, 32, 64))
    DetectionLoss(model).proposal_losses(*model.rpn(maps), model.rpn.anchors(maps), maps, Targets([target()]))
    assert asked == [(0.7, 0.3, 0.3, True), (256, 0.5)]


@pytest.mark.parametrize("cascade", [False, True])
def test_proposal_losses_of_a_blind_network(tiny, cascade):
    """Logits of 0 cost ln 2 each; deltas of 0 their distance; both over the number of samples of the batch."""
    model = tiny(cascade=cascade, anchor_scale=2)
    maps = tuple(torch.zeros(2, 16, -(-64 // s), -(-64 // s)) for s in (4, 8, 16, 32, 64))
    anchors = model.rpn.anchors(maps)
    logits, deltas = [torch.zeros(2, len(a)) for a in anchors], [torch.zeros(2, len(a), 4) for a in anchors]
    torch.manual_seed(1)
    found = DetectionLoss(model).proposal_losses(logits, deltas, anchors, maps, Targets([target(), target(count=0)]))
    assert found["rpn_class"] == pytest.approx(math.log(2), abs=1e-6)
    torch.manual_seed(1)
    every, own = torch.cat(anchors), target()
    usable = usable_anchors(anchors, maps, (64, 64), cascade).nonzero()[:, 0]
    assigned = assign(module.box_iou(every[usable], own.boxes), 0.7, 0.3, 0.3, True)
    positives, negatives = choose(assigned, 256, 0.5)
    d = encode(every[usable[positives]], own.boxes[assigned[positives] - 1]).abs()
    d = torch.where(d < 1 / 9, 4.5 * d**2, d - 0.5 / 9) if cascade else d
    second = min(256, len(usable))
    assert found["rpn_box"] == pytest.approx((d.sum() / (len(positives) + len(negatives) + second)).item(), rel=1e-4)


def test_box_losses_are_divided_by_all_samples():
    own = target(count=1)
    shifted = own.boxes + torch.tensor([6.0, 0.0, 6.0, 0.0])  # IoU and GIoU 18 / 30
    sampled = [Sampled(torch.cat([shifted, torch.zeros(4, 4)]), 1, torch.tensor([0]),
                       torch.tensor([0, 3, 3, 3, 3]), torch.zeros(5, dtype=bool))]
    deltas = torch.zeros(5, 12)
    plain = box_loss(deltas, sampled, [own], 0, False)
    assert plain == pytest.approx(6 / 24 / 0.1 / 5)  # a shift of a quarter over std .1, of five samples
    assert box_loss(deltas, sampled, [own], 1, True) == pytest.approx(10 * (1 - 0.6) / 5, rel=1e-5)
    deltas[0, :4] = encode(shifted, own.boxes, STDS[1])[0]
    assert box_loss(deltas, sampled, [own], 1, True) == pytest.approx(0, abs=1e-5)
    deltas[:, 4:], deltas[1:] = 7, 9  # other classes and negatives do not count
    assert box_loss(deltas, sampled, [own], 1, True) == pytest.approx(0, abs=1e-5)


def test_mask_targets_are_cut_out_of_the_own_object():
    own = target()
    box = torch.tensor([[5.0, 5.0, 29.0, 53.0]])  # the object fills the upper half
    crop, = mask_targets(own.masks, torch.tensor([0]), box)
    assert crop.shape == (28, 28) and crop[:14].eq(1).all() and crop[14:].eq(0).all()
    assert mask_targets(own.masks, torch.tensor([1]), box)[0, :8].eq(0).all()


def test_a_mask_target_is_the_mean_of_all_pixels_and_set_from_one_half_on():
    left = torch.zeros(1, 112, 112, dtype=torch.bool)
    left[..., 5:] = True
    shifted = torch.tensor([[4.5, 5.0, 32.5, 33.0]])  # a pixel a bin; the first is half inside
    assert mask_targets(left, torch.tensor([0]), shifted).eq(1).all()
    stripes = torch.zeros(1, 112, 112, dtype=torch.bool)
    stripes[..., 1::4] = True  # one pixel of four, beside the middle of each bin
    assert mask_targets(stripes, torch.tensor([0]), torch.tensor([[0.0, 0.0, 112.0, 112.0]])).eq(0).all()


@pytest.mark.parametrize("cascade, kept", [(False, 1000), (True, 2000)])
def test_parts_stages_and_proposals(tiny, monkeypatch, cascade, kept):
    model = tiny(cascade=cascade).train()
    asked, ious, stages = [], [], []
    propose, sample, refine = model.rpn.propose, module.sample_regions, model.roi.refine
    monkeypatch.setattr(model.rpn, "propose", lambda *a: asked.append(a[-2:]) or propose(*a))
    monkeypatch.setattr(module, "sample_regions", lambda *a: ious.append(a[4:]) or sample(*a))
    monkeypatch.setattr(model.roi, "refine", lambda *a: stages.append(a[3]) or refine(*a))
    found = DetectionLoss(model).parts(model(torch.randn(1, 3, 64, 64)), Targets([target()]))
    assert asked == [(2000, kept)]
    assert ious == ([(0.5, False, 512), (0.6, False, 512), (0.7, False, 512)] if cascade else [(0.5, True, 512)])
    assert stages == ([0, 1] if cascade else [])
    assert set(found) == {"rpn_class", "rpn_box"} | {f"{n}_{s}" for n in ("class", "box", "mask")
                                                     for s in range(3 if cascade else 1)}
    if cascade:  # near ln 4 and ln 2 at the beginning, times 1, .5, .25
        for stage, weight in enumerate((1, 0.5, 0.25)):
            assert 0.6 * weight < found[f"class_{stage}"] < 2.5 * weight


def test_the_next_stage_does_not_see_the_objects_own_boxes(tiny):
    model = tiny(cascade=True).train()
    maps = model(torch.randn(1, 3, 64, 64))
    proposals = [torch.tensor([[0.0, 0.0, 9.0, 9.0], [6.0, 5.0, 30.0, 29.0], [40.0, 1.0, 60.0, 11.0]])]
    boxes, _ = DetectionLoss(model)._stage(maps, 0, proposals, Targets([target()]), [(64, 64)])
    assert len(boxes[0]) == 3 and boxes[0].shape[1] == 4 and not boxes[0].requires_grad


def test_a_positive_moves_by_its_own_class_and_a_negative_by_the_best(tiny, monkeypatch):
    model, moved = tiny(cascade=True).train(), []
    monkeypatch.setattr(model.roi, "refine", lambda *a: moved.append((a[1], a[5])) or a[0])
    maps = model(torch.randn(1, 3, 64, 64))
    proposals = [torch.tensor([[40.0, 1.0, 60.0, 11.0], [1.0, 50.0, 20.0, 60.0]])]
    DetectionLoss(model)._stage(maps, 0, proposals, Targets([target()]), [(64, 64)])
    (logits, labels), = moved
    assert sorted(labels[:2].tolist()) == [0, 1] and torch.equal(labels[2:], logits[2:, :-1].argmax(1))


@pytest.mark.parametrize("cascade", [False, True])
def test_gradients_reach_every_parameter_with_and_without_objects(tiny, cascade):
    model = tiny(cascade=cascade).train()
    DetectionLoss(model)(model(torch.randn(2, 3, 64, 64)), Targets([target(), target(count=0)])).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    model.zero_grad(set_to_none=True)
    loss = DetectionLoss(model)(model(torch.randn(1, 3, 64, 64)), Targets([target(count=0)]))
    loss.backward()
    assert loss.isfinite() and all(p.grad is not None for p in model.parameters())


def test_targets_are_cut_like_images():
    parts = Targets([target() for _ in range(5)]).chunk(2)
    assert [len(part) for part in parts] == [len(part) for part in torch.zeros(5).chunk(2)]
