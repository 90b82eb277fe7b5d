"""`vitq quantize`: what it prints, that the file gives the same outputs, and one line for what is wrong."""

import numpy as np
import pytest
import torch
from PIL import Image

import vitq
from vitq import zoo
from vitq.cli import main
from vitq.papers.erq2024 import METHODS, quantize_erq
from vitq.papers.erq2024.images import calibration_images


@pytest.fixture
def jpegs(tmp_path):
    random = np.random.default_rng(0)
    (tmp_path / "jpegs" / "a").mkdir(parents=True)
    for index in range(6):
        pixels = random.normal(30 * index + 50, 40, (37, 50, 3)).clip(0, 255).astype("uint8")
        Image.fromarray(pixels).save(tmp_path / "jpegs" / "a" / f"{index}.JPEG")
    return tmp_path / "jpegs"


def quantize(*arguments, model="vit_micro"):
    return main(["quantize", "--model", model, *(str(a) for a in arguments)])


def test_the_file_gives_the_outputs_of_the_quantized_network(capsys, tmp_path, jpegs):
    file = tmp_path / "model.safetensors"
    assert quantize("--images", jpegs, "--count", 5, "--seed", 3, "--wbits", 3, "--out", file) == 0
    text = capsys.readouterr().out
    assert "blocks.0.attn.qkv" in text and "5 images" in text and " MB" in text and str(file) in text
    model = zoo.load("vit_micro")
    found = quantize_erq(model, calibration_images(jpegs, model, 5, 3), 3, 4)
    for layer in found.layers:
        assert any(layer.name in line and f"{layer.error:.2e}" in line for line in text.splitlines())
    images = calibration_images("glyphs", model, 8)
    with torch.no_grad():
        assert vitq.load(file)(images).equal(found.model(images))


@pytest.mark.parametrize("method", METHODS)
def test_every_method_and_a_checkpoint_of_its_own(tmp_path, method):
    checkpoint, file = tmp_path / "weights.pt", tmp_path / "model.safetensors"
    model = zoo.load("swin_micro")
    with torch.no_grad():
        model.head.fc.bias.add_(1.0)
    torch.save(model.state_dict(), checkpoint)
    assert quantize("--images", "glyphs", "--count", 4, "--method", method, "--checkpoint", checkpoint, "--out", file,
                    model="swin_micro") == 0
    images = calibration_images("glyphs", model, 4)
    with torch.no_grad():
        assert vitq.load(file)(images).equal(METHODS[method](model, images).model(images))


@pytest.mark.parametrize(("wrong", "code", "named"), [
    (("--method", "magic"), 2, "erq_plus"),
    (("--wbits", 1), 2, "wbits=1"),
    (("--abits", 9), 2, "abits=9"),
    (("--coe", -1), 2, "coe=-1"),
    (("--count", 7), 2, "holds 6 images, fewer than the 7"),
    (("--count", 0), 2, "count=0"),
    (("--images", "nowhere"), 3, "no such folder"),
    (("--checkpoint", "nowhere.pt"), 3, "nowhere.pt"),
    (("--out", "nowhere/model.safetensors"), 3, "no folder"),
])
def test_what_is_wrong_is_one_line_before_any_work(capsys, monkeypatch, tmp_path, jpegs, wrong, code, named):
    monkeypatch.chdir(tmp_path)
    assert quantize("--images", jpegs, "--count", 4, "--out", "model.safetensors", *wrong) == code
    caught = capsys.readouterr()
    assert named in caught.err and caught.err.count("\n") == 1 and "blocks.0" not in caught.out
    assert not (tmp_path / "model.safetensors").exists()


def test_an_unknown_model_and_nan_in_a_checkpoint(capsys, tmp_path, jpegs):
    common = ("--images", jpegs, "--count", 4, "--out", tmp_path / "model.safetensors")
    assert quantize(*common, model="vit_macro") == 2
    assert "vit_macro" in capsys.readouterr().err
    state = zoo.load("vit_micro").state_dict()
    state["blocks.1.mlp.fc1.weight"][0, 0] = torch.nan
    torch.save(state, tmp_path / "weights.pt")
    assert quantize(*common, "--checkpoint", tmp_path / "weights.pt") == 2
    error = capsys.readouterr().err
    assert "blocks.1.mlp.fc1.weight" in error and "NaN" in error and error.count("\n") == 1
