"""`vitq data check`: counts, what is wrong in one line each, and an exit status that a script can use."""

import json

import numpy as np
import pytest
from PIL import Image

from vitq import cli, data, data_check
from vitq.errors import InputError, MissingError

CLASSES = [f"n{1000 + 7 * i:08d}" for i in range(20)]


@pytest.fixture(scope="module")
def pixels():
    return np.random.default_rng(0).integers(0, 256, (40, 52, 3), dtype=np.uint8)


@pytest.fixture
def folder(tmp_path, pixels):
    """20 classes, of 1 to 5 training images, and 1 or 2 for validation."""
    root = tmp_path / "images"
    for split, counts in (("train", (1, 2, 3, 5)), ("val", (1, 2))):
        for i, name in enumerate(CLASSES):
            (root / split / name).mkdir(parents=True)
            for j in range(counts[i % len(counts)]):
                Image.fromarray(pixels).save(root / split / name / f"{name}_{j}.JPEG")
    return root


def call(capsys, *arguments):
    code = cli.main(["data", "check", "--data", "imagenet", *map(str, arguments)])
    return code, *capsys.readouterr()


def test_a_good_folder(folder, capsys):
    report = data_check.check(folder, classes=20)
    assert report.status == 0 and not report.errors and not report.warnings
    train, val = report.splits["train"], report.splits["val"]
    assert (train.classes, train.images, train.fewest, train.most) == (20, 55, 1, 5)
    assert (val.classes, val.images, val.read) == (20, 30, 30)
    assert len(data.load("imagenet", "train", path=folder)) == train.images, "counted as training counts"
    assert report.smallest[:2] == (52, 40)
    code, out, err = call(capsys, "--path", folder, "--classes", 20, "--sample", 7)
    assert code == 0 and err == "" and out.splitlines()[-1] == "can be used" and out.count(", 1 to ") == 2
    assert data_check.check(folder, 7, 20).splits["train"].read == 7


def test_kinds_of_images_are_counted(folder, pixels):
    place = folder / "train" / CLASSES[3]
    Image.fromarray(pixels).convert("L").save(place / f"{CLASSES[3]}_0.JPEG")
    Image.fromarray(pixels).convert("CMYK").save(place / f"{CLASSES[3]}_1.JPEG")
    Image.fromarray(pixels).convert("P").save(place / "x.png")
    exif = Image.Exif()
    exif[data_check.ORIENTATION] = 6
    Image.fromarray(pixels[:9]).save(place / f"{CLASSES[3]}_2.JPEG", exif=exif)
    (place / "notes.txt").write_text("not an image")
    report = data_check.check(folder, classes=20)
    assert (report.gray, report.cmyk, report.other_modes, report.rotated) == (1, 1, 1, 1)
    assert report.smallest == (52, 9, f"train/{CLASSES[3]}/{CLASSES[3]}_2.JPEG")
    assert report.status == 0 and len(report.warnings) == 2
    assert any("notes.txt" in line for line in report.warnings) and any("EXIF" in line for line in report.warnings)


def damage(folder, name, how):
    file = sorted((folder / "val" / name).iterdir())[0]
    file.write_bytes({"empty": b"", "text": b"no image", "cut": file.read_bytes()[:-400]}[how])
    return file


@pytest.mark.parametrize("how", ["empty", "text", "cut"])
def test_damaged_files_are_named(folder, how, capsys):
    file = damage(folder, CLASSES[2], how)
    code, out, _ = call(capsys, "--path", folder, "--classes", 20)
    (line,) = [line for line in out.splitlines() if line.startswith("error: ")]
    assert code == 2 and str(file) in line and "damaged" in line and out.splitlines()[-1] == "cannot be used"
    with pytest.raises(InputError, match="damaged"):
        list(data.batches(data.load("imagenet", "val", path=folder), 10, workers=0))


def test_many_faults_of_one_kind_are_a_few_lines(folder):
    for name in CLASSES[:9]:
        damage(folder, name, "empty")
    errors = data_check.check(folder, classes=20).errors
    assert len(errors) == data_check.SHOWN + 1 and errors[-1].startswith("4 more")


