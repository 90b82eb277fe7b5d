"""`vitq labels`: what it prints, and one line for what is wrong."""

import pytest

from vitq import cli
from vitq.data.soft_labels import SoftLabelStore


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    patch = pytest.MonkeyPatch()
    patch.setenv("VITQ_CACHE", str(tmp_path_factory.mktemp("cache")))
    yield tmp_path_factory.mktemp("labels")
    patch.undo()


def call(capsys, *arguments):
    code = cli.main(["labels", *map(str, arguments)])
    return code, *capsys.readouterr()


MAKE = ("make", "--teacher", "vit_micro", "--data", "glyphs", "--images", 41, "--crops", 3, "--out")


def test_make_in_parts_info_and_check(capsys, folder):
    out = folder / "a"
    code, text, _ = call(capsys, *MAKE, out, "--part", "1/2")
    assert code == 0 and "41 images x 3 crops, 3.7 kB; 0 images are there" in text and "not finished" in text
    code, text, _ = call(capsys, "info", out)
    assert code == 0 and "images       20 of 41" in text
    code, text, _ = call(capsys, *MAKE, out)
    assert code == 0 and "20 images are there" in text and "41 of 41 images\n" in text
    code, text, _ = call(capsys, "info", out)
    assert code == 0 and "29 bytes a crop" in text and "1281167 images x 500 crops would be 18.6 GB" in text
    assert "vit_micro" in text and len(SoftLabelStore(out)) == 41
    code, text, _ = call(capsys, "check", out)
    assert code == 0 and "every checksum of the finished shards is right" in text
    file = out / "labels-00002.bin"
    file.write_bytes(bytes(file.stat().st_size))
    code, _, err = call(capsys, "check", out)
    assert code == 2 and "labels-00002.bin: the block of image 4 is corrupt" in err and err.count("\n") == 1


def test_another_teacher_is_refused(capsys, folder):
    code, *_ = call(capsys, *MAKE, folder / "b", "--format", "hard")
    assert code == 0
    code, _, err = call(capsys, *MAKE, folder / "b", "--format", "hard", "--teacher", "swin_micro")
    assert code == 2 and "holds labels with teacher 'vit_micro', not 'swin_micro'" in err and err.count("\n") == 1


@pytest.mark.parametrize("arguments, code, words", [
    ([], 2, "COMMAND"),
    (["mak"], 2, "did you mean make?"),
    ([*MAKE, "x", "--corps", 3], 2, "did you mean --crops?"),
    ([*MAKE, "x", "--crops", 0], 2, "crops"),
    ([*MAKE, "x", "--top-k", 41], 2, "top_k"),
    ([*MAKE, "x", "--format", "marginal"], 2, "marginal_smoothing"),
    ([*MAKE, "x", "--data", "nowhere"], 2, "nowhere"),
    ([*MAKE, "x", "--teacher", "vit"], 2, "timm:NAME"),
    ([*MAKE, "x", "--part", "2/2"], 2, "part"),
    ([*MAKE, "x", "--processes", 0], 2, "processes"),
    (["info", "nowhere"], 3, "holds no soft labels"),
    (["check", "nowhere"], 3, "holds no soft labels"),
])  # fmt: skip
def test_wrong_input_is_one_line(capsys, folder, monkeypatch, arguments, code, words):
    monkeypatch.chdir(folder)
    status, out, err = call(capsys, *arguments)
    assert status == code and words in err and err.count("\n") == 1
    assert not (folder / "x").exists()
