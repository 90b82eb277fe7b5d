"""Augmentation of image folders: timm's pieces, deterministic, shared by ranks, resumable, and off by default."""

import numpy as np
import pytest
import torch
from PIL import Image

from vitq import data
from vitq.data import augmentation
from vitq.data.augmentation import Augmentation
from vitq.errors import InputError

ALL = {"auto_augment": "rand-m9-mstd0.5-inc1", "erasing": 0.25, "interpolation": "random", "mixup": 0.8, "cutmix": 1.0,
       "repeats": 3}


@pytest.fixture(scope="module")
def folder(tmp_path_factory, draw_folder):
    return draw_folder(tmp_path_factory.mktemp("images"), (8, 8, 8), (8, 8, 8), size=(40, 48), grow=0, suffix="png")


@pytest.fixture
def read(folder):
    def reading(section=None, batch=8, **options):
        import dataclasses

        dataset = data.load("imagenet", "train", path=folder, size=32)
        if section is not None:
            dataset = dataclasses.replace(dataset, augmentation=Augmentation.from_dict(section))
        return list(data.batches(dataset, batch, **({"train": True, "workers": 0, "seed": 5} | options)))
    return reading


def same(one, two):
    return len(one) == len(two) and all(torch.equal(a, b) for x, y in zip(one, two, strict=True)
                                        for a, b in zip(x, y, strict=True))


def test_defaults_are_what_a_folder_has_without_the_section(read):
    assert same(read(), read({}))
    assert not same(read(), read({"hflip": 1.0}))


@pytest.mark.parametrize("section", [ALL, {"mixup": 0.8}, {"cutmix": 1.0}, {"repeats": 2},
                                     {"auto_augment": "rand-m9-mstd0.5-inc1"}, {"erasing": 1.0}])
def test_batches_depend_on_seed_epoch_and_position_alone(read, section):
    whole = read(section, epoch=2)
    state = torch.get_rng_state(), np.random.get_state()[1].copy()
    assert same(whole, read(section, epoch=2, workers=2))
    assert same(whole[1:], read(section, epoch=2, start=1))
    assert not same(whole, read(section, epoch=3)) and not same(whole, read(section, epoch=2, seed=6))
    assert not same(whole, read(epoch=2))
    assert torch.equal(state[0], torch.get_rng_state()) and (state[1] == np.random.get_state()[1]).all()


@pytest.mark.parametrize("section", [ALL, {"mixup": 0.8}, {"repeats": 3}])
@pytest.mark.parametrize("count", [2, 4])
def test_parts_of_ranks_hold_the_images_of_the_whole_batch(read, section, count):
    whole = read(section, epoch=1)
    parts = [read(section, epoch=1, part=(i, count)) for i in range(count)]
    for number, (images, labels) in enumerate(whole):
        shared = [torch.cat([part[number][i] for part in parts]) for i in (0, 1)]
        rank = [torch.cat([a.flatten(1), b.reshape(len(a), -1)], 1).sum(1).argsort() for a, b in
                ((images, labels), shared)]
        assert torch.allclose(images[rank[0]], shared[0][rank[1]]) and labels[rank[0]].equal(shared[1][rank[1]])


def test_mixup_blends_an_image_and_its_label_with_those_of_its_partner(read):
    plain, mixed = read({}), read({"mixup": 0.8, "mixup_smoothing": 0.0})
    for (images, labels), (blended, targets) in zip(plain, mixed, strict=True):
        hard = torch.eye(3)[labels]
        difference = (images.flip(0) - images).flatten()
        share = ((blended - images).flatten() @ difference / (difference @ difference)).item()
        assert 0 < share < 1
        assert torch.allclose(blended, images + share * (images.flip(0) - images), atol=1e-5)
        assert torch.allclose(targets, hard + share * (hard.flip(0) - hard), atol=1e-5)


def test_each_batch_of_each_epoch_is_mixed_by_another_amount(read):
    smoothed = {"mixup": 0.8, "mixup_smoothing": 0.0}
    targets = [labels for epoch in range(3) for _, labels in read(smoothed, epoch=epoch)]
    shares = {round(value, 5) for labels in targets for value in labels.flatten().tolist() if 0 < value < 0.5}
    assert len(shares) == 9, "three epochs of three batches"


