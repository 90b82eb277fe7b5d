import argparse
import json

import pytest
import torch

cv2 = pytest.importorskip("cv2")

from vitq import detect_cli  # noqa: E402
from vitq.detection import drawing, save  # noqa: E402
from vitq.detection.model import Detections  # noqa: E402
from vitq.errors import InputError, MissingError  # noqa: E402


def detect(*arguments):
    parser = argparse.ArgumentParser()
    detect_cli.add(parser)
    given = parser.parse_args([str(a) for a in arguments])
    return given.function(given)


def test_boxes_and_masks_are_drawn(tiny, shapes, tmp_path, capsys):
    file = save(tiny(classes=4, detections=3), tmp_path / "m.safetensors", classes="disc,square,triangle,ring",
                long="64", short="64")
    image, out = shapes.path(1), tmp_path / "new" / "out.png"
    assert detect(image, "--out", out, "--checkpoint", file, "--threshold", 0, "--json", tmp_path / "r.json") == 0
    text, drawn = capsys.readouterr().out, cv2.imread(str(out))
    assert "3 of 3 detections" in text and text.split()[0] in ("disc", "square", "triangle", "ring")
    assert drawn.shape == (64, 64, 3) and (drawn != cv2.imread(str(image))).any()
    results = json.loads((tmp_path / "r.json").read_text())
    assert len(results) == 3 and {"bbox", "score", "segmentation", "category_id"} <= set(results[0])
    assert detect(image, "--out", out, "--checkpoint", file, "--threshold", 1) == 0
    assert "0 of 3" in capsys.readouterr().out and (cv2.imread(str(out)) == cv2.imread(str(image))).all()


def test_what_is_wrong_is_said_in_one_line(shapes, tmp_path):
    image = shapes.path(1)
    with pytest.raises(InputError, match="out='x.gif'"):
        detect(image, "--out", "x.gif", "--checkpoint", "m.pth")
    with pytest.raises(MissingError, match="image='none.png' does not exist"):
        detect("none.png", "--out", "x.png", "--checkpoint", "m.pth")
    with pytest.raises(InputError, match="model is not given"):
        detect(image, "--out", tmp_path / "x.png", "--checkpoint", "m.pth")
    with pytest.raises(InputError, match="threshold=2.0"):
        detect(image, "--out", "x.png", "--checkpoint", "m.pth", "--threshold", 2)


def test_only_what_is_sure_enough_is_drawn():
    import numpy as np
    found = Detections(torch.tensor([[5.0, 20.0, 25.0, 40.0], [35.0, 20.0, 55.0, 40.0]]), torch.tensor([0.9, 0.2]),
                       torch.tensor([0, 1]), torch.ones(2, 28, 28), (60, 60))
    image = np.zeros((60, 60, 3), np.uint8)
    drawn = drawing.draw(image, found, ["a", "b"], 0.3)
    expected = (np.array(drawing.colour(0)) * drawing.OPACITY).round()
    assert np.abs(drawn[30, 15] - expected).max() <= 1 and (drawn[30, 45] == 0).all() and (image == 0).all()


def test_a_quantized_detector_draws_too(tiny, shapes, tmp_path, capsys):
    from vitq.detection.quantization import quantize
    model = tiny(classes=4, detections=3, depths=(1, 1, 1, 1), mask_convs=1, proposals=20)
    file = save(quantize(model, shapes.batch(2), "repq").model, tmp_path / "q.safetensors")
    assert detect(shapes.path(1), "--out", tmp_path / "q.png", "--checkpoint", file, "--short", 64, "--long", 64,
                  "--threshold", 0) == 0
    assert "3 of 3 detections" in capsys.readouterr().out


def test_a_published_file_and_a_photograph(published, tmp_path, capsys):
    """Every key of the published layout with its wrapping, and a picture at its own size; then the wrong name."""
    from vitq.data import photos
    from vitq.detection import Detector
    from vitq.detection.checkpoint import our_key
    torch.manual_seed(0)
    model = Detector("mask_rcnn_swin_tiny")
    torch.nn.init.normal_(model.roi.box_heads[0].logits.weight, std=0.3)  # sure enough to be drawn
    own = model.state_dict()
    state = {key: own[our_key(key)] if our_key(key) in own else model.get_buffer(our_key(key))
             for key in published("mask_rcnn_swin_tiny")}
    file, image, out = tmp_path / "m.pth", tmp_path / "photo.jpg", tmp_path / "out.jpg"
    torch.save({"meta": {"epoch": 36, "CLASSES": ("person",)}, "state_dict": state, "optimizer": {"state": {}}}, file)
    photo = photos.photograph("chelsea")
    assert cv2.imwrite(str(image), photo[..., ::-1])
    common = (image, "--out", out, "--checkpoint", file, "--short", 96, "--long", 160, "--threshold", 0.05)
    assert detect(*common, "--model", "mask_rcnn_swin_tiny") == 0
    assert " detections drawn into" in capsys.readouterr().out and cv2.imread(str(out)).shape == photo.shape
    with pytest.raises(InputError, match="the file looks like mask_rcnn_swin_tiny"):
        detect(*common, "--model", "cascade_mask_rcnn_swin_tiny")
