"""A store: what it costs, what it gives back, and what each kind of damage is told."""

import pickle

import numpy as np
import pytest
import torch

from vitq.data.soft_labels import CropSettings, LabelFormat, SoftLabelStore, bytes_per_crop, make, total_bytes
from vitq.data.soft_labels.layout import IMAGENET_IMAGES
from vitq.errors import InputError, MissingError


@pytest.fixture
def store(tmp_path, dataset, teacher):
    return make(tmp_path / "labels", dataset, teacher, CropSettings(crops=6, batch_size=24), progress=False)


def test_imagenet_is_plannable():
    assert bytes_per_crop(LabelFormat()) == 29 and bytes_per_crop(LabelFormat("hard", 1)) == 11
    assert total_bytes(IMAGENET_IMAGES, 500, LabelFormat()) / 1e9 == pytest.approx(18.6, abs=0.05)


def test_any_crops_of_any_images_in_one_call(store):
    everything = store.read(np.arange(37), np.tile(np.arange(6), (37, 1)))
    rows, crops = np.array([36, 0, 5, 5]), np.array([[5, 0], [1, 1], [2, 3], [3, 2]])
    for part, whole in zip(store.read(rows, crops), everything, strict=True):
        assert (part == whole[rows[:, None], crops]).all()
    assert (store.image(7).boxes == everything.boxes[[7]]).all()
    assert everything.boxes.dtype == np.float32 and everything.indices.dtype == np.int64
    assert everything.distributions(store.label, 12).shape == (37, 6, 12)


def test_hard_labels_hold_no_probabilities(tmp_path, dataset, teacher):
    settings = CropSettings(crops=3, label=LabelFormat("hard", 1))
    hard = make(tmp_path / "hard", dataset, teacher, settings, progress=False)
    found = hard.read([0, 1], [[0, 1], [1, 2]])
    assert found.probabilities.shape == (2, 2, 0)
    assert found.distributions(hard.label, 12).sum(-1).eq(1).all()


def test_a_store_travels_to_another_process(store):
    store.image(0)
    assert (pickle.loads(pickle.dumps(store)).image(3).indices == store.image(3).indices).all()


@pytest.mark.parametrize("rows, crops", [([37], [[0]]), ([-1], [[0]]), ([0], [[6]]), ([0], [[-1]])])
def test_numbers_outside_are_refused(store, rows, crops):
    with pytest.raises(InputError, match="must lie between 0 and"):
        store.read(rows, crops)


def flip_byte(file, position):
    content = bytearray(file.read_bytes())
    content[position] ^= 1
    file.write_bytes(content)


@pytest.mark.parametrize("position", [0, 50, -1], ids=["box", "label", "checksum"])
def test_a_corrupt_block_is_named_and_the_others_are_good(store, position):
    file = store.folder / "labels-00003.bin"  # images 6 and 7
    size = store.header.block.itemsize
    flip_byte(file, 2 * size - 1 if position == -1 else size + position)
    damaged = SoftLabelStore(store.folder)
    damaged.read([6, 8], [[0], [0]])
    with pytest.raises(InputError, match=r"labels-00003\.bin: the block of image 7 is corrupt") as caught:
        damaged.read([6, 7], [[0], [0]])
    assert "\n" not in str(caught.value)
    assert damaged.corrupt() == [str(caught.value)]


def test_blocks_in_the_wrong_place_are_noticed(store):
    file = store.folder / "labels-00003.bin"
    content, size = file.read_bytes(), store.header.block.itemsize
    file.write_bytes(content[size:] + content[:size])
    assert len(SoftLabelStore(store.folder).corrupt()) == 2
    file.write_bytes(bytes(2 * size))
    assert len(SoftLabelStore(store.folder).corrupt()) == 2


def test_files_cut_short_or_missing_are_named(store):
    file = store.folder / "labels-00003.bin"
    file.write_bytes(file.read_bytes()[:-5])
    with pytest.raises(InputError, match=r"labels-00003\.bin has \d+ bytes instead of"):
        SoftLabelStore(store.folder).read([6], [[0]])
    assert len(SoftLabelStore(store.folder).corrupt()) == 1
    file.unlink()
    with pytest.raises(MissingError, match="1 of 19 shards are missing"):
        SoftLabelStore(store.folder)
    with pytest.raises(MissingError, match="labels-00003"):
        SoftLabelStore(store.folder, partial=True).read([6], [[0]])


def test_labels_of_other_images_are_refused(store, dataset):
    import dataclasses

    store.require(dataset)
    with pytest.raises(InputError, match="holds labels of squares-1, not of squares-2"):
        store.require(dataclasses.replace(dataset, version="squares-2"))


@pytest.mark.parametrize("content", ["", "{}", '{"format": "vitq soft labels 1", "images": 3}', "[]"])
def test_a_header_that_cannot_be_read_is_named(tmp_path, content):
    (tmp_path / "header.json").write_text(content)
    with pytest.raises(InputError, match=r"header\.json"):
        SoftLabelStore(tmp_path)


def test_no_store_is_missing(tmp_path):
    with pytest.raises(MissingError, match="holds no soft labels"):
        SoftLabelStore(tmp_path / "nothing")


def test_random_access_is_fast(tmp_path, dataset, teacher):
    """A loose floor for busy machines; the real figure comes from the benchmark."""
    import time

    store = make(tmp_path / "many", dataset, teacher, CropSettings(crops=64, batch_size=256), progress=False)
    rng = np.random.default_rng(0)
    rows, crops = rng.integers(0, 37, 500), rng.integers(0, 64, (500, 4))
    start = time.perf_counter()
    for row, some in zip(rows, crops, strict=True):
        store.read([row], some[None])
    assert 2000 / (time.perf_counter() - start) > 5_000
    assert torch.is_tensor(store.image(0).distributions(store.label, 12))
