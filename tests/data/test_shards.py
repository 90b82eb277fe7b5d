"""Tar shards give the images, the order and the randomness of the same images in class folders."""

import io
import tarfile

import pytest

from vitq import cli, data
from vitq.data import shards
from vitq.errors import InputError, MissingError


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("VITQ_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "shards"


@pytest.fixture
def both(tmp_path, draw_folder):
    """The same images as class folders and as shards of five images, in the same order."""
    folder = draw_folder(tmp_path / "folder", [5, 4, 4], [3, 2, 2])
    for split, word in (("train", "train"), ("val", "validation")):
        samples = data.load("imagenet", split, path=folder).samples
        for shard in range(0, len(samples), 5):
            pack(tmp_path / "shards" / f"set-{word}-{shard:04}.tar", samples[shard:shard + 5], shard)
    return folder, tmp_path / "shards"


def pack(tar, samples, first=0):
    tar.parent.mkdir(exist_ok=True)
    with tarfile.open(tar, "w") as content:
        for number, (file, label) in enumerate(samples, first):
            with open(file, "rb") as image:
                add(content, f"{number:06}.jpg", image.read())
            if label is not None:
                add(content, f"{number:06}.cls", str(label).encode())


def add(content, name, blob):
    info = tarfile.TarInfo(name)
    info.size = len(blob)
    content.addfile(info, io.BytesIO(blob))


def read(path, split="train", **options):
    dataset = data.load("imagenet", split, path=path, size=32)
    return list(data.batches(dataset, 4, **({"train": split == "train", "seed": 3, "epoch": 1} | options)))


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_are_those_of_the_folder(both, workers):
    folder, tars = both
    for split in ("train", "val"):
        one, two = (read(path, split, workers=workers) for path in (folder, tars))
        assert len(one) == len(two) and all(a.equal(c) and b.equal(d) for (a, b), (c, d) in zip(one, two, strict=True))
    later = read(tars, start=2, workers=0)
    assert later[0][0].equal(read(folder, workers=0)[2][0])


def test_it_is_a_set_like_any_other(both, cache):
    dataset = data.load("imagenet", "train", path=both[1], size=32, num_classes=3)
    assert (len(dataset), dataset.num_classes, dataset.labels.bincount().tolist()) == (13, 3, [5, 4, 4])
    assert len(dataset.subset(6)) == 6 and dataset.subset(6)[5][1] == 2
    assert len(list(cache.iterdir())) == 2
    assert data.load("imagenet", "train", path=both[1]).version == dataset.version
    assert data.load("imagenet", "val", path=both[1]).version != dataset.version


def test_the_index_is_made_again_for_other_shards_and_when_damaged(both, cache):
    first = data.load("imagenet", "train", path=both[1])
    for file in cache.iterdir():
        file.write_text("[")
    assert data.load("imagenet", "train", path=both[1]).samples == first.samples
    tar = sorted(both[1].glob("*train*"))[-1]
    pack(tar, data.load("imagenet", "train", path=both[0]).samples[5:])
    assert len(data.load("imagenet", "train", path=both[1])) == 18


def test_what_is_wrong_is_named(both, tmp_path, capsys):
    folder, tars = both
    files = data.load("imagenet", "val", path=folder).samples
    val = sorted(tars.glob("*validation*"))
    with pytest.raises(InputError, match="3 classes, expected 1000"):
        data.load("imagenet", "train", path=tars, num_classes=1000)
    pack(val[0], [(files[0][0], 7), *files[1:5]])
    with pytest.raises(InputError, match="class 7 of 0 to 2 is too high in val"):
        data.load("imagenet", "train", path=tars)
    pack(val[0], [(files[0][0], None)])
    with pytest.raises(InputError, match=r"000000.jpg has no label"):
        data.load("imagenet", "train", path=tars)
    val[0].write_bytes(sorted(tars.glob("*train*"))[0].read_bytes()[:20000])
    with pytest.raises(InputError, match=r"-validation-0000.tar is (damaged|cut off)"):
        data.load("imagenet", "train", path=tars)
    for tar in val:
        tar.unlink()
    with pytest.raises(MissingError, match="none of val"):
        data.load("imagenet", "train", path=tars)
    assert cli.main(["data", "check", "--data", "imagenet", "--path", str(tars)]) == 3
    assert "none of val" in capsys.readouterr().out


def test_names_and_labels_of_imagenet_have_to_agree():
    names = shards._imagenet()
    shards._check_names([(f"a.tar/{names[5]}_1.jpg", "a.tar", 0, 1, 5), ("a.tar/0001.jpg", "a.tar", 0, 1, 8)], 1000)
    with pytest.raises(InputError, match=f"label 6, but {names[5]} is class 5"):
        shards._check_names([(f"a.tar/{names[5]}_1.jpg", "a.tar", 0, 1, 6)], 1000)


def test_data_check_reads_shards(both, capsys):
    assert cli.main(["data", "check", "--data", "imagenet", "--path", str(both[1]), "--classes", "3"]) == 0
    said = capsys.readouterr().out
    assert "train: 3 classes, 13 images, 4 to 5 a class; 13 read" in said and "can be used" in said
