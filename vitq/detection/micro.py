"""Small detectors trained on generated shapes of 128 pixels: a Mask R-CNN and a Cascade Mask R-CNN on a small Swin.

``python -m vitq.detection.micro mask --out FOLDER`` trains one and writes such weights as are shipped;
:func:`vitq.detection.load` opens the shipped ones by name. Nothing but the generated images goes into them.

The Mask R-CNN is trained from random weights. The Cascade Mask R-CNN begins with the shipped Mask R-CNN's backbone,
pyramid, proposal network and mask head, the last for each of its three, and trains all of it on.
"""

import argparse
import copy
import json
import sys
from pathlib import Path
from typing import Any

import torch
from torch import nn

from vitq.detection.checkpoint import load
from vitq.detection.coco import CocoSet
from vitq.detection.evaluation import evaluate
from vitq.detection.saving import save
from vitq.detection.shapes import CLASSES, make_shapes
from vitq.errors import InputError, MissingError
from vitq.files import write_json
from vitq.train import TrainConfig, stop

NAMES = {"mask": "mask_rcnn_swin_micro", "cascade": "cascade_mask_rcnn_swin_micro"}
IMAGES, SIZE = 8000, 128
SEEDS = {"training": 1, "chosen": 2, "held_out": 3}  # of the images
RECIPES = {
    "mask": {"steps": 4000, "batch_size": 8, "learning_rate": 1e-3, "warmup_steps": 300},
    "cascade": {"steps": 2500, "batch_size": 8, "learning_rate": 7e-4, "warmup_steps": 200},
}


def training(folder: str | Path, count: int = IMAGES) -> CocoSet:
    """The first ``count`` training images, made in ``folder`` unless they are there."""
    return make_shapes(folder, count, SEEDS["training"], SIZE)


def chosen(folder: str | Path, count: int = 40) -> CocoSet:
    """Images that settings were chosen on."""
    return make_shapes(folder, count, SEEDS["chosen"], SIZE)


def held_out(folder: str | Path, count: int = 200) -> CocoSet:
    """Images that nothing was chosen on, for the figures."""
    return make_shapes(folder, count, SEEDS["held_out"], SIZE)


def settings(kind: str) -> TrainConfig:
    """Of the training of ``"mask"`` or ``"cascade"``."""
    return TrainConfig(**RECIPES[kind], optimizer="adamw", weight_decay=0.05, decay="transformer", clip=5.0, ema=0.998,
                       precision="bf16", device="cpu", log_every=50, checkpoint_every=100, evaluate_every=500)


def train(kind: str, out: str | Path, seed: int = 0) -> dict[str, Any]:
    """Train one, then write ``NAME.safetensors`` and ``NAME.json`` into ``out``; called again it goes on.

    Args:
        kind: ``"mask"`` or ``"cascade"``.
        out: Folder of the run, its images included.
        seed: Of initial weights, order, mirroring and sampling.

    Returns:
        ``box_AP`` and ``mask_AP`` of the written file on the held-out images, seeds, steps, seconds of training.
    """
    from vitq.detection.model import Detector
    from vitq.detection.training import train as train_detector

    if kind not in NAMES:
        raise InputError(f"kind={kind!r}: choose one of {', '.join(NAMES)}")
    out = Path(out)
    torch.manual_seed(seed)
    model = Detector(NAMES[kind])
    if kind == "cascade":
        begin_with(model, load(NAMES["mask"]))
    result = train_detector(model, training(out / "data" / "training"), settings(kind), seed=seed, out=out / kind,
                            held_out=chosen(out / "data" / "chosen"))
    facts = {"command": f"python -m vitq.detection.micro {kind} --seed {seed}", "seed": seed, "steps": result.steps,
             "batch_size": RECIPES[kind]["batch_size"], "training_images": IMAGES, "image_seeds": SEEDS,
             "seconds": round(result.seconds)}
    return write(model, NAMES[kind], out, facts)


def begin_with(cascade: nn.Module, trained: nn.Module) -> None:
    """Give a Cascade Mask R-CNN all of a trained Mask R-CNN but the box head."""
    state, mask = trained.state_dict(), "roi.mask_heads.0."
    found = {key: value for key, value in state.items() if not key.startswith("roi.")}
    for stage in range(cascade.config.stages):
        found |= {key.replace(mask, f"roi.mask_heads.{stage}."): value for key, value in state.items()
                  if key.startswith(mask)}
    cascade.load_state_dict(cascade.state_dict() | found)


def write(model: nn.Module, name: str, out: Path, facts: dict[str, Any]) -> dict[str, Any]:
    """Write the weights as halves, and the facts with the AP of these very weights on the held-out images."""
    halves = copy.deepcopy(model).half()
    model.load_state_dict(halves.state_dict())
    metrics = evaluate(model, held_out(out / "data" / "held_out"))
    facts = facts | {kind: round(metrics[kind], 4) for kind in ("box_AP", "box_AP50", "box_AP75", "mask_AP")}
    save(halves, out / f"{name}.safetensors", classes=",".join(CLASSES),
         long=str(SIZE), short=str(SIZE), facts=json.dumps(facts))
    write_json(out / f"{name}.json", facts)
    return facts


def main(arguments: list[str] | None = None) -> int:
    """Train and print the figures as one JSON line; exit status 0, 2 for wrong input, 3 for what is missing.

    After SIGTERM or SIGUSR1 it is 143, and the same command goes on from the step that was under way.
    """
    parser = argparse.ArgumentParser(prog="python -m vitq.detection.micro", description=__doc__.partition("\n")[0])
    parser.add_argument("kind", choices=list(NAMES))
    parser.add_argument("--out", required=True, metavar="FOLDER")
    parser.add_argument("--seed", type=int, default=0)
    try:
        given = vars(parser.parse_args(arguments))
        with stop.listening():
            print(json.dumps(train(**given)))
    except (InputError, MissingError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2 if isinstance(error, InputError) else 3
    except stop.Stopped as error:
        print(error, file=sys.stderr)
        return error.code
    return 0


if __name__ == "__main__":
    sys.exit(main())
