"""Micro networks for 32 x 32 images, small enough for dozens of training runs on one processor core.

Importing this module registers them in timm, so that `timm.create_model("mobilenet_micro", pretrained=True)` works.
`python -m vitq.micro NAME` trains one on the `glyphs` data set and writes such weights as are shipped.
"""

import argparse
import json
import os
import sys
import time
from functools import partial
from pathlib import Path
from typing import NoReturn

import torch
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from timm.models._efficientnet_builder import decode_arch_def
from timm.models.efficientnet import EfficientNet
from timm.models.swin_transformer import SwinTransformer
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from vitq import data, provenance
from vitq.data.glyphs import CLASSES, MEAN, STD
from vitq.errors import InputError

NAMES = ("mobilenet_micro", "vit_micro", "swin_micro")
WEIGHTS = Path(__file__).parent / "weights"

# Epochs and peak learning rate of the shipped weights, chosen on the validation split.
RECIPES = {
    "mobilenet_micro": {"epochs": 30, "learning_rate": 6e-3},
    "vit_micro": {"epochs": 40, "learning_rate": 2e-3},
    "swin_micro": {"epochs": 25, "learning_rate": 2e-3},
}


def _cfg(first: str, classifier: str) -> dict:
    return {
        "num_classes": len(CLASSES),
        "input_size": (3, 32, 32),
        "pool_size": None,
        "crop_pct": 1.0,
        "interpolation": "bilinear",
        "mean": MEAN,
        "std": STD,
        "first_conv": first,
        "classifier": classifier,
    }


default_cfgs = generate_default_cfgs(
    {
        "mobilenet_micro": _cfg("conv_stem", "classifier") | {"file": str(WEIGHTS / "mobilenet_micro.safetensors")},
        "vit_micro": _cfg("patch_embed.proj", "head") | {"file": str(WEIGHTS / "vit_micro.safetensors")},
        "swin_micro": _cfg("patch_embed.proj", "head.fc") | {"file": str(WEIGHTS / "swin_micro.safetensors")},
    }
)


def _build(kind: type[nn.Module], name: str, pretrained: bool, settings: dict) -> nn.Module:
    if pretrained:
        provenance.note_weights(WEIGHTS / f"{name}.safetensors")
    return build_model_with_cfg(kind, name, pretrained, **settings)


@register_model
def mobilenet_micro(pretrained: bool = False, **kwargs) -> EfficientNet:
    """MobileNetV2's inverted residuals (depthwise 3 x 3, batch norm, ReLU6) from 16 x 16 down to 4 x 4.

    It has 20,345 parameters and no more: a network with room to spare loses nothing at 3 bits, and then oscillations
    cost nothing that could be measured.
    """
    stages = [["ds_r1_k3_s1_c8"], ["ir_r2_k3_s2_e4_c16"], ["ir_r2_k3_s2_e4_c24"]]
    settings = dict(
        block_args=decode_arch_def(stages),
        stem_size=8,
        fix_stem=True,
        num_features=96,
        num_classes=len(CLASSES),
        act_layer=nn.ReLU6,
        norm_layer=partial(nn.BatchNorm2d),
    )
    return _build(EfficientNet, "mobilenet_micro", pretrained, settings | kwargs)


@register_model
def vit_micro(pretrained: bool = False, **kwargs) -> VisionTransformer:
    """A vision transformer of 64 tokens: 4 blocks of width 64 with 4 heads, mean pooling instead of a class token."""
    settings = dict(
        img_size=32,
        patch_size=4,
        embed_dim=64,
        depth=4,
        num_heads=4,
        mlp_ratio=2,
        class_token=False,
        global_pool="avg",
        num_classes=len(CLASSES),
    )
    return _build(VisionTransformer, "vit_micro", pretrained, settings | kwargs)


@register_model
def swin_micro(pretrained: bool = False, **kwargs) -> SwinTransformer:
    """A Swin transformer of two stages (8 x 8 and 4 x 4 tokens) with windows of 4 x 4."""
    settings = dict(
        img_size=32,
        patch_size=4,
        window_size=4,
        embed_dim=48,
        depths=(2, 4),
        num_heads=(3, 6),
        mlp_ratio=2,
        drop_path_rate=0.0,
        num_classes=len(CLASSES),
    )
    return _build(SwinTransformer, "swin_micro", pretrained, settings | kwargs)


