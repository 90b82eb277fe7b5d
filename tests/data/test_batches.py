"""Batches of in-memory sets: deterministic in (seed, epoch), resumable by `start`, divisible among processes."""

import pytest
import torch

from vitq import data
from vitq.data.batches import shifted
from vitq.errors import InputError


@pytest.fixture
def dataset():
    return data.load("glyphs", "train", images=205)


def everything(batches):
    return [(images.clone(), labels.clone()) for images, labels in batches]


def same(one, two):
    return len(one) == len(two) and all(a.equal(c) and b.equal(d) for (a, b), (c, d) in zip(one, two, strict=True))


def test_iterating_again_gives_the_same_and_other_seeds_and_epochs_do_not(dataset):
    batches = data.batches(dataset, 32, train=True, seed=3, epoch=5)
    first = everything(batches)
    assert same(first, everything(batches))
    assert same(first, everything(data.batches(dataset, 32, train=True, seed=3, epoch=5)))
    assert not same(first, everything(data.batches(dataset, 32, train=True, seed=4, epoch=5)))
    batches.set_epoch(6)
    assert not same(first, everything(batches))
    batches.set_epoch(5)
    assert same(first, everything(batches))


@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize("start", [0, 1, 4, 6])
def test_start_skips_batches_and_reads_none_of_them(dataset, train, start):
    whole = everything(data.batches(dataset, 32, train=train, epoch=2))
    rest = data.batches(dataset, 32, train=train, epoch=2, start=start)
    assert len(rest) == len(whole) - start and same(everything(rest), whole[start:])
    rest.set_epoch(3)
    assert same(everything(rest), everything(data.batches(dataset, 32, train=train, epoch=3)))


def test_training_takes_each_image_at_most_once_and_evaluation_each_once_in_order(dataset):
    numbered = data.ImageSet(**(vars(dataset) | {"labels": torch.arange(205)}))
    train = torch.cat([labels for _, labels in data.batches(numbered, 32, train=True)])
    assert len(train) == 6 * 32 and len(train.unique()) == len(train) and not train.equal(train.sort()[0])
    test = torch.cat([labels for _, labels in data.batches(numbered, 32)])
    assert test.equal(torch.arange(205))


def test_images_keep_their_labels(dataset):
    lookup = {row.numpy().tobytes(): int(label) for row, label in zip(dataset.images, dataset.labels, strict=True)}
    plain = dataset.normalized_for((0.0, 0.0, 0.0), (1 / 255,) * 3)
    for images, labels in data.batches(plain, 50, train=True, augment=False):
        assert [lookup[row.round().to(torch.uint8).numpy().tobytes()] for row in images] == labels.tolist()


@pytest.mark.parametrize("train", [True, False])
def test_parts_in_order_make_up_the_batch(dataset, train):
    whole = everything(data.batches(dataset, 32, train=train, seed=1))
    parts = [everything(data.batches(dataset, 32, train=train, seed=1, part=(i, 4))) for i in range(4)]
    for number, (images, labels) in enumerate(whole):
        assert torch.cat([part[number][0] for part in parts]).equal(images)
        assert torch.cat([part[number][1] for part in parts]).equal(labels)


def test_shift_moves_pixels_and_repeats_the_border():
    image = torch.arange(12).view(1, 1, 3, 4)
    moved = shifted(image.repeat(2, 1, 1, 1), torch.tensor([[1, 0], [0, -2]]))
    assert moved[0, 0].tolist() == [[4, 5, 6, 7], [8, 9, 10, 11], [8, 9, 10, 11]]
    assert moved[1, 0].tolist() == [[0, 0, 0, 1], [4, 4, 4, 5], [8, 8, 8, 9]]


def test_augmentation_is_for_training_and_can_be_changed(dataset):
    def first(**options):
        return next(iter(data.batches(dataset, 205, **options)))[0]

    plain = first(train=True, augment=False)
    assert not first(train=True).equal(plain) and first(train=True, augment=2).equal(first(train=True))
    assert first(augment=2).equal(first())
    assert sorted(row.sum().item() for row in plain) == pytest.approx(sorted(row.sum().item() for row in first()))


def test_the_global_random_state_is_left_alone(dataset):
    torch.manual_seed(0)
    before = torch.get_rng_state()
    everything(data.batches(dataset, 32, train=True))
    assert torch.get_rng_state().equal(before)


@pytest.mark.parametrize(
    "wrong",
    [
        {"batch_size": 0},
        {"batch_size": 2.5},
        {"batch_size": 206, "train": True},
        {"start": 8},
        {"start": -1},
        {"seed": "a"},
        {"epoch": -1},
        {"augment": 32},
        {"augment": -1},
        {"part": (2, 2)},
        {"part": (0, 3), "train": True},
    ],
)
def test_wrong_arguments_are_named(dataset, wrong):
    with pytest.raises(InputError, match=next(iter(wrong))):
        data.batches(dataset, **({"batch_size": 32} | wrong))


def test_other_things_than_data_sets_are_refused():
    with pytest.raises(InputError, match="dataset"):
        data.batches([1, 2, 3], 2)
