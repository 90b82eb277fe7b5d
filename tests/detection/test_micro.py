"""The two small detectors that are shipped, and the command that trains them."""

import json
from functools import partial

import pytest
import torch

from vitq.detection import Detector, evaluate, load, micro, saving
from vitq.detection.checkpoint import SHIPPED
from vitq.detection.shapes import scene
from vitq.errors import InputError, MissingError

pytest.importorskip("cv2"), pytest.importorskip("pycocotools")


@pytest.fixture(scope="module", params=list(micro.NAMES.values()))
def shipped(request):
    return request.param


@pytest.fixture(scope="module")
def unseen(tmp_path_factory):
    return micro.held_out(tmp_path_factory.mktemp("held-out") / "set", 12)


def test_the_file_is_small_and_says_how_it_was_made(shipped):
    file = SHIPPED / f"{shipped}.safetensors"
    assert file.stat().st_size <= 10 * 10**6
    header = saving.read_header(file)
    facts = json.loads(header["facts"])
    assert {"command", "seed", "steps", "image_seeds", "box_AP", "mask_AP"} <= set(facts)
    assert header["classes"] == "disc,square,triangle,ring" and header["long"] == header["short"] == "128"


def test_loads_are_equal_and_trained(shipped):
    one, two = load(shipped), load(shipped)
    assert not one.training and next(one.parameters()).dtype == torch.float32
    assert all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), two.state_dict().values(), strict=True))
    assert len(one.roi.box_heads) == len(one.roi.mask_heads) == (3 if "cascade" in shipped else 1)
    images = torch.randn(1, 3, 128, 128, generator=torch.Generator().manual_seed(0))
    assert [tuple(level.shape) for level in one.features(images)] == [
        (1, 48, side, side) for side in (32, 16, 8, 4, 2)]
    logits, deltas = one.roi.boxes(one.features(images), 0, [torch.tensor([[8.0, 8, 60, 40]])])
    assert logits.shape == (1, 5) and deltas.shape == (1, 16)


def test_it_detects_unseen_shapes(shipped, unseen):
    metrics = evaluate(load(shipped), unseen, progress=False)
    assert metrics["box_AP"] > 0.75 and metrics["mask_AP"] > 0.75


def test_without_its_file(shipped, monkeypatch, tmp_path):
    monkeypatch.setattr("vitq.detection.checkpoint.SHIPPED", tmp_path)
    with pytest.raises(MissingError, match=shipped):
        load(shipped)


def test_the_three_sets_have_no_image_in_common(tmp_path):
    sets = [make(tmp_path / make.__name__, 2) for make in (micro.training, micro.chosen, micro.held_out)]
    images = [data.image(number) for data in sets for number in data.image_ids]
    assert len({image.tobytes() for image in images}) == 6
    assert (sets[0].image(2)[..., ::-1] == scene(micro.SEEDS["training"] * 10**6 + 2)[0]).all()
    assert set(map(tuple, (data.classes for data in sets))) == {("disc", "square", "triangle", "ring")}


def test_the_cascade_begins_with_the_trained_mask_r_cnn():
    torch.manual_seed(1)
    cascade, trained = Detector(micro.NAMES["cascade"]), load(micro.NAMES["mask"])
    boxes = {key: value.clone() for key, value in cascade.state_dict().items() if "box_heads" in key}
    micro.begin_with(cascade, trained)
    state, given = cascade.state_dict(), trained.state_dict()
    for key, value in state.items():
        if "box_heads" in key:
            assert torch.equal(value, boxes[key])
        else:
            assert torch.equal(value, given[key.replace("heads.1", "heads.0").replace("heads.2", "heads.0")])


@pytest.mark.parametrize("kind", micro.NAMES)
def test_a_short_run_writes_what_it_measured(kind, monkeypatch, tmp_path):
    monkeypatch.setitem(micro.RECIPES, kind, {"steps": 2, "batch_size": 2, "learning_rate": 1e-4})
    monkeypatch.setattr(micro, "IMAGES", 4)
    for name in ("training", "chosen", "held_out"):
        monkeypatch.setattr(micro, name, partial(getattr(micro, name), count=2))
    facts = micro.train(kind, tmp_path)
    assert facts["steps"] == 2 and micro.train(kind, tmp_path) == facts
    assert json.loads((tmp_path / f"{micro.NAMES[kind]}.json").read_text()) == facts
    model = load(micro.NAMES[kind], checkpoint=tmp_path / f"{micro.NAMES[kind]}.safetensors")
    metrics = evaluate(model, micro.held_out(tmp_path / "data" / "held_out"), progress=False)
    assert facts["box_AP"] == round(metrics["box_AP"], 4)


def test_a_wrong_kind(tmp_path):
    with pytest.raises(InputError, match="choose one of mask, cascade"):
        micro.train("masks", tmp_path)
