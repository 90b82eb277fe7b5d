"""Calibration images from embedded sets and folders."""

import numpy as np
import pytest
import torch
from PIL import Image

from vitq import zoo
from vitq.errors import InputError, MissingError
from vitq.papers.erq2024.images import calibration_images


@pytest.fixture(scope="module")
def model():
    return zoo.load("vit_micro")


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "a").mkdir()
    for index in range(6):
        pixels = np.full((40, 50, 3), 40 * index, np.uint8)
        Image.fromarray(pixels).save(tmp_path / ("a" if index % 2 else ".") / f"{index}.png")
    (tmp_path / "notes.txt").write_text("no image")
    return tmp_path


def test_a_folder_is_read_as_the_model_expects(model, folder):
    images = calibration_images(folder, model, 6)
    assert images.shape == (6, 3, 32, 32) and images.dtype == torch.float32
    mean, std = (torch.tensor(model.pretrained_cfg[k])[:, None, None] for k in ("mean", "std"))
    levels = ((images * std + mean) * 255).mean((1, 2, 3)).round().tolist()
    assert sorted(levels) == [0, 40, 80, 120, 160, 200]
    assert calibration_images(folder, model, 3, seed=1).equal(calibration_images(folder, model, 3, seed=1))
    assert not calibration_images(folder, model, 3, seed=1).equal(calibration_images(folder, model, 3, seed=2))


def test_embedded_sets_by_name(model):
    assert calibration_images("glyphs", model, 4).shape == (4, 3, 32, 32)


def test_what_is_wrong_is_named(model, folder):
    with pytest.raises(MissingError, match="no such folder"):
        calibration_images(folder / "b", model)
    with pytest.raises(InputError, match="holds 6 images"):
        calibration_images(folder, model, 7)
    (folder / "6.png").write_bytes(b"broken")
    with pytest.raises(InputError, match="6.png"):
        calibration_images(folder, model, 7)
    with pytest.raises(InputError, match="count=0"):
        calibration_images(folder, model, 0)
