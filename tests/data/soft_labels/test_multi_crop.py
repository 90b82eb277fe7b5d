"""Multi-crop batches (spec test T12): pixels, flip and label of a crop are of one stored entry, whoever reads it."""

import dataclasses

import numpy as np
import pytest
import torch
from PIL import Image

from vitq import data
from vitq.data.multi_crop import MultiCropSource
from vitq.data.soft_labels import CropSettings, crop_resize, make, pixel_boxes
from vitq.errors import InputError

SETTINGS = CropSettings(crops=6, batch_size=24)


@pytest.fixture
def store(tmp_path, dataset, teacher):
    return make(tmp_path / "labels", dataset, teacher, SETTINGS, progress=False)


@pytest.fixture
def folder_set(tmp_path):
    """Blue tells the image (0 to 13), red the column, green the row; sizes differ."""
    for split in ("train", "val"):
        for c in range(2):
            (tmp_path / "images" / split / f"n{c}").mkdir(parents=True)
            for i in range(7):
                height, width = 40 + 3 * i, 60 - 4 * i
                pixels = np.zeros((height, width, 3), np.uint8)
                pixels[..., 0], pixels[..., 1] = np.linspace(0, 255, width), np.linspace(0, 255, height)[:, None]
                pixels[..., 2] = 10 * (7 * c + i)
                Image.fromarray(pixels).save(tmp_path / "images" / split / f"n{c}" / f"{i}.png")
    dataset = data.load("imagenet", "train", path=tmp_path / "images", size=16)
    return dataset.normalized_for((0.5,) * 3, (0.25,) * 3)


@pytest.fixture
def folder_store(tmp_path, folder_set, teacher):
    return make(tmp_path / "folder labels", folder_set, teacher, SETTINGS, progress=False)


def same(one, two):
    return len(one) == len(two) and all(a.equal(c) and b.equal(d) for (a, b), (c, d) in zip(one, two, strict=True))


def pixels_of(crops):
    return (crops * 0.25 + 0.5) * 255


def test_every_crop_has_the_label_that_the_teacher_gave_to_it(dataset, store, teacher):
    source = MultiCropSource(dataset, store, 20, 4)
    assert len(source) == 8  # ceil(37 / 5)
    for crops, labels in source.iterate(epoch=3):
        assert crops.shape == (20, 3, 16, 16) and labels.shape == (20, 12) and labels.dtype == torch.float32
        wanted = store.label.compress(teacher(crops).softmax(-1))
        assert torch.allclose(labels, store.label.recover(*wanted, 12), atol=2e-3)
        assert torch.allclose(labels.sum(-1), torch.ones(20), atol=1e-5)


@pytest.mark.parametrize("kind", ["memory", "files"])
def test_box_flip_and_image_are_of_the_stored_entry(request, kind):
    dataset = request.getfixturevalue("dataset" if kind == "memory" else "folder_set")
    store = request.getfixturevalue("store" if kind == "memory" else "folder_store")
    source = MultiCropSource(dataset, store, 12, 3, workers=0)
    flipped = 0
    for (crops, labels), (rows, chosen) in zip(source.iterate(1), source.chosen(1), strict=True):
        found = store.read(rows, chosen)
        targets = found.distributions(store.label, 12)
        for b in range(4):
            for m in range(3):
                place = m * 4 + b  # crop-major
                crop, (top, left, high, wide) = pixels_of(crops[place]), found.boxes[b, m].tolist()
                assert crop[2].mean().item() == pytest.approx((6 if kind == "memory" else 10) * rows[b], abs=0.6)
                first, last = (-1, 0) if found.flips[b, m] else (0, -1)
                flipped += bool(found.flips[b, m])
                near = {"abs": 14}
                assert crop[0, :, first].mean().item() == pytest.approx(255 * left, **near)
                assert crop[0, :, last].mean().item() == pytest.approx(255 * (left + wide), **near)
                assert crop[1, 0].mean().item() == pytest.approx(255 * top, **near)
                assert crop[1, -1].mean().item() == pytest.approx(255 * (top + high), **near)
                assert labels[place].equal(targets[b, m])
    assert flipped > 5


def test_files_and_memory_cut_alike(folder_set, folder_store):
    source = MultiCropSource(folder_set, folder_store, 8, 2, workers=0)
    crops, _ = next(source.iterate())
    rows, chosen = next(source.chosen(0))
    for b, row in enumerate(rows):
        image = torch.from_numpy(np.array(Image.open(folder_set.samples[row][0]))).permute(2, 0, 1)[None].float()
        found = folder_store.read([row], chosen[[b]])
        boxes = torch.from_numpy(pixel_boxes(found.boxes, *image.shape[-2:]))
        wanted = crop_resize(image, boxes, torch.from_numpy(found.flips), 16)[0]
        assert torch.allclose(pixels_of(crops[b::4]), wanted, atol=1.1)  # Pillow rounds twice


