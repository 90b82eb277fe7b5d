"""`vitq detect`: boxes and masks of one image, drawn into it."""

from __future__ import annotations

import argparse
from pathlib import Path

from .errors import InputError, MissingError

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")


def add(detect: argparse.ArgumentParser) -> None:
    """Give the parser of `vitq detect` its options."""
    detect.set_defaults(function=_detect)
    detect.add_argument("image", metavar="IMAGE", help="a picture file")
    detect.add_argument("--out", required=True, metavar="FILE", help="the picture with boxes and masks")
    detect.add_argument("--checkpoint", required=True, metavar="FILE",
                        help="a published .pth file, or a .safetensors file of vitq.detection.save")
    detect.add_argument("--model", metavar="NAME",
                        help="mask_rcnn_swin_tiny, mask_rcnn_swin_small, cascade_mask_rcnn_swin_tiny or "
                             "cascade_mask_rcnn_swin_small; needed with a .pth file")
    detect.add_argument("--threshold", type=float, default=0.3, metavar="SCORE", help="least score (default: 0.3)")
    detect.add_argument("--long", type=int, metavar="PIXELS", help="largest long side (default: the model's, or 1333)")
    detect.add_argument("--short", type=int, metavar="PIXELS", help="largest short side (default: the model's, or 800)")
    detect.add_argument("--json", metavar="FILE", help="also write the detections in COCO's result format")
    detect.add_argument("--device", default="cpu", metavar="DEVICE", help="cpu (default) or cuda")


def _detect(given: argparse.Namespace) -> int:
    import torch

    from .detection.packages import need

    if Path(given.out).suffix.lower() not in SUFFIXES:
        raise InputError(f"out={given.out!r}: give a file that ends in {', '.join(SUFFIXES)}")
    if not 0 <= given.threshold <= 1:
        raise InputError(f"threshold={given.threshold!r}: give a score in [0, 1]")
    if given.device != "cpu" and not torch.cuda.is_available():
        raise MissingError(f"device={given.device!r}: no such device here; use cpu")
    cv2 = need("cv2")

    from .detection.drawing import draw
    from .detection.images import prepare_image, read_image
    from .detection.results import as_results
    from .files import write_json

    image = read_image(given.image)
    model, classes, categories, (long, short) = _model(given)
    with torch.no_grad():
        found, = model.to(given.device)(prepare_image(image, long, short).to(given.device))
    shown = int((found.scores >= given.threshold).sum())
    Path(given.out).parent.mkdir(parents=True, exist_ok=True)
    if not cv2.imwrite(str(given.out), draw(image, found, classes, given.threshold)):
        raise MissingError(f"out={given.out!r} cannot be written")
    if given.json is not None:
        write_json(given.json, as_results(found, 0, categories))
    for box, score, label in list(zip(found.boxes.tolist(), found.scores.tolist(), found.labels.tolist(),
                                      strict=True))[:shown]:
        print(f"{classes[label]:16s} {score:.3f}  {box[0]:7.1f} {box[1]:7.1f} {box[2]:7.1f} {box[3]:7.1f}")
    print(f"{shown} of {len(found)} detections drawn into {given.out}")
    return 0


def _model(given: argparse.Namespace):
    """The detector, its class names, its category ids and its image size."""
    from .detection import load, open_saved
    from .detection.coco import coco_names
    from .detection.images import LONG, SHORT
    from .detection.saving import read_header

    if str(given.checkpoint).endswith(".safetensors"):
        header, model = read_header(given.checkpoint), open_saved(given.checkpoint)
        sizes = [int(header.get("long", LONG)), int(header.get("short", SHORT))]
        given_names = header.get("classes")
    elif given.model is None:
        raise InputError("model is not given: a .pth file does not tell which of the four models it holds")
    else:
        model, sizes, given_names = load(given.model, checkpoint=given.checkpoint), [LONG, SHORT], None
    names, categories = coco_names() if model.config.classes == 80 else (None, list(range(1, 1 + model.config.classes)))
    names = given_names.split(",") if given_names else names or [f"class {n}" for n in categories]
    sizes = [own if own is not None else size for own, size in zip((given.long, given.short), sizes, strict=True)]
    return model, names, categories, sizes