def train(
    name: str,
    out: str | Path,
    *,
    seed: int = 0,
    epochs: int | None = None,
    learning_rate: float | None = None,
    batch_size: int = 128,
    images: int | None = None,
) -> dict:
    """Train a micro network on `glyphs` with AdamW and a one-cycle schedule, then write its weights.

    The validation split is looked at after each epoch, the test split once, after the last.

    Args:
        name: One of `NAMES`.
        out: The safetensors file to write; its metadata tell how it was made.
        seed: Seed of initialisation, order and augmentation.
        epochs: Epochs instead of the recipe's.
        learning_rate: Peak learning rate instead of the recipe's.
        batch_size: Images a step.
        images: Training images instead of all 20,000.

    Returns:
        The metadata: data version, seed, top-1 in percent on the validation and the test split, seconds.
    """
    if name not in NAMES:
        raise InputError(f"name must be one of {', '.join(NAMES)}, got {name!r}")
    if not Path(out).resolve().parent.is_dir():
        raise InputError(f"out must lie in an existing folder, got {str(out)!r}")
    for label, value in (("epochs", epochs), ("learning_rate", learning_rate)):
        if value is not None and value <= 0:
            raise InputError(f"{label} must be more than 0, got {value}")
    recipe = RECIPES[name]
    epochs, learning_rate = epochs or recipe["epochs"], learning_rate or recipe["learning_rate"]
    torch.manual_seed(seed)
    training, validation = data.load("glyphs", "train", images=images), data.load("glyphs", "val")
    model = globals()[name]()
    began = time.perf_counter()
    for epoch in _epochs(model, training, epochs, learning_rate, batch_size, seed):
        top1 = accuracy(model, validation)
        print(f"epoch {epoch + 1}/{epochs}  val top-1 {top1:.2f}  {time.perf_counter() - began:.0f} s", flush=True)
    facts = {
        "command": f"python -m vitq.micro {name} --seed {seed} --epochs {epochs} --learning-rate {learning_rate:g}"
        + (f" --images {images}" if images else ""),
        "model": name,
        "data_version": training.version,
        "seed": seed,
        "val_top1": round(top1, 2),
        "test_top1": round(accuracy(model, data.load("glyphs", "test")), 2),
        "seconds": round(time.perf_counter() - began),
    }
    _save(model, Path(out), facts)
    return facts


def _epochs(model: nn.Module, training, epochs: int, learning_rate: float, batch_size: int, seed: int):
    batches = data.batches(training, batch_size, train=True, seed=seed)
    decay = [p for p in model.parameters() if p.ndim > 1]
    rest = [p for p in model.parameters() if p.ndim <= 1]
    optimizer = torch.optim.AdamW([{"params": decay, "weight_decay": 0.05}, {"params": rest, "weight_decay": 0.0}])
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, learning_rate, total_steps=epochs * len(batches), pct_start=0.2, cycle_momentum=False
    )
    model.to(memory_format=torch.channels_last)
    for epoch in range(epochs):
        batches.set_epoch(epoch)
        model.train()
        for images, labels in batches:
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(images), labels).backward()
            nn.utils.clip_grad_norm_(model.parameters(), 5.0)
            optimizer.step()
            schedule.step()
        yield epoch


@torch.no_grad()
def accuracy(model: nn.Module, dataset) -> float:
    """Top-1 accuracy in percent, in evaluation mode; the mode is restored afterwards."""
    was_training = model.training
    model.eval()
    right = sum(int((model(images).argmax(1) == labels).sum()) for images, labels in data.batches(dataset, 250))
    model.train(was_training)
    return 100 * right / len(dataset)


def _save(model: nn.Module, out: Path, facts: dict) -> None:
    from safetensors.torch import save

    tensors = {name: value.detach().contiguous() for name, value in model.state_dict().items()}
    temporary = out.with_name(out.name + ".tmp")
    temporary.write_bytes(save(tensors, {key: str(value) for key, value in facts.items()}))
    os.replace(temporary, out)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise InputError(message)


def main(arguments: list[str] | None = None) -> int:
    """The command line of this module."""
    parser = _Parser(prog="python -m vitq.micro", description="Train a micro network on glyphs.")
    parser.add_argument("name", help=", ".join(NAMES))
    parser.add_argument("--out", help="safetensors file to write, by default NAME.safetensors in this folder")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--epochs", type=int)
    parser.add_argument("--learning-rate", type=float)
    parser.add_argument("--images", type=int, help="training images instead of all 20,000")
    try:
        options = vars(parser.parse_args(arguments))
        options["out"] = options["out"] or f"{options['name']}.safetensors"
        print(json.dumps(train(**options)))
    except InputError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
