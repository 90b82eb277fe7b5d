"""Making a store: the same bytes whoever makes it and however often it is killed; mismatches are refused."""

import shutil
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
import torch
from PIL import Image

from vitq import data
from vitq.data.soft_labels import CropSettings, LabelFormat, SoftLabelStore, draw_crops, making, writing
from vitq.data.soft_labels.crops import crop_resize, pixel_boxes
from vitq.errors import InputError, MissingError

SETTINGS = CropSettings(crops=6, batch_size=24)


def make(out, dataset, teacher, settings=SETTINGS, **more):
    return making.make(out, dataset, teacher, settings, progress=False, **more)


def content(folder):
    return {file.name: file.read_bytes() for file in sorted(folder.iterdir()) if file.name != ".lock"}


@pytest.fixture
def big(dataset):
    """400 images in 31 shards of 13, groups of 4."""
    import dataclasses

    images = dataset.images.repeat(11, 1, 1, 1)[:400]
    images[:, 2] = torch.arange(400, dtype=torch.uint8)[:, None, None]
    return dataclasses.replace(dataset, images=images, labels=torch.zeros(400, dtype=torch.int64))


def test_labels_are_what_the_teacher_says_of_the_stored_crop(tmp_path, dataset, teacher):
    store = make(tmp_path / "a", dataset, teacher)
    for row in (0, 5, 36):
        found = store.image(row)
        boxes = pixel_boxes(found.boxes, 16, 16)
        wanted, flips = draw_crops(6, 16, 16, 0, row, SETTINGS.scale)
        assert (boxes == wanted).all() and (found.flips[0] == flips).all()
        pixels = dataset.normalize(dataset.images[[row]])
        crops = crop_resize(pixels, torch.from_numpy(boxes), torch.from_numpy(found.flips), 16)[0]
        probabilities = teacher(crops).softmax(-1)
        indices, kept = LabelFormat().compress(probabilities)
        assert (indices.numpy() == found.indices[0]).all()
        assert np.allclose(kept.float().detach().numpy(), found.probabilities[0], rtol=2e-3)


def test_groups_and_single_images_get_the_same_labels(tmp_path, dataset, teacher):
    """Batches of 24 crops hold four images, those of 4 a part of one."""
    one = make(tmp_path / "a", dataset, teacher).image(9)
    two = make(tmp_path / "b", dataset, teacher, CropSettings(crops=6, batch_size=4)).image(9)
    assert (one.boxes == two.boxes).all() and np.allclose(one.probabilities, two.probabilities, rtol=2e-3)


def test_parts_join_to_the_same_bytes(tmp_path, big, teacher):
    whole = make(tmp_path / "whole", big, teacher)
    assert isinstance(whole, SoftLabelStore) and len(whole) == 400
    for index in (2, 0, 1):
        last = make(tmp_path / "parts", big, teacher, part=(index, 3))
    assert content(tmp_path / "parts") == content(tmp_path / "whole") and isinstance(last, SoftLabelStore)


