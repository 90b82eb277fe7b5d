"""Published label folders, read as they are and without running anything in them."""

import os
import pickle

import numpy as np
import pytest
import torch
from PIL import Image

from vitq import data
from vitq.data.soft_labels import FKDLabels, SoftLabelStore
from vitq.data.soft_labels.fkd import load
from vitq.errors import InputError, MissingError

CLASSES = ("n01", "n02", "n03", "n04", "n05", "n06", "n07")
CROPS = 8


@pytest.fixture
def dataset(tmp_path):
    for split in ("train", "val"):
        for c, name in enumerate(CLASSES):
            (tmp_path / split / name).mkdir(parents=True)
            Image.new("RGB", (24, 20), (30 * c, 0, 0)).save(tmp_path / split / name / f"{name}_7.JPEG")
    return data.load("imagenet", "train", path=tmp_path)


def entries(row, k=5):
    generator = torch.Generator().manual_seed(row)
    coords = torch.rand(CROPS, 4, generator=generator) / 2
    flip = torch.rand(CROPS, generator=generator) < 0.5
    values, indices = torch.randn(CROPS, len(CLASSES), generator=generator).softmax(-1).topk(k)
    return [coords, flip, torch.stack([indices.float(), values], 1)]


def torch_zip(parts, file):
    torch.save(parts, file)


def torch_legacy(parts, file):
    torch.save(parts, file, _use_new_zipfile_serialization=False)


def pickled_tensors(parts, file):
    file.write_bytes(pickle.dumps(parts))


def pickled_arrays(parts, file):
    file.write_bytes(pickle.dumps([part.numpy() for part in parts], protocol=2))


def torch_arrays(parts, file):
    torch.save([part.numpy() for part in parts], file)


def write(root, dataset, how=torch_zip, tail="imagenet/train", change=lambda parts: parts):
    for row, (file, _) in enumerate(dataset.samples):
        name = os.path.relpath(file, dataset.root).replace(".JPEG", ".tar")
        target = root / tail / name
        target.parent.mkdir(parents=True, exist_ok=True)
        how(change(entries(row)), target)
    return root


@pytest.mark.parametrize("tail", ["imagenet/train", "train", "."])
@pytest.mark.parametrize("how", [torch_zip, torch_legacy, pickled_tensors, pickled_arrays, torch_arrays])
def test_every_way_of_writing_gives_the_same_entries(tmp_path, dataset, how, tail):
    labels = load(write(tmp_path / "labels", dataset, how, tail), dataset)
    assert (len(labels), labels.crops, labels.num_classes, labels.label.top_k) == (7, CROPS, 7, 5)
    rows, crops = [4, 1], np.array([[3, 0, 7], [2, 2, 5]])
    found = labels.read(rows, crops)
    for i, row in enumerate(rows):
        coords, flip, label = (part.numpy()[crops[i]] for part in entries(row))
        assert (found.boxes[i] == coords).all() and (found.flips[i] == flip).all()
        assert (found.indices[i] == label[:, 0]).all() and (found.probabilities[i] == label[:, 1]).all()
    full = found.distributions(labels.label, 7)
    assert full.shape == (2, 3, 7) and torch.allclose(full.sum(-1), torch.ones(2, 3), atol=1e-6)


def test_hard_smoothing_and_renorm(tmp_path, dataset):
    hard = write(tmp_path / "hard", dataset, change=lambda p: [*p[:2], p[2][:, 0, 0]])
    smooth = write(tmp_path / "smooth", dataset, change=lambda p: [*p[:2], p[2][:, :, 0]])
    renorm = write(tmp_path / "marginal_renorm", dataset, change=lambda p: [*p[:2], p[2][:, :, :3]])
    found = {}
    for root, kind in ((hard, "hard"), (smooth, "smoothing"), (renorm, "marginal_renorm")):
        labels = FKDLabels(root, dataset)
        assert labels.label.kind == kind
        found[kind] = labels.read([3], [[0, 5]]).distributions(labels.label, 7)[0]
        assert torch.allclose(found[kind].sum(-1), torch.ones(2), atol=1e-6)
    wanted = entries(3)[2][[0, 5], 0, 0].long()
    assert all(part.argmax(-1).equal(wanted) for part in found.values())
    assert ((found["renorm" if "renorm" in found else "marginal_renorm"] > 0).sum(-1) == 3).all()


class Evil:
    def __reduce__(self):
        return os.system, ("touch /tmp/should-not-be-there",)