def test_classes_that_differ_are_named(folder):
    (folder / "train" / CLASSES[4]).rename(folder / "train" / "n00000001")
    report = data_check.check(folder, classes=20)
    assert report.status == 2 and len(report.errors) == 2
    assert f"{folder}/train/n00000001 has no counterpart" in report.errors[0]
    assert f"{folder}/val/{CLASSES[4]} has no counterpart" in report.errors[1]
    with pytest.raises(InputError, match="no counterpart"):
        data.load("imagenet", "train", path=folder)


def test_an_empty_class_and_a_wrong_number_of_classes(folder):
    for file in (folder / "val" / CLASSES[0]).iterdir():
        file.unlink()
    report = data_check.check(folder)
    assert report.status == 2 and len(report.errors) == 2
    assert "20 class folders, not 1,000" in report.errors[0] and "holds no image" in report.errors[1]


def test_names_that_tell_no_order_are_a_warning(folder):
    for split in ("train", "val"):
        for i, name in enumerate(CLASSES):
            (folder / split / name).rename(folder / split / str(i))
    report = data_check.check(folder, classes=20)
    (line,) = report.warnings
    assert report.status == 0 and "WordNet" in line and "class 0 is 0 and class 19 is 19" in line


@pytest.fixture
def imagenet(tmp_path, pixels):
    """ImageNet's 1,000 class folders, one tiny image each."""
    Image.fromarray(pixels[:4, :4]).save(tmp_path / "one.JPEG")
    for split in ("train", "val"):
        for name in data_check._imagenet():
            (tmp_path / "i" / split / name).mkdir(parents=True)
            (tmp_path / "i" / split / name / "a.JPEG").hardlink_to(tmp_path / "one.JPEG")
    return tmp_path / "i"


def test_the_1000_classes_are_compared_with_imagenets(imagenet):
    report = data_check.check(imagenet, 5)
    assert report.status == 0 and [line.split(" holds")[0] for line in report.warnings] == ["train", "val"]
    for split in ("train", "val"):
        (imagenet / split / "n02123045").rename(imagenet / split / "n02123046")
    (line,) = data_check.check(imagenet, 5).errors
    assert "n02123046 is none of ImageNet's" in line


def test_what_is_missing_has_status_3(folder, tmp_path, capsys, monkeypatch):
    monkeypatch.delenv("VITQ_IMAGENET", raising=False)
    code, out, err = call(capsys)
    assert code == 3 and "--path" in err and err.count("\n") == 1
    code, out, _ = call(capsys, "--path", tmp_path / "absent")
    assert code == 3 and "absent" in out.splitlines()[0]
    (folder / "val").rename(folder / "validation")
    code, out, _ = call(capsys, "--path", folder, "--json")
    assert code == 3 and json.loads(out)["status"] == 3 and "no folder" in json.loads(out)["errors"][0]
    with pytest.raises(MissingError):
        data.load("imagenet", "train", path=folder)
    monkeypatch.setenv("VITQ_IMAGENET", str(folder))
    assert call(capsys)[0] == 3


def test_json_holds_everything(folder, capsys):
    code, out, _ = call(capsys, "--path", folder, "--classes", 0, "--json")
    found = json.loads(out)
    assert code == 0 and found["splits"]["train"]["images"] == 55 and found["smallest"][:2] == [52, 40]


@pytest.mark.parametrize("arguments, words", [
    (["--sample", "0"], "sample must be at least 1"), (["--sampel", "3"], "did you mean --sample?"),
    (["--classes", "-1"], "classes must be at least 0")])
def test_wrong_options_are_one_line(arguments, words, capsys):
    code, out, err = call(capsys, "--path", "p", *arguments)
    assert code == 2 and words in err and err.count("\n") == 1 and out == ""


def test_other_data_sets_are_refused(capsys):
    assert cli.main(["data", "check", "--data", "digits"]) == 2
    assert "imagenet" in capsys.readouterr().err