def test_memory_is_used_again_only_when_nothing_refers_to_it(folder_set, folder_store):
    def chunks(keep):
        addresses, kept = set(), []
        for crops, _ in MultiCropSource(folder_set, folder_store, 4, 2, workers=0).iterate():
            addresses.add(crops.data_ptr())
            kept += [(crops.chunk(2)[1], crops.chunk(2)[1].clone())] if keep else []
        assert all(view.equal(copy) for view, copy in kept)
        return len(addresses)

    assert chunks(keep=True) == 7 and chunks(keep=False) <= 2


def test_an_epoch_has_every_image_with_distinct_crops(dataset, store):
    source = MultiCropSource(dataset, store, 20, 4)
    rows, crops = (np.concatenate(part) for part in zip(*source.chosen(0), strict=True))
    assert len(rows) == 40 and set(rows.tolist()) == set(range(37)) and (rows[37:] == rows[:3]).all()
    assert all(len(set(some)) == 4 for some in crops.tolist())
    counts = np.bincount(np.concatenate([c.ravel() for e in range(40) for _, c in source.chosen(e)]), minlength=6)
    assert counts.min() > 0.9 * counts.mean()
    other = np.concatenate([rows for rows, _ in source.chosen(1)])
    assert (other != rows).any()


@pytest.mark.parametrize("kind, workers", [("memory", 0), ("files", 0), ("files", 2)])
def test_a_batch_depends_on_seed_epoch_and_number_alone(request, kind, workers):
    dataset = request.getfixturevalue("dataset" if kind == "memory" else "folder_set")
    store = request.getfixturevalue("store" if kind == "memory" else "folder_store")
    source = MultiCropSource(dataset, store, 8, 2, seed=5, workers=0)
    other = MultiCropSource(dataset, store, 8, 2, seed=5, workers=workers)
    whole = list(source.iterate(2))
    torch.manual_seed(1)
    before = torch.get_rng_state()
    assert same(whole, list(other.iterate(2))) and same(whole[2:], list(other.iterate(2, 2)))
    assert torch.get_rng_state().equal(before)
    assert not same(whole, list(source.iterate(3)))
    assert not same(whole, list(MultiCropSource(dataset, store, 8, 2, seed=6, workers=0).iterate(2)))


@pytest.mark.parametrize("kind", ["memory", "files"])
def test_ranks_share_the_images_of_each_batch(request, kind):
    dataset = request.getfixturevalue("dataset" if kind == "memory" else "folder_set")
    store = request.getfixturevalue("store" if kind == "memory" else "folder_store")
    whole = list(MultiCropSource(dataset, store, 8, 2, workers=0).iterate(1))
    halves = [list(MultiCropSource(dataset, store, 8, 2, part=(i, 2), workers=0).iterate(1)) for i in range(2)]
    for number, (crops, labels) in enumerate(whole):
        parts = [half[number] for half in halves]
        for all_of_them, index in ((crops, 0), (labels, 1)):
            joined = torch.cat([part[index].unflatten(0, (2, 2)) for part in parts], 1).flatten(0, 1)
            assert torch.allclose(joined, all_of_them, atol=1e-5)


def test_single_crops_and_another_size(dataset, store):
    source = MultiCropSource(dataset, store, 20, 4, size=24).with_crops(1)
    crops, labels = next(source.iterate())
    assert crops.shape == (20, 3, 24, 24) and labels.shape == (20, 12) and len(source) == 2


def test_wrong_arguments_are_refused(dataset, store):
    for words, more in (("crops must lie", {"crops": 7}), ("multiple of crops times ranks, 6", {"crops": 3,
                        "part": (0, 2)}), ("at most 148", {"batch_size": 152}), ("part", {"part": (2, 2)}),
                        ("interpolation", {"interpolation": "nearest"})):  # fmt: skip
        with pytest.raises(InputError, match=words):
            MultiCropSource(dataset, store, **({"batch_size": 20} | more))
    with pytest.raises(InputError, match="not of squares-2"):
        MultiCropSource(dataclasses.replace(dataset, version="squares-2"), store, 20)


@pytest.mark.parametrize("workers", [0, 2])
def test_damage_is_named_in_one_line(folder_set, folder_store, workers):
    file = folder_store.folder / "labels-00005.bin"
    good = file.read_bytes()
    file.write_bytes(bytes(len(good)))
    source = MultiCropSource(folder_set, folder_store, 8, 2, workers=workers)
    with pytest.raises(InputError, match=r"image 5 \(n0/5\.png\) is corrupt") as caught:
        list(source.iterate())
    assert "\n" not in str(caught.value)
    file.write_bytes(good)
    with open(folder_set.samples[9][0], "wb") as image:
        image.write(b"no image")
    with pytest.raises(InputError, match=r"n1/2\.png is damaged"):
        list(source.iterate())
