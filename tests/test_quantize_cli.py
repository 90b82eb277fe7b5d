"""The options of `vitq quantize`, what it prints, and that the file gives the same outputs."""

import argparse

import pytest
import torch

import vitq
from vitq import quantize_cli, zoo
from vitq.errors import InputError
from vitq.papers.erq2024 import quantize_erq
from vitq.papers.erq2024.images import calibration_images


def call(*arguments):
    parser = argparse.ArgumentParser()
    quantize_cli.add(parser)
    given = parser.parse_args([str(a) for a in arguments])
    return given.function(given)


def test_quantize_a_network(capsys, tmp_path):
    file = tmp_path / "model.safetensors"
    assert call("--model", "vit_micro", "--images", "glyphs", "--count", 8, "--wbits", 3, "--out", file) == 0
    text = capsys.readouterr().out
    assert "blocks.0.attn.qkv" in text and "8 images" in text and " MB" in text and str(file) in text
    model = zoo.load("vit_micro")
    images = calibration_images("glyphs", model, 8)
    with torch.no_grad():
        assert vitq.load(file)(images).equal(quantize_erq(model, images, 3, 4).model(images))


def test_an_unknown_method_is_refused(tmp_path):
    with pytest.raises(InputError, match="erq_plus"):
        call("--model", "vit_micro", "--images", "glyphs", "--method", "magic", "--out", tmp_path / "x")
