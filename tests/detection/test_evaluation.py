import json

import numpy as np
import pytest
import torch

from vitq.detection.coco import CocoSet
from vitq.detection.evaluation import MAX_DETECTIONS, average_precision, detect_all, evaluate
from vitq.detection.masks import encode_masks
from vitq.detection.model import Detections
from vitq.detection.results import as_results
from vitq.errors import InputError


def perfect(data):
    """What is marked, as detections."""
    found = {}
    for image_id in data.image_ids:
        truth = data.truth(image_id)
        boxes = truth.boxes.copy()
        boxes[:, 2:] -= boxes[:, :2]
        found[image_id] = [
            {"image_id": image_id, "category_id": int(label) + 1, "bbox": box.tolist(), "score": 0.9,
             "segmentation": mask}
            for box, label, mask in zip(boxes, truth.labels, encode_masks(torch.from_numpy(truth.masks)), strict=True)]
    return found


def test_what_is_marked_has_an_ap_of_one(shapes):
    for kind in ("box", "mask"):
        found = average_precision(shapes, perfect(shapes), kind)
        assert found["AP"] == pytest.approx(1) and found["AP75"] == pytest.approx(1) and found["AP_large"] is None


def test_more_than_100_detections_of_an_image_count_for_the_recall_alone(shapes):
    """120 sure but wrong boxes first: the right ones come too late for the AP."""
    assert MAX_DETECTIONS == [100, 300, 1000]
    results = perfect(shapes)
    wrong = [{"image_id": 1, "category_id": n, "bbox": [0, 0, 1, 1], "score": 0.99} for n in range(1, 5)]
    for number, expected in ((99, False), (120, True)):
        drowned = {1: [{k: v for k, v in e.items() if k != "segmentation"} for e in results[1]] + wrong * number}
        assert (average_precision(shapes, drowned)["AP"] == 0) == expected


def test_moved_boxes_lose_box_ap_alone(shapes):
    results = perfect(shapes)
    for entry in (entry for own in results.values() for entry in own):
        entry["bbox"][0] += 0.2 * entry["bbox"][2]  # IoU 2/3: thresholds .5 to .65
    assert average_precision(shapes, results, "box")["AP"] == pytest.approx(0.4, abs=1e-6)
    assert average_precision(shapes, results, "mask")["AP"] == pytest.approx(1)


def test_images_without_results_do_not_count_and_empty_ones_do(shapes):
    results = perfect(shapes)
    first = {shapes.image_ids[0]: results[shapes.image_ids[0]]}
    assert average_precision(shapes, first)["AP"] == pytest.approx(1)
    assert average_precision(shapes, {i: [] for i in results})["AP"] == 0
    half = {i: own if i <= 3 else [] for i, own in results.items()}
    assert 0 < average_precision(shapes, half)["AP"] < 0.9


def test_the_size_of_a_mask_is_its_own_or_as_released_its_boxs(tmp_path):
    """A thin diagonal: 120 pixels in a box of 60 x 60. A false one of the same size spoils AP_small, or does not."""
    mask = np.zeros((2, 100, 100), bool)
    rows = np.arange(60)
    for shift in (0, 1):
        mask[0, rows, rows + shift] = mask[1, rows + 35, rows + shift] = True
    runs = encode_masks(torch.from_numpy(mask))
    content = {"info": {}, "images": [{"id": 1, "file_name": "a.png", "height": 100, "width": 100}],
               "categories": [{"id": 1, "name": "line"}],
               "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "iscrowd": 0, "area": 120,
                                "bbox": [0, 0, 61, 60], "segmentation": runs[0]}]}
    (tmp_path / "a.json").write_text(json.dumps(content))
    data = CocoSet(tmp_path / "a.json", tmp_path)
    results = {1: [{"image_id": 1, "category_id": 1, "bbox": [0, y, 61, 60], "score": score, "segmentation": own}
                   for y, score, own in ((0, 0.5, runs[0]), (35, 0.9, runs[1]))]}
    ours, released = (average_precision(data, results, "mask", area) for area in ("mask", "box"))
    assert ours["AP"] == released["AP"] == pytest.approx(0.5, abs=0.01)
    assert ours["AP_small"] == pytest.approx(0.5, abs=0.01) and released["AP_small"] == pytest.approx(1)


