"""The small study of detection: jobs share work without changing a result, and tables say what the rows say."""

import numpy as np
import pandas as pd
import pytest
import torch

from vitq.detection import Detector, DetectorConfig, quantize, save
from vitq.errors import InputError
from vitq.files import read_json
from vitq.papers.erq2024 import detection, detection_tables

pytest.importorskip("cv2"), pytest.importorskip("pycocotools")
SMALL = dict(classes=4, embed_dim=16, depths=(1, 1, 1, 1), heads=(1, 1, 2, 2), window=4, channels=8, hidden=16,
             proposals=8, detections=5, score_threshold=0.0)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return Detector(DetectorConfig(**SMALL)).eval()


@pytest.fixture
def job(tmp_path_factory, tmp_path, model):
    place = tmp_path_factory.getbasetemp() / "shapes"
    weights = str(save(model, tmp_path / "m.safetensors"))
    return {"detector": model.config, "weights": weights, "bits": "W4A4", "draw": 1, "setting": "", "data": str(place),
            "drawn": 4, "first": 1, "images": 2, "pictures": [2],
            "test": {"split": "held_out", "images": 2}, "out": str(tmp_path / "job.json"),
            "cases": [{"method": m, "coe": 1e3} for m in ("nearest", "repq", "gptq", "erq")]}


@pytest.mark.parametrize("change", [{}, {"scope": "backbone", "images": 1}, {"levels": "first", "images": 1}], ids=str)
def test_methods_that_share_their_statistics_give_what_each_gives_alone(model, job, change):
    change = dict(change)
    job |= change
    images = detection.calibration(job)
    assert len(images) == job["images"]
    job["cases"] = job["cases"][2 if change else 0:]
    change.pop("images", None)
    for case, network, seconds in detection.quantized(model, job):
        alone = quantize(model, images, case["method"], 4, 4, coe=1e3, **change).model.state_dict()
        shared = network.state_dict()
        assert list(alone) == list(shared) and seconds > 0
        assert all(torch.equal(alone[name], shared[name]) for name in alone), case


def test_calibration_images_are_training_images_of_the_draw(job):
    every = detection.images_of("training", job["drawn"], job["data"])
    for row, batch in enumerate(detection.calibration(job), 1):
        assert batch.images.equal(every.batch(every.image_ids[row]).images)
    held = detection.images_of("held_out", 2, job["data"])
    assert not any(held.batch(1).images.equal(every.batch(number).images) for number in every.image_ids)


def test_a_finished_job_is_read_back(job, monkeypatch):
    monkeypatch.setattr(detection.provenance, "note_data", lambda *_: None)
    job["cases"] = job["cases"][1:2]
    found = detection.studied(job)
    row, = found["rows"]
    assert 0 <= row["box_ap"] <= 100 and row["method"] == "repq" and row["detections"] <= 5
    assert {entry["image_id"] for entry in found["pictures"]["repq"]} <= {2}
    assert row["box_ap_part"] == row["box_ap"] and found["data_version"]
    assert read_json(job["out"]) == found
    monkeypatch.setattr(detection, "opened", None)
    assert detection.studied(job) == found
    monkeypatch.undo()
    monkeypatch.setattr(detection.provenance, "note_data", lambda *_: None)
    with pytest.raises(InputError, match="not of-others"):
        detection.studied(job | {"out": None, "fingerprint": "of-others"})


def test_a_part_is_what_a_limited_job_scores(model, job):
    whole, _ = detection.scored(model, detection.images_of("held_out", 2, job["data"]), part=1)
    limited, _ = detection.scored(model, detection.images_of("held_out", 2, job["data"]), limit=1, part=1)
    for kind in ("box", "mask"):
        assert whole[f"{kind}_ap_part"] == limited[f"{kind}_ap"] == limited[f"{kind}_ap_part"]


def rows(values, bits="W4A4", setting=""):
    """One row a draw and method of one detector."""
    return pd.DataFrame([{"detector": "mask_rcnn_swin_micro", "bits": bits, "setting": setting, "draw": draw,
                          "method": method, "box_ap": value, "mask_ap": value - 2}
                         for method, own in values.items() for draw, value in enumerate(own)])


TABLE = pd.concat([rows({"FP32": [90.0]}, "FP32"), rows({"RepQ-ViT": [80, 70, 75], "ERQ": [82, 72.5, 76.5]}),
                   rows({"RepQ-ViT": [79.0, 69.5, 76], "ERQ": [60.0, 50, 55]}, setting="one image")])