def test_cutmix_pastes_a_rectangle_and_shares_the_label_by_its_area(read):
    plain, mixed = read({}), read({"cutmix": 1.0, "mixup_smoothing": 0.1})
    for (images, labels), (pasted, targets) in zip(plain, mixed, strict=True):
        foreign = (pasted != images).any(1)
        assert torch.equal(torch.where(foreign[:, None], images.flip(0), images), pasted)
        smooth = torch.eye(3)[labels] * 0.9 + 0.1 / 3
        share = foreign[0].double().mean().item()
        assert torch.allclose(targets, smooth + share * (smooth.flip(0) - smooth), atol=0.01)
        assert targets.sum(1).allclose(torch.ones(8))


def test_repeats_follow_each_other_with_other_crops_and_leave_the_length(read):
    plain, repeated = read({}, batch=6), read({"repeats": 3}, batch=6)
    assert len(plain) == len(repeated) == 4
    for images, labels in repeated:
        assert labels.view(2, 3).eq(labels.view(2, 3)[:, :1]).all()
        first = images.view(2, 3, -1)
        assert not torch.equal(first[:, 0], first[:, 1]) and not torch.equal(first[:, 1], first[:, 2])


def test_erasing_puts_noise_into_a_rectangle(read):
    plain, erased = read({}), read({"erasing": 1.0})
    shares = [(a != b).any(1).double().mean((1, 2)) for (a, _), (b, _) in zip(plain, erased, strict=True)]
    assert torch.cat(shares).min() > 0.01 and torch.cat(shares).max() < 0.5


def test_evaluation_and_unaugmented_training_stay_as_they_are(read):
    assert same(read(train=False), read(ALL, train=False))
    assert same(read(augment=False), read(ALL, augment=False))


@pytest.mark.parametrize("section, message", [
    ({"mixup": -1}, "mixup=-1"), ({"cutmix": float("nan")}, "cutmix=nan"), ({"repeats": 0}, "repeats=0"),
    ({"repeats": 1.5}, "repeats=1.5: expected a whole number"), ({"erasing": 1.5}, "erasing=1.5"),
    ({"hflip": -0.1}, "hflip=-0.1"), ({"scale": [1.0, 0.08]}, r"scale=\[1.0, 0.08\]"), ({"scale": [0.5]}, "scale="),
    ({"scale": ["a", 1]}, "scale="), ({"auto_augment": "rnd-m9"}, "auto_augment='rnd-m9'"),
    ({"auto_augment": "rand-x9"}, "auto_augment='rand-x9'"), ({"interpolation": "nearest"}, "interpolation='nearest'"),
    ({"mixup_smoothing": 1.0}, "mixup_smoothing=1.0"), ({"mixp": 0.1}, "unknown key 'mixp'; did you mean 'mixup'"),
])
def test_a_wrong_value_is_named(section, message):
    with pytest.raises(InputError, match=f"data.augmentation.*{message}"):
        Augmentation.from_dict(section)


def test_posterizing_to_nothing_gives_black_and_not_a_damaged_image(read):
    section = {"auto_augment": "rand-m10-n12-p1-inc1"}  # full magnitude: 0 bits whenever posterizing is drawn
    assert len(read(section)) == 3
    image = Image.new("RGB", (4, 4), (200, 100, 50))
    assert augmentation._posterize(image, 0).getextrema() == ((0, 0),) * 3
    assert augmentation._posterize(image, 1).getpixel((0, 0)) == (128, 0, 0)
    assert augmentation._posterize(image, 8) is image


@pytest.mark.parametrize("policy", ["rand-m9-mstd0.5-inc1", "rand-m9-n3-p0.5-mmax20", "original-mstd0.5", "v0r"])
def test_policies_that_are_allowed_are_known_to_timm(read, policy):
    assert len(read({"auto_augment": policy})) == 3


def test_a_batch_that_cannot_be_paired_is_refused(read):
    with pytest.raises(InputError, match="batch_size=6: .*multiple of 4"):
        read({"mixup": 0.8}, batch=6, part=(0, 2))