def test_results_have_corner_and_sides_and_category_ids():
    found = Detections(torch.tensor([[2.0, 3.0, 6.0, 9.0]]), torch.tensor([0.75]), torch.tensor([1]),
                       torch.ones(1, 28, 28), (12, 10))
    entry, = as_results(found, 42, [5, 17])
    assert (entry["image_id"], entry["category_id"], entry["bbox"], entry["score"]) == (42, 17, [2, 3, 4, 6], 0.75)
    assert entry["segmentation"]["size"] == [12, 10]


class Counting(torch.nn.Module):
    """A detector that counts its images and breaks after some."""

    def __init__(self, model, breaks_after=None):
        super().__init__()
        self.model, self.config, self.left, self.seen = model, model.config, breaks_after, 0

    def state_dict(self, *args, **kwargs):
        return self.model.state_dict(*args, **kwargs)

    def forward(self, batch):
        if self.seen == self.left:
            raise KeyboardInterrupt
        self.seen += 1
        return self.model(batch)


def test_an_evaluation_goes_on_where_it_stopped(tiny, shapes, tmp_path):
    model = tiny(classes=4, detections=4)
    whole = detect_all(model, shapes, progress=False)
    with pytest.raises(KeyboardInterrupt):
        detect_all(Counting(model, 3), shapes, tmp_path, progress=False)
    log = tmp_path / "results.jsonl"
    log.write_text(log.read_text()[:-9])  # the third line is cut short
    again = Counting(model)
    metrics = evaluate(again, shapes, tmp_path, progress=False)
    assert again.seen == 4 and metrics["images"] == 6
    entries = json.loads((tmp_path / "results.json").read_text())
    assert entries == [entry for own in whole.values() for entry in own]
    assert json.loads((tmp_path / "metrics.json").read_text()) == metrics
    done = Counting(model)
    assert evaluate(done, shapes, tmp_path, progress=False) == metrics and done.seen == 0
    with pytest.raises(InputError, match="holds the results of another model"):
        detect_all(tiny(classes=4, detections=4, seed=1), shapes, tmp_path, progress=False)


def test_classes_must_fit(tiny, shapes):
    with pytest.raises(InputError, match="model has 3 classes, the data set 4"):
        detect_all(tiny(), shapes)


def test_a_detector_in_training_is_evaluated_in_evaluation_mode(tiny, shapes):
    model = tiny(classes=4, cascade=True, detections=2, drop_path=0.5)
    expected = detect_all(model, shapes, limit=1, progress=False)
    assert detect_all(model.train(), shapes, limit=1, progress=False) == expected
    assert all(module.training for module in model.modules())


def test_a_part_of_the_images(tiny, shapes):
    assert len(detect_all(tiny(classes=4, detections=2), shapes, limit=2, progress=False)) == 2


def test_no_detection_and_one(tiny, shapes):
    """Nothing above the threshold, or one box: entries, masks and AP all the same."""
    none, one = tiny(classes=4, score_threshold=0.99), tiny(classes=4, detections=1)
    results = detect_all(none, shapes, limit=2, progress=False)
    assert results == {1: [], 2: []} and average_precision(shapes, results, "mask")["AP"] == 0
    found, = none(shapes.batch(1))
    assert found.masks().shape == (0, 64, 64) and found.encoded_masks() == []
    results = detect_all(one, shapes, progress=False)
    assert [len(own) for own in results.values()] == [1] * 6
    assert average_precision(shapes, results, "mask")["AP"] is not None
