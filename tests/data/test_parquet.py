"""Parquet files of Hugging Face give the batches of the same images in class folders; timm's reader is stood in for."""

import sys
import types

import pytest

from vitq import cli, data
from vitq.errors import InputError, MissingError


@pytest.fixture
def both(tmp_path, draw_folder, monkeypatch):
    """The same images as class folders and behind a reader with the interface of timm's `ReaderHfds`."""
    folder, table = draw_folder(tmp_path / "folder", [5, 4, 4], [3, 2, 2]), tmp_path / "table"
    (table / "data").mkdir(parents=True)
    for name in ("train-00000-of-00001", "validation-00000-of-00001", "test-00000-of-00001"):
        (table / "data" / f"{name}.parquet").touch()

    class Reader:
        def __init__(self, name, split):
            assert name == f"hfds/{table}"
            self.split, self.class_to_idx = split, {"cat": 0, "dog": 1, "ant": 2}
            self.samples = data.load("imagenet", {"validation": "val"}.get(split, split), path=folder).samples

        def __getitem__(self, row):
            file, label = self.samples[row]
            return open(file, "rb"), label

        def iter_targets(self):
            return (label for _, label in self.samples)

    monkeypatch.setitem(sys.modules, "datasets", types.ModuleType("datasets"))
    monkeypatch.setattr("timm.data.create_reader", Reader)
    return folder, table


@pytest.mark.parametrize("split", ["train", "val"])
def test_batches_are_those_of_the_folder(both, split):
    one, two = ([*data.batches(data.load("imagenet", split, path=path, size=32), 4, train=split == "train", seed=3)]
                for path in both)
    assert len(one) == len(two) > 1
    assert all(a.equal(c) and b.equal(d) for (a, b), (c, d) in zip(one, two, strict=True))


def test_it_is_a_set_like_any_other(both, capsys):
    dataset = data.load("imagenet", "train", path=both[1], size=32, num_classes=3, images=6)
    assert len(dataset) == 6 and dataset.classes == ("cat", "dog", "ant") and dataset[5][1] == 2
    assert data.load("imagenet", "test", path=both[1]).reader.split == "validation", "the hub's test has no labels"
    assert cli.main(["data", "check", "--data", "imagenet", "--path", str(both[1]), "--classes", "3"]) == 0
    assert "train: 3 classes, 13 images, 4 to 5 a class; 13 read" in capsys.readouterr().out


def test_what_is_wrong_is_named(both, monkeypatch):
    with pytest.raises(InputError, match="3 classes, expected 1000"):
        data.load("imagenet", "train", path=both[1], num_classes=1000)
    for file in (both[1] / "data").glob("train*"):
        file.unlink()
    with pytest.raises(InputError, match=r"no parquet file train\*"):
        data.load("imagenet", "train", path=both[1])
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(MissingError, match="pip install datasets"):
        data.load("imagenet", "train", path=both[1])