@pytest.mark.parametrize("how", [torch_zip, torch_legacy, pickled_tensors])
def test_code_in_a_label_file_is_refused_and_not_run(tmp_path, dataset, monkeypatch, how):
    ran = []
    root = write(tmp_path / "labels", dataset)
    how([Evil(), *entries(2)[1:]], root / "imagenet/train/n03/n03_7.tar")
    monkeypatch.setattr(os, "system", ran.append)
    labels = load(root, dataset)
    labels.read([1], [[0]])
    with pytest.raises(InputError, match=r"n03_7\.tar asks for \w+\.system: it holds more than arrays") as caught:
        labels.read([2], [[0]])
    assert not ran and "\n" not in str(caught.value)


def test_code_inside_the_bytes_of_a_pickled_tensor_is_not_run(tmp_path, dataset, monkeypatch):
    """A plain pickle of a tensor carries a second pickle as bytes."""
    import io

    ran, inner = [], io.BytesIO()
    torch.save(Evil(), inner)

    class Wrapped:
        def __reduce__(self):
            return torch.storage._load_from_bytes, (inner.getvalue(),)

    root = write(tmp_path / "labels", dataset)
    pickled_tensors([Wrapped(), *entries(2)[1:]], root / "imagenet/train/n03/n03_7.tar")
    monkeypatch.setattr(os, "system", ran.append)
    with pytest.raises(InputError, match=r"n03_7\.tar asks for \w+\.system"):
        load(root, dataset).read([2], [[0]])
    assert not ran


@pytest.mark.parametrize("parts, words", [
    (lambda p: p[:2], "no list of coords"),
    (lambda p: [p[0][:3], *p[1:]], "shapes"),
    (lambda p: [p[0] * torch.nan, *p[1:]], "NaN"),
    (lambda p: [*p[:2], p[2] + 7], "class"),
    (lambda p: [*p[:2], p[2][:, :, :3]], "labels of shape"),
    (lambda p: ["text", *p[1:]], "no array"),
])  # fmt: skip
def test_other_layouts_are_named(tmp_path, dataset, parts, words):
    root = write(tmp_path / "labels", dataset)
    torch_zip(parts(entries(2)), root / "imagenet/train/n03/n03_7.tar")
    with pytest.raises(InputError, match=rf"n03_7\.tar is no FKD soft label of this set: it holds .*{words}"):
        load(root, dataset).read([2], [[0]])


@pytest.mark.parametrize("content", [b"", b"text", "half"])
def test_damaged_files_are_named(tmp_path, dataset, content):
    root = write(tmp_path / "labels", dataset)
    file = root / "imagenet/train/n03/n03_7.tar"
    file.write_bytes(file.read_bytes()[:700] if content == "half" else content)
    with pytest.raises(InputError, match=r"n03_7\.tar is damaged or no file of arrays"):
        load(root, dataset).read([2], [[0]])


def test_what_is_missing_is_named(tmp_path, dataset):
    with pytest.raises(MissingError, match="holds no soft labels: no imagenet/train/n01/n01_7.tar"):
        load(tmp_path / "nothing", dataset)
    root = write(tmp_path / "labels", dataset)
    (root / "imagenet/train/n03/n03_7.tar").unlink()
    with pytest.raises(MissingError, match="n03_7.tar"):
        load(root, dataset).read([2], [[0]])


def test_sets_in_memory_have_no_fkd_labels(tmp_path):
    glyphs = data.load("glyphs", images=41)
    with pytest.raises(MissingError, match="holds no soft labels"):
        load(tmp_path, glyphs)
    with pytest.raises(InputError, match="belong to image folders, not to 'glyphs'"):
        FKDLabels(tmp_path, glyphs)


def test_load_tells_a_store_from_published_labels(tmp_path, dataset):
    from vitq.data.soft_labels import CropSettings, LabelFormat, make

    class Teacher(torch.nn.Module):
        pretrained_cfg = {"input_size": (3, 8, 8), "mean": (0.5,) * 3, "std": (0.5,) * 3, "crop_pct": 1,
                          "interpolation": "bilinear"}  # fmt: skip
        num_classes = 7

        def forward(self, images):
            return images.flatten(1)[:, :7]

    made = make(tmp_path / "made", dataset, Teacher(), CropSettings(2, LabelFormat(top_k=3)), progress=False)
    assert isinstance(load(tmp_path / "made", dataset), SoftLabelStore) and made.label.top_k == 3