def test_two_at_once_share_the_work(tmp_path, big, teacher):
    make(tmp_path / "whole", big, teacher)
    threads = [threading.Thread(target=make, args=(tmp_path / "both", big, teacher)) for _ in range(2)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    assert content(tmp_path / "both") == content(tmp_path / "whole")


class Interrupted(Exception):
    pass


@pytest.mark.parametrize("junk", [b"", b"half a block", bytes(1000)], ids=["clean", "torn", "zeros"])
def test_an_interrupted_store_goes_on_where_it_was(tmp_path, big, teacher, monkeypatch, junk):
    make(tmp_path / "whole", big, teacher)
    out, labelled, append = tmp_path / "labels", [], writing.ShardWriter.append

    def stopping(writer, *parts):
        append(writer, *parts)
        labelled.append(len(parts[0]))
        if len(labelled) % 7 == 0:
            raise Interrupted

    monkeypatch.setattr(writing.ShardWriter, "append", stopping)
    while not (out / "labels-00030.bin").is_file():
        try:
            make(out, big, teacher)
        except Interrupted:
            assert SoftLabelStore(out, partial=True).corrupt() == []
            for part in out.glob("*.part"):
                with open(part, "ab") as file:
                    file.write(junk)
    assert len(labelled) > 70 and sum(labelled) == 400  # no image was labelled twice
    assert content(out) == content(tmp_path / "whole")


@pytest.mark.slow
def test_a_killed_process_loses_nothing(tmp_path):
    command = [sys.executable, "-m", "vitq.cli", "labels", "make", "--teacher", "vit_micro", "--data", "glyphs",
               "--images", "500", "--crops", "4", "--batch-size", "64", "--out"]  # fmt: skip
    out, header = tmp_path / "killed", None
    process = subprocess.Popen([*command, str(out)], stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    while process.poll() is None and not list(out.glob("*.bin")):
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    header = SoftLabelStore(out, partial=True).header
    before = {file.name: file.read_bytes() for file in out.glob("*.bin")}
    assert 0 < len(before) < header.shards
    subprocess.run([*command, str(out)], check=True, capture_output=True)
    assert all((out / name).read_bytes() == old for name, old in before.items())
    subprocess.run([*command, str(tmp_path / "two"), "--processes", "2"], check=True, capture_output=True)
    assert content(out) == content(tmp_path / "two")
    assert SoftLabelStore(out).corrupt() == []


def test_a_finished_store_is_not_made_again(tmp_path, dataset, teacher, monkeypatch):
    make(tmp_path / "a", dataset, teacher)
    monkeypatch.setattr(making.Labeller, "__call__", lambda *_: 1 / 0)
    assert len(make(tmp_path / "a", dataset, teacher)) == 37


def test_a_deleted_shard_is_made_again_as_it_was(tmp_path, dataset, teacher):
    make(tmp_path / "a", dataset, teacher)
    before = content(tmp_path / "a")
    (tmp_path / "a" / "labels-00004.bin").unlink()
    make(tmp_path / "a", dataset, teacher)
    assert content(tmp_path / "a") == before


def other_weights(dataset, teacher):
    teacher.head.bias.data += 1
    return dataset, teacher, SETTINGS


def other_images(dataset, teacher):
    return dataset.subset(30), teacher, SETTINGS


@pytest.mark.parametrize("change, named", [
    (other_weights, "weights"),
    (other_images, "images 37, not 30"),
    (lambda d, t: (d, t, CropSettings(crops=7, batch_size=24)), "crops 6, not 7"),
    (lambda d, t: (d, t, CropSettings(crops=6, batch_size=24, seed=1)), "seed 0, not 1"),
    (lambda d, t: (d, t, CropSettings(crops=6, batch_size=24, label=LabelFormat("marginal_renorm", 5))), "kind"),
])  # fmt: skip
def test_other_arguments_do_not_go_on_with_a_store(tmp_path, dataset, teacher, change, named):
    make(tmp_path / "a", dataset, teacher)
    before = content(tmp_path / "a")
    with pytest.raises(InputError, match=f"holds labels with {named}") as caught:
        make(tmp_path / "a", *change(dataset, teacher))
    assert "\n" not in str(caught.value) and content(tmp_path / "a") == before


def test_nan_is_refused_with_the_image(tmp_path, dataset, teacher):
    teacher.forward = lambda images: torch.where(images.mean((1, 2, 3))[:, None] > 0.2, torch.nan, torch.zeros(1, 12))
    with pytest.raises(InputError, match=r"teacher teacher gives NaN or infinity for image \d+;"):
        make(tmp_path / "a", dataset, teacher)


def test_a_full_disk_is_said_before_the_work(tmp_path, dataset, teacher, monkeypatch):
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    monkeypatch.setattr(making.Labeller, "__call__", lambda *_: 1 / 0)
    with pytest.raises(MissingError, match="GB are still to be written"):
        make(tmp_path / "a", dataset, teacher)


def test_a_disk_that_fills_up_keeps_what_was_written(tmp_path, dataset, teacher, monkeypatch):
    make(tmp_path / "whole", dataset, teacher)
    out, open_shard = tmp_path / "labels", writing.open_shard

    class FullDisk:
        def __init__(self, file):
            self.file = file

        def __getattr__(self, name):
            return getattr(self.file, name)

        def __enter__(self):
            return self.file.__enter__()

        def __exit__(self, *exc):
            return self.file.__exit__(*exc)

        def write(self, data):
            if self.file.tell():
                raise OSError(28, "No space left on device")
            return self.file.write(data[:300])  # a part of what was asked, as the system may

    def limited(*arguments):
        if writer := open_shard(*arguments):
            writer.file = FullDisk(writer.file)
        return writer

    with monkeypatch.context() as patch:
        patch.setattr(writing, "open_shard", limited)
        with pytest.raises(MissingError, match=r"labels-00000\.part: no space left on the device;") as caught:
            make(out, dataset, teacher)
    assert "\n" not in str(caught.value)
    make(out, dataset, teacher)
    assert content(out) == content(tmp_path / "whole")


@pytest.mark.parametrize("given", [{"crops": 0}, {"scale": (0.5, 0.1)}, {"flip": 2}, {"precision": "fp8"},
                                   {"ratio": (0, 1)}, {"batch_size": 0}, {"seed": -1}, {"size": 0}])  # fmt: skip
def test_wrong_settings_are_refused(given):
    with pytest.raises(InputError, match=next(iter(given))):
        CropSettings(**given)


@pytest.fixture
def folder(tmp_path):
    rng = np.random.default_rng(0)
    for split in ("train", "val"):
        for name in ("n01", "n02"):
            (tmp_path / "images" / split / name).mkdir(parents=True)
            for i, size in enumerate([(30, 20), (25, 40), (33, 33)]):
                pixels = rng.integers(0, 256, (size[1], size[0], 3), np.uint8)
                Image.fromarray(pixels).save(tmp_path / "images" / split / name / f"{i}.png")
    return tmp_path / "images"


def test_folders_of_images_of_any_size(tmp_path, folder, teacher):
    dataset = data.load("imagenet", "train", path=folder)
    store = make(tmp_path / "a", dataset, teacher, CropSettings(crops=4, batch_size=9))
    make(tmp_path / "b", dataset, teacher, CropSettings(crops=4, batch_size=9), workers=2)
    assert content(tmp_path / "a") == content(tmp_path / "b")
    pixels = torch.from_numpy(np.array(Image.open(dataset.samples[4][0]))).permute(2, 0, 1)[None]
    found = store.image(4)
    boxes = torch.from_numpy(pixel_boxes(found.boxes, *pixels.shape[-2:]))
    crops = crop_resize((pixels / 255 - 0.5) / 0.25, boxes, torch.from_numpy(found.flips), 16)[0]
    assert (teacher(crops).argmax(-1).numpy() == found.indices[0, :, 0]).all()
    file = tmp_path / "a" / "labels-00004.bin"
    file.write_bytes(bytes(file.stat().st_size))
    assert "image 4 (n02/1.png) is corrupt" in SoftLabelStore(tmp_path / "a").corrupt()[0]


def test_a_damaged_image_is_named(tmp_path, folder, teacher):
    (folder / "train" / "n02" / "1.png").write_bytes(b"no image")
    with pytest.raises(InputError, match=r"n02/1\.png is damaged"):
        make(tmp_path / "a", data.load("imagenet", "train", path=folder), teacher)
