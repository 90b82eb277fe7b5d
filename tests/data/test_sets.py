"""The sets that need no download: same content every time, disjoint splits, every label, what `load` refuses."""

import importlib
import importlib.util
import subprocess
import sys

import numpy as np
import pytest
import torch

from vitq import data
from vitq.data import glyphs, photos
from vitq.errors import InputError, MissingError

SMALL = {"digits": 100, "glyphs": 123, "photos": 28}


def small(name, split="train", **more):
    return data.load(name, split, **({"images": SMALL[name], "size": 32} | more))


@pytest.mark.parametrize("name", SMALL)
def test_same_arguments_same_content_and_version(name, monkeypatch, tmp_path):
    first = small(name)
    monkeypatch.setenv("VITQ_CACHE", str(tmp_path / "other"))  # made again, not read again
    second = small(name)
    assert first.images.equal(second.images) and first.labels.equal(second.labels)
    assert first.version == second.version
    assert first.images.dtype == torch.uint8 and first.images.shape == (SMALL[name], 3, 32, 32)
    assert first.labels.dtype == torch.int64


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("change", [{"split": "val"}, {"seed": 1}, {"size": 40}, {"images": 27}])
def test_version_and_content_change_together(name, change):
    first, other = small(name), small(name, **change)
    assert first.version != other.version
    assert not first.images.equal(other.images)


@pytest.mark.parametrize("name", SMALL)
def test_splits_share_no_image(name):
    seen = set()
    for split in data.SPLITS:
        pixels = small(name, split).images
        hashes = {row.numpy().tobytes() for row in pixels}
        assert len(hashes) == len(pixels) and not seen & hashes
        seen |= hashes


def test_digits_are_all_there_and_split_once():
    parts = [data.load("digits", split) for split in data.SPLITS]
    assert sum(len(part) for part in parts) == 1797
    assert all(set(part.labels.tolist()) == set(range(10)) for part in parts)


def test_fewer_images_are_the_first_of_more():
    for name in ("glyphs", "photos"):
        fewer, more = small(name, images=20), small(name)
        assert fewer.images.equal(more.images[:20]) and fewer.labels.equal(more.labels[:20])


def test_glyph_labels_are_balanced_and_in_no_fixed_order():
    labels = small("glyphs").labels
    assert labels.bincount(minlength=41).tolist() == [3] * 41
    assert not labels[:41].equal(labels[41:82])


def test_glyph_images_show_their_label():
    """The mean image of a class predicts it far above chance (2.4 %), so labels and pixels belong together."""
    train, test = (data.load("glyphs", split, images=4100, size=16) for split in ("train", "test"))
    rows = [part.images.float().mean(1).flatten(1) for part in (train, test)]
    rows = [(r - r.mean(1, keepdim=True)) / r.std(1, keepdim=True) for r in rows]
    means = torch.stack([rows[0][train.labels == label].mean(0) for label in range(41)])
    accuracy = ((rows[1] @ means.T).argmax(1) == test.labels).float().mean()
    assert accuracy > 0.07


def test_a_change_of_the_glyph_generator_needs_a_new_revision():
    """When these means of the first images move, raise `REVISION` in vitq/data/glyphs.py and put the new ones here."""
    means = small("glyphs", "test").images[:6].float().mean((1, 2, 3))
    assert glyphs.REVISION == 1
    assert means.tolist() == pytest.approx([80.39, 81.19, 55.82, 76.53, 57.78, 51.49], abs=0.2)


def test_a_change_of_the_photo_crops_needs_a_new_revision():
    means = small("photos", "test").images[:6].float().mean((1, 2, 3))
    assert photos.REVISION == 1
    assert means.tolist() == pytest.approx([161.39, 111.77, 185.59, 123.52, 133.17, 94.95], abs=0.5)


def test_photo_regions_of_the_splits_are_disjoint_and_cover_the_photograph():
    for shape in ((300, 451), (512, 512), (640, 427)):
        covered = np.zeros(shape, int)
        for split in data.SPLITS:
            left, top, right, bottom = photos.region(shape, split)
            covered[top:bottom, left:right] += 1
        assert (covered == 1).all()


def test_photos_show_every_photograph():
    dataset = small("photos")
    assert dataset.labels.bincount(minlength=dataset.num_classes).tolist() == [2] * 14
    assert photos.photograph("chelsea").shape == (300, 451, 3)


@pytest.mark.parametrize("name", SMALL)
def test_batches_are_normalised_with_the_mean_and_deviation_of_the_set(name):
    dataset = data.load(name, "train", size=32, images={"digits": 1200, "glyphs": 1025, "photos": 280}[name])
    images = torch.cat([images for images, _ in data.batches(dataset, 100)])
    assert images.dtype == torch.float32
    if name == "photos":  # [-1, 1] as EfficientNet-lite wants it
        assert images.min() >= -1 and images.max() <= 1.0001 and images.max() > 0.9
    else:
        assert images.mean().abs() < 0.05 and (images.std() - 1).abs() < 0.05
    expected = (dataset.images[7].double() / 255 - dataset.mean[0]) / dataset.std[0]
    assert torch.allclose(images[7].double(), expected, atol=1e-5)


def test_another_normalisation():
    dataset = small("glyphs").normalized_for((0.0, 0.0, 0.0), (1 / 255,) * 3)
    images, _ = next(iter(data.batches(dataset, 10)))
    assert torch.allclose(images, dataset.images[:10].float())


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        ({"name": "cifar"}, "name"),
        ({"split": "training"}, "split"),
        ({"images": 0}, "images"),
        ({"images": "many"}, "images"),
        ({"size": 2.5}, "size"),
        ({"size": 4}, "size"),
        ({"seed": -1}, "seed"),
        ({"path": "/tmp"}, "path"),
        ({"num_classes": 10}, "num_classes"),
        ({"name": "digits", "images": 1201}, "images"),
        ({"name": "photos", "size": 5000}, "size"),
    ],
)
def test_wrong_arguments_are_named(arguments, word):
    with pytest.raises(InputError, match=rf"^.*{word}") as caught:
        data.load(**({"name": "glyphs"} | arguments))
    assert "\n" not in str(caught.value)


def test_missing_wheels_are_named(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    for name, wheel in (("digits", "scikit-learn"), ("photos", "scikit-image"), ("glyphs", "matplotlib")):
        for value in vars(importlib.import_module(f"vitq.data.{name}")).values():
            if hasattr(value, "cache_clear"):
                value.cache_clear()
        with pytest.raises(MissingError, match=wheel):
            data.load(name)
    monkeypatch.delenv("VITQ_IMAGENET", raising=False)
    assert (data.names()["found"] != "found").all()


def test_the_table_of_sets_needs_no_generation(own_cache, monkeypatch):
    monkeypatch.delenv("VITQ_IMAGENET", raising=False)
    table = data.names()
    assert list(table.index) == list(data.NAMES)
    assert (table["found"] == "found").sum() == 3 and "VITQ_IMAGENET" in table.loc["imagenet", "found"]
    assert not own_cache.exists()


def test_importing_costs_nothing_heavy():
    code = (
        "import sys, torch; before = set(sys.modules); import vitq.data, vitq.zoo; "
        "print({name.partition('.')[0] for name in set(sys.modules) - before})"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "{'vitq'}"
