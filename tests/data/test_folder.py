"""Image folders: what is read, in which order, with which randomness, and what each damaged layout is told."""

import pytest
import torch
from PIL import Image

from vitq import data
from vitq.errors import InputError, MissingError

CLASSES, EACH = ("n01", "n02", "n10"), 4


@pytest.fixture
def folder(tmp_path):
    """Three classes of four images in train and val; the colour tells class and number."""
    for split in ("train", "val"):
        for c, name in enumerate(CLASSES):
            (tmp_path / split / name).mkdir(parents=True)
            for i in range(EACH):
                image = Image.linear_gradient("L").resize((48, 40)).convert("RGB")
                image.paste((80 * c, 60 * i, 200 if split == "val" else 0), (8, 8, 40, 32))
                image.save(tmp_path / split / name / f"{i}.jpeg")
    return tmp_path


def load(folder, split="val", **more):
    return data.load("imagenet", split, path=folder, **({"size": 32} | more))


def everything(dataset, **options):
    return list(data.batches(dataset, 4, **({"workers": 0} | options)))


def same(one, two):
    return len(one) == len(two) and all(a.equal(c) and b.equal(d) for (a, b), (c, d) in zip(one, two, strict=True))


def test_evaluation_reads_every_image_in_order(folder):
    dataset = load(folder)
    batches = everything(dataset)
    assert torch.cat([labels for _, labels in batches]).tolist() == [0] * 4 + [1] * 4 + [2] * 4
    assert batches[0][0].shape == (4, 3, 32, 32) and batches[0][0].dtype == torch.float32
    assert dataset.num_classes == 3 and dataset.classes == CLASSES and len(dataset) == 12
    image, label = dataset[5]
    assert label == 1 and image.equal(batches[1][0][1])
    assert dataset.labels.tolist() == [0] * 4 + [1] * 4 + [2] * 4


def test_normalisation_is_that_of_the_set(folder):
    dataset = load(folder)
    raw = dataset.normalized_for((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))[5][0]
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (dataset.mean, dataset.std))
    assert raw.min() >= 0 and raw.max() <= 1 and torch.allclose((raw - mean) / std, dataset[5][0], atol=1e-5)


def test_preprocessing_follows_the_model(folder):
    import timm

    model = timm.create_model("test_efficientnet", pretrained_cfg_overlay={"crop_pct": 0.5, "mean": (0.1, 0.2, 0.3)})
    dataset, fitted = load(folder), load(folder).for_model(model)
    assert (fitted.mean, fitted.crop_pct, fitted.size) == ((0.1, 0.2, 0.3), 0.5, 32)
    assert not fitted[0][0].equal(dataset[0][0])
    assert dataset.for_model(torch.nn.Identity()) == dataset


def test_hidden_folders_are_no_classes(folder):
    (folder / "val" / ".cache").mkdir()
    assert load(folder).classes == CLASSES


def test_training_batches_do_not_depend_on_who_reads_them(folder):
    dataset = load(folder, "train")
    first = everything(dataset, train=True, seed=1, epoch=2)
    assert same(first, everything(dataset, train=True, seed=1, epoch=2, workers=2))
    assert same(first[1:], everything(dataset, train=True, seed=1, epoch=2, start=1))
    assert not same(first, everything(dataset, train=True, seed=1, epoch=3))
    halves = [everything(dataset, train=True, seed=1, epoch=2, part=(i, 2)) for i in range(2)]
    for number, (images, labels) in enumerate(first):
        assert torch.cat([half[number][0] for half in halves]).equal(images)
        assert torch.cat([half[number][1] for half in halves]).equal(labels)


def test_training_crops_vary_and_leave_the_random_state_alone(folder):
    dataset = load(folder, "train")
    torch.manual_seed(0)
    before = torch.get_rng_state()
    crops = [batch[0].sum() for epoch in range(2) for batch in everything(dataset, train=True, epoch=epoch)]
    assert torch.get_rng_state().equal(before) and len({float(c) for c in crops}) == len(crops)
    plain = {float(images.sum()) for images, _ in data.batches(dataset, 1, workers=0)}
    assert {float(i.sum()) for i, _ in data.batches(dataset, 1, train=True, augment=False, workers=0)} == plain


def test_val_and_test_are_the_folder_val(folder):
    assert load(folder, "val").samples == load(folder, "test").samples != load(folder, "train").samples


def test_a_smaller_set_is_spread_over_the_classes(folder):
    dataset = load(folder, images=6)
    assert dataset.labels.tolist() == [0, 0, 1, 1, 2, 2] and dataset.version != load(folder).version
    with pytest.raises(InputError, match="images must lie between 1 and the 12"):
        load(folder, images=13)


def test_the_version_follows_names_and_sizes(folder):
    before = load(folder).version
    assert load(folder).version == before
    (folder / "val" / "n02" / "1.jpeg").rename(folder / "val" / "n02" / "9.jpeg")
    renamed = load(folder).version
    with open(folder / "val" / "n02" / "2.jpeg", "ab") as file:
        file.write(b"more")
    assert len({before, renamed, load(folder).version}) == 3


def test_the_variable_names_the_folder(folder, monkeypatch):
    monkeypatch.setenv("VITQ_IMAGENET", str(folder))
    assert len(data.load("imagenet", "val")) == 12
    assert data.names().loc["imagenet", "found"] == "found"
    monkeypatch.delenv("VITQ_IMAGENET")
    with pytest.raises(MissingError, match="VITQ_IMAGENET"):
        data.load("imagenet", "val")


@pytest.mark.parametrize("gone", ["", "train", "val"])
def test_a_missing_folder_is_named(folder, gone):
    path = folder / "nothing" if not gone else folder
    if gone:
        (folder / gone).rename(folder / "away")
    with pytest.raises(MissingError, match=f"no folder {path / gone}"):
        load(path)


def test_an_empty_set_and_an_empty_class_are_named(folder):
    for file in (folder / "train" / "n02").iterdir():
        file.unlink()
    with pytest.raises(InputError, match=r"train/n02 holds no image$"):
        load(folder, "train")
    assert len(load(folder, "val")) == 12
    for split in ("train", "val"):
        (folder / split).rename(folder / f"old {split}")
        (folder / split).mkdir()
    with pytest.raises(InputError, match="train is empty"):
        load(folder)


def test_class_counts_are_checked(folder):
    with pytest.raises(InputError, match="holds 3 class folders, expected 1000"):
        load(folder, num_classes=1000)
    (folder / "val" / "n10").rename(folder / "val" / "n11")
    with pytest.raises(InputError, match="train/n10 has no counterpart"):
        load(folder)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("content", ["truncated", "empty", "text"])
def test_a_damaged_image_is_named_in_one_line(folder, workers, content):
    file = folder / "train" / "n02" / "3.jpeg"
    whole = file.read_bytes()
    file.write_bytes({"truncated": whole[: len(whole) // 2], "empty": b"", "text": b"no image"}[content])
    for train in (True, False):
        with pytest.raises(InputError, match=r"n02/3\.jpeg is damaged") as caught:
            everything(load(folder, "train"), train=train, workers=workers)
        assert "\n" not in str(caught.value)


def test_grey_and_transparent_images_become_rgb(folder):
    Image.new("L", (30, 30), 9).save(folder / "val" / "n01" / "0.jpeg")
    Image.new("RGBA", (30, 30), (1, 2, 3, 4)).save(folder / "val" / "n01" / "1.png")
    assert everything(load(folder))[0][0].shape == (4, 3, 32, 32)
