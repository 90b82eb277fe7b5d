"""Box and mask AP on a COCO-format set, one image at a time, by pycocotools."""

import contextlib
import io
from pathlib import Path
from typing import Any

import torch
from torch import nn

from vitq.detection.coco import CocoSet
from vitq.detection.packages import need
from vitq.detection.results import ResultLog, as_results, fingerprint
from vitq.errors import InputError
from vitq.numerics import check_choice

METRICS = ("AP", "AP50", "AP75", "AP_small", "AP_medium", "AP_large")
MAX_DETECTIONS = [100, 300, 1000]  # as MMDetection; the AP itself counts the best 100 of an image


def detect_all(model: nn.Module, data: CocoSet, out: str | Path | None = None, limit: int | None = None,
               progress: bool = True) -> dict[int, list[dict[str, Any]]]:
    """Results of every image by image id, in COCO's format.

    Args:
        model: Detector, with as many classes as the set.
        data: The set.
        out: Folder that results are added to image by image; called again with the same model and set, the work goes
            on after the last image.
        limit: The first so many images only.
        progress: Show a progress bar.

    Raises:
        InputError: The numbers of classes differ, or ``out`` holds other results.
    """
    from tqdm import tqdm

    from vitq.train.evaluation import evaluation_mode

    if model.config.classes != len(data.categories):
        raise InputError(f"model has {model.config.classes} classes, the data set {len(data.categories)}")
    device, ids = next(model.parameters()).device, data.image_ids[:limit]
    identity = {} if out is None else {"model": fingerprint(model), **data.identity()}
    log = ResultLog(None if out is None else Path(out) / "results.jsonl", identity)
    with evaluation_mode(model), tqdm(total=len(ids), disable=not progress, desc="images") as bar:
        for image_id in ids:
            if image_id not in log.results:
                found, = model(data.batch(image_id).to(device))
                log.add(image_id, as_results(found, image_id, data.categories))
            bar.update()
    return {image_id: log.results[image_id] for image_id in ids}


def average_precision(data: CocoSet, results: dict[int, list[dict[str, Any]]], kind: str = "box",
                      area: str = "mask") -> dict[str, float | None]:
    """COCO's AP over IoU .5 to .95 and its parts, 0 to 1; None where the set has nothing of that size.

    Args:
        data: The set; images without an entry in ``results`` do not count.
        results: From :func:`detect_all`.
        kind: ``"box"`` or ``"mask"``.
        area: Whether the size of a detected mask is that of the ``"mask"`` or, as in MMDetection 2.11, that of its
            ``"box"``. It moves the AP by size of masks, not the AP.
    """
    check_choice("kind", kind, ("box", "mask"))
    check_choice("area", area, ("mask", "box"))
    entries = [entry for own in results.values() for entry in own]
    left_out = "segmentation" if kind == "box" else "bbox" if area == "mask" else None
    entries = [{key: value for key, value in entry.items() if key != left_out} for entry in entries]
    if not entries:
        return dict.fromkeys(METRICS, 0.0)
    with contextlib.redirect_stdout(io.StringIO()):
        run = need("pycocotools.cocoeval").COCOeval(data.coco, data.coco.loadRes(entries),
                                                    "bbox" if kind == "box" else "segm")
        run.params.imgIds, run.params.catIds = sorted(results), data.categories
        run.params.maxDets = MAX_DETECTIONS
        run.evaluate(), run.accumulate(), run.summarize()
    return {name: None if value < 0 else float(value) for name, value in zip(METRICS, run.stats[:6], strict=True)}


@torch.no_grad()
def evaluate(model: nn.Module, data: CocoSet, out: str | Path | None = None, limit: int | None = None,
             progress: bool = True) -> dict[str, float | None]:
    """Box and mask AP: ``box_AP``, ``box_AP50`` ... ``mask_AP_large``, and ``images``.

    With ``out`` the folder gets ``results.json``, all detections in COCO's format, and ``metrics.json``.

    Args:
        model: Detector.
        data: The set.
        out: Folder; see :func:`detect_all`.
        limit: The first so many images only.
        progress: Show a progress bar.
    """
    from vitq.files import write_json

    results = detect_all(model, data, out, limit, progress)
    metrics = {f"{kind}_{name}": value for kind in ("box", "mask")
               for name, value in average_precision(data, results, kind).items()} | {"images": len(results)}
    if out is not None:
        write_json(Path(out) / "results.json", [entry for own in results.values() for entry in own])
        write_json(Path(out) / "metrics.json", metrics)
    return metrics
