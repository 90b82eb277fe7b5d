"""Losses and detections that the heads of MMDetection 2.28.2 gave for the same weights, images and objects.

It was told to keep empty proposals (``min_bbox_size=-1``), of which there are 19 here, as release 2.11 does. The
weights are waves, so that they are the same everywhere. Where it samples at random, both took the first.
"""

import pytest
import torch

from vitq.detection import DetectionLoss, Detector, DetectorConfig, ImageBatch
from vitq.detection.targets import Target, Targets

LOSSES = {
    False: {"rpn_class": 0.79059, "rpn_box": 0.03516, "class_0": 2.82802, "box_0": 0.03798, "mask_0": 0.77062},
    True: {"rpn_class": 0.67208, "rpn_box": 0.02846, "class_0": 5.85777, "box_0": 0.24331, "mask_0": 0.78253,
           "class_1": 2.33524, "box_1": 0.01519, "mask_1": 0.3929, "class_2": 0.67599, "box_2": 0.00089,
           "mask_2": 0.18821},
}
BOXES = {  # number of detections, the first three (box, score, class), pixels of all masks
    False: (100, [[34.065, 32.6024, 70.2059, 44.2845, 0.8796, 3.0], [18.286, 32.8374, 58.9091, 39.9128, 0.7992, 0.0],
                  [86.5804, 31.43, 123.0098, 40.8672, 0.7708, 2.0]], 35688),
    True: (100, [[53.2046, 0.4711, 65.7257, 59.2909, 0.9999, 2.0], [75.0498, 17.6801, 92.8122, 43.2596, 0.9971, 2.0],
                 [49.3701, 28.0478, 70.7148, 46.7746, 0.9956, 2.0]], 48911),
}


def wave(count, shift):
    steps = torch.arange(count, dtype=torch.float64)
    return torch.sin(steps * 1.7 + 0.003 * steps**1.3 + shift)


def make(cascade):
    model = Detector(DetectorConfig(cascade=cascade, classes=5, embed_dim=16, depths=(1, 1, 1, 1), heads=(1, 2, 4, 8),
                                    window=7, channels=16, hidden=32)).eval()
    state = model.state_dict()
    for number, (name, value) in enumerate(state.items()):
        if value.is_floating_point():
            fan = max(value[0].numel(), 1) if value.dim() > 1 else 4
            gain = {"logits.weight": 5, "deltas.weight": 1.5, "cls_logits.weight": 1, "bbox_pred.weight": 0.3,
                    "mask_fcn_logits.weight": 6}.get(".".join(name.split(".")[-2:]), 1.5)
            values = wave(value.numel(), number).view(value.shape) * gain / fan**0.5
            if value.dim() == 1:
                values = values * 0.2 + float(name.endswith(("weight", "running_var")))
            value.copy_(values)
    return model


def objects():
    def target(boxes, labels):
        boxes = torch.tensor(boxes)
        masks = torch.zeros(len(boxes), 128, 192, dtype=torch.bool)
        for number, (left, top, right, bottom) in enumerate(boxes.int().tolist()):
            part = wave((bottom - top) * (right - left), number) > -0.2
            masks[number, top:bottom, left:right] = part.view(bottom - top, right - left)
        return Target(boxes, torch.tensor(labels), masks, (125, 185))
    three = [[10.0, 20.0, 70.0, 90.0], [60.0, 40.0, 160.0, 120.0], [150.0, 10.0, 180.0, 40.0]]
    return Targets([target(three, [1, 4, 0]), target([[30.0, 30.0, 120.0, 100.0]], [2])])


def images():
    return wave(2 * 3 * 128 * 192, 0.5).view(2, 3, 128, 192).float()


@pytest.mark.parametrize("cascade", [False, True])
@torch.no_grad()
def test_losses(cascade, monkeypatch):
    monkeypatch.setattr(torch, "randperm", lambda count, device=None: torch.arange(count, device=device))
    model = make(cascade)
    found = DetectionLoss(model).parts(model.features(images()), objects())
    assert {name: value.item() for name, value in found.items()} == pytest.approx(LOSSES[cascade], abs=1e-4)


@pytest.mark.parametrize("cascade", [False, True])
def test_detections(cascade):
    model = make(cascade)
    batch = ImageBatch(images()[:1], [(125, 185)], [(100, 123)], torch.tensor([[1.5, 1.25, 1.5, 1.25]]))
    found, = model(batch)
    count, first, pixels = BOXES[cascade]
    assert len(found) == count and found.masks().sum().item() == pytest.approx(pixels, abs=20)
    rows = torch.cat([found.boxes, found.scores[:, None], found.labels[:, None]], 1)[:3]
    torch.testing.assert_close(rows, torch.tensor(first), atol=2e-3, rtol=1e-4)
