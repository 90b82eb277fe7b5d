import json

import numpy as np
import pytest

from vitq.detection.coco import CocoSet, coco_names
from vitq.detection.shapes import CLASSES, make_shapes, scene
from vitq.errors import InputError, MissingError


def test_a_scene_is_a_function_of_its_seed_and_its_masks_do_not_overlap():
    for seed in range(20):
        image, found = scene(seed)
        again, _ = scene(seed)
        assert image.shape == (128, 128, 3) and np.array_equal(image, again)
        assert sum(mask.astype(int) for _, mask in found).max() <= 1 and all(mask.sum() >= 20 for _, mask in found)
    assert not np.array_equal(scene(0)[0], scene(1)[0])


def test_all_classes_come_and_some_objects_are_hidden_in_part():
    kinds, parts = set(), 0
    for seed in range(30):
        for kind, mask in scene(seed)[1]:
            kinds.add(CLASSES[kind])
            rows, columns = mask.any(1).nonzero()[0], mask.any(0).nonzero()[0]
            box = (rows[-1] - rows[0] + 1) * (columns[-1] - columns[0] + 1)
            parts += mask.sum() < 0.35 * box
    assert kinds == set(CLASSES) and parts > 3


def test_the_set_is_in_cocos_format(shapes):
    assert len(shapes) == 6 and shapes.classes == list(CLASSES) and shapes.categories == [1, 2, 3, 4]
    for number, image_id in enumerate(shapes.image_ids, 1):
        picture, found = scene(3 * 10**6 + number, 64)
        truth = shapes.truth(image_id)
        assert np.array_equal(shapes.image(image_id)[..., ::-1], picture)
        assert truth.labels.tolist() == [kind for kind, _ in found]
        assert np.array_equal(truth.masks, np.array([mask for _, mask in found]))
        for box, mask in zip(truth.boxes, truth.masks, strict=True):
            left, top, right, bottom = box.astype(int)
            assert mask[top:bottom, left:right].sum() == mask.sum() and mask[top].any() and mask[:, right - 1].any()


def test_a_folder_is_not_used_twice(shapes):
    assert len(make_shapes(shapes.folder, 6, seed=3, size=64)) == 6
    with pytest.raises(InputError, match="holds another set of shapes"):
        make_shapes(shapes.folder, 6, seed=4, size=64)


def test_crowds_are_left_out_and_classes_follow_their_ids(shapes, tmp_path):
    content = json.loads(shapes.file.read_text())
    ids = {1: 90, 2: 7, 3: 13, 4: 1}
    for entry in content["categories"]:
        entry["id"] = ids[entry["id"]]
    for entry in content["annotations"]:
        entry["category_id"], entry["iscrowd"] = ids[entry["category_id"]], int(entry["image_id"] == 2)
    (tmp_path / "a.json").write_text(json.dumps(content))
    data = CocoSet(tmp_path / "a.json", shapes.folder)
    assert data.categories == [1, 7, 13, 90] and data.classes == ["ring", "square", "triangle", "disc"]
    assert len(data.truth(2).boxes) == 0 and data.truth(2).masks.shape == (0, 64, 64)
    assert data.truth(1).labels.tolist() == [[3, 1, 2, 0][k] for k in shapes.truth(1).labels]
    assert data.batch(1).sizes == [(800, 800)]


def test_files_that_are_no_set(tmp_path):
    with pytest.raises(MissingError, match="annotations="):
        CocoSet(tmp_path / "none.json", tmp_path)
    for text in ("{", "[]", '{"images": [], "categories": [], "annotations": []}'):
        (tmp_path / "bad.json").write_text(text)
        with pytest.raises(InputError, match="annotations="):
            CocoSet(tmp_path / "bad.json", tmp_path)


def test_the_80_classes_of_coco():
    names, numbers = coco_names()
    assert len(names) == 80 and (names[0], names[79]) == ("person", "toothbrush")
    assert (numbers[0], numbers[11], numbers[79]) == (1, 13, 90)