def test_differences_are_taken_draw_by_draw():
    pairs = [("ERQ", "RepQ-ViT"), ("ERQ", "FP32"), ("ERQ", "GPTQ")]
    found = detection_tables.verdicts(TABLE[TABLE.setting == ""], pairs)
    line = found[found.metric == "box AP"].set_index("difference").loc["ERQ - RepQ-ViT"]
    assert line["published"] == "+0.7" and line["measured"] == "+2.0 (0.5)" and line["verdict"] == "same direction"
    turned = TABLE.replace({"method": {"ERQ": "RepQ-ViT", "RepQ-ViT": "ERQ"}})
    turned = detection_tables.verdicts(turned[turned.setting == ""], [("ERQ", "RepQ-ViT")])
    assert set(turned["verdict"]) == {"opposite"} and set(turned["sense"]) == {"below"}
    lines = found.set_index(["difference", "metric"])
    assert lines.loc[("ERQ - FP32", "box AP"), "measured"] == "-13.0 (4.8)"
    assert lines.loc[("ERQ - GPTQ", "box AP"), "verdict"] == "not measured"


@pytest.mark.parametrize(("gains", "reported", "word"), [
    ([1.0, 1.2, 0.8], 0.5, "same direction"), ([1.0, 1.2, 0.8], -0.5, "opposite"),
    ([1.0, -1.2, 0.8], 0.5, "within noise"),
    ([1.0], 0.5, "one draw"), ([], 0.5, "not measured"), ([-1.0, -1.2, -0.8], float("nan"), "below"),
    ([1.0, 1.2, 0.8], float("nan"), "above")])
def test_words(gains, reported, word):
    assert detection_tables.verdict(np.array(gains), reported) == word


def test_what_a_setting_changes():
    found = detection_tables.changes(TABLE, ["one image"], "", ["RepQ-ViT", "GPTQ", "ERQ"]).set_index("method")
    assert list(found.index) == ["RepQ-ViT", "ERQ"]
    assert found.loc["RepQ-ViT", "box AP: verdict"] == "within noise" and found.loc["ERQ", "box AP: verdict"] == "below"
    assert found.loc["ERQ", "box AP"] == "-22.0 (0.5)"


def test_the_bar_is_a_point_of_the_mean():
    table = pd.concat([rows({"FP32": [90.0]}, "FP32"), rows({"ERQ": [89.5, 88.0, 89.4]}, "W6A6")])
    assert set(detection_tables.near_float(table)["holds"]) == {"no"}
    table.loc[table.box_ap == 88.0, "box_ap"] = 88.2
    found = detection_tables.near_float(table).set_index("metric")["holds"]
    assert found.to_dict() == {"box AP": "yes", "mask AP": "no"}


def test_conclusions_count_what_the_verdicts_say():
    found = detection_tables.verdicts(TABLE[TABLE.setting == ""], [("ERQ", "RepQ-ViT"), ("ERQ", "GPTQ")])
    odd = detection_tables.changes(TABLE, ["one image"], "", ["ERQ"])
    first, last = detection_tables.conclusions(found, odd)
    assert "of 2 comparisons ERQ is above in 2, below in 0, within noise in 0" in first and "2 same direction" in first
    assert last == "one image, change of box AP: ERQ -22.0 (0.5) (below)."


def test_the_published_table_has_its_sources_and_no_figure_from_memory():
    table = detection_tables.published_table()
    assert list(table["method"]) == ["FP32", "uniform", "RepQ-ViT", "RepQ-ViT", "ERQ"]  # GPTQ's could not be checked
    assert table.set_index(["method", "bits"]).loc[("ERQ", "W4A4"), "Cascade Swin-S, box"] == 50.0
    assert any("42.7" in line for line in detection_tables.published_notes())


def test_strengths_are_chosen_by_both_metrics():
    chosen = pd.DataFrame({"detector": ["a", "a", "b", "b"], "coe": [1e2, 1e4] * 2, "box_ap": [50, 60, 70, 20],
                           "mask_ap": [50, 30, 70, 20]})
    wide, best = detection_tables.strengths(chosen)
    assert best == {"a": 1e2, "b": 1e2} and list(wide.columns) == ["detector", "100", "10000"]


def test_options_of_a_case_reach_the_quantizers(model, job):
    job["cases"] = [{"method": "repq", "round_zero_point": flag} for flag in (True, False)]
    one, other = (network.state_dict() for _, network, _ in detection.quantized(model, job))
    assert any(not torch.equal(one[name], other[name]) for name in one)
