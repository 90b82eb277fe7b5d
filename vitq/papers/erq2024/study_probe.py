"""A linear probe on a network without a classifier: what quantization leaves of the information in its features.

The probe is trained once, on features in full precision, and then read out of quantized networks as it is.
"""

import copy
from functools import cache
from pathlib import Path

import torch
from torch import Tensor, nn

from vitq import data, zoo
from vitq.data.images import ImageSet
from vitq.train.evaluation import evaluation_mode

STRENGTHS = (300.0, 1000.0, 3000.0, 10000.0)  # of the ridge, tried on validation images


def size(model: nn.Module) -> int:
    """Side of the images that a network takes, in pixels."""
    patches = getattr(model, "patch_embed", None)
    own = getattr(patches, "img_size", None) or model.pretrained_cfg["input_size"][-1]
    return own[0] if isinstance(own, (tuple, list)) else own


def outputs(model: nn.Module, images: ImageSet, features: bool = False, batch: int = 64) -> Tensor:
    """Outputs (N, F) on all images; with ``features`` all tokens of the last layer, side by side."""
    with evaluation_mode(model):
        forward = model.forward_features if features else model
        return torch.cat([forward(images.normalize(part)).flatten(1) for part in images.images.split(batch)])


def resized(model: nn.Module, name: str, image_size: int) -> nn.Module:
    """A copy for another image size; its position embedding is resampled from the one that was trained.

    Args:
        model: Network ``name`` of the zoo, quantized or not.
        name: Of the zoo.
        image_size: Side in pixels.
    """
    other = copy.deepcopy(model)
    other.set_input_size(img_size=image_size)
    other.pos_embed.data.copy_(_positions(name, image_size))
    return other


@cache
def _positions(name: str, image_size: int) -> Tensor:
    return zoo.load(name, image_size=image_size).pos_embed.detach()


def train(job: dict) -> dict:
    """Train the probe: ridge regression on one-hot labels of ``glyphs``, strength chosen on validation images.

    Args:
        job: ``model``, ``image_size``, ``train`` and ``test`` (numbers of images), ``file`` for the result.

    Returns:
        top1 of the full-precision features (percent), ``strength``, ``classes`` and ``data_version``.
    """
    model = zoo.load(job["model"], image_size=job["image_size"])
    sets = {split: data.load("glyphs", split, size=job["image_size"], images=count).for_model(model)
            for split, count in (("train", job["train"]), ("val", max(job["train"] // 8, 41)), ("test", job["test"]))}
    found = {split: outputs(model, images, features=True).double() for split, images in sets.items()}
    mean, spread = found["train"].mean(0), found["train"].std(0) + 1e-6
    rows = (found["train"] - mean) / spread  # (N, F)
    target = torch.nn.functional.one_hot(sets["train"].labels, sets["train"].num_classes).double()
    gram, best = rows @ rows.T, (-1.0, 0.0, None)
    for strength in STRENGTHS:
        solved = rows.T @ torch.linalg.solve(gram + strength * torch.eye(len(rows)), target - target.mean(0))
        weight = solved / spread[:, None]
        bias = target.mean(0) - mean @ weight
        hits = _hits(found["val"], weight, bias, sets["val"].labels)
        best = max(best, (hits, strength, (weight, bias)), key=lambda entry: entry[0])
    weight, bias = best[2]
    Path(job["file"]).parent.mkdir(parents=True, exist_ok=True)
    torch.save({"weight": weight.float(), "bias": bias.float(), "model": job["model"], "size": job["image_size"],
                "test": job["test"]}, job["file"])
    return {"top1": _hits(found["test"], weight, bias, sets["test"].labels), "strength": best[1],
            "classes": sets["test"].num_classes, "data_version": sets["test"].version}


def top1(model: nn.Module, file: str) -> float:
    """Accuracy in percent of the probe of a file on the features of a network, which may be quantized.

    Args:
        model: The probe's network of the zoo, for any image size.
        file: Written by :func:`train`.
    """
    probe = torch.load(file, weights_only=True)
    model = resized(model, probe["model"], probe["size"])
    test = data.load("glyphs", "test", size=probe["size"], images=probe["test"]).for_model(model)
    found = outputs(model, test, features=True).double()
    return _hits(found, probe["weight"].double(), probe["bias"].double(), test.labels)


def _hits(features: Tensor, weight: Tensor, bias: Tensor, labels: Tensor) -> float:
    return 100 * ((features @ weight + bias).argmax(1) == labels).double().mean().item()
