"""Jobs of the small-scale study of detection: one detector, several methods on the same calibration images.

Functions take and return plain values, so that :func:`vitq.workers.sweep` can run them in worker processes.
"""

import copy
import time
from pathlib import Path
from typing import Any

import torch
from torch import nn

from vitq import provenance
from vitq.detection import micro
from vitq.detection import quantization as detectors
from vitq.detection.coco import CocoSet
from vitq.detection.evaluation import average_precision, detect_all
from vitq.detection.images import ImageBatch
from vitq.detection.results import fingerprint
from vitq.errors import InputError
from vitq.files import read_json, write_json
from vitq.papers.erq2024.options import ErqOptions

NAMES = {"nearest": "Nearest", "repq": "RepQ-ViT", "gptq": "GPTQ", "aqer": "Aqer", "wqer": "Wqer", "erq": "ERQ",
         "erq_plus": "ERQ+"}
SETS = {"training": micro.training, "chosen": micro.chosen, "held_out": micro.held_out}


def studied(job: dict) -> dict:
    """Do one job, or read what it gave before from its file.

    Args:
        job: What to do (other entries are handed through):

            - ``detector``: a name for :func:`vitq.detection.load`; ``weights``: a file for it, or None;
            - ``fingerprint``: of these weights, see :func:`opened`, so that results of others are not taken over;
            - ``test``: ``{"split": "held_out" or "chosen", "images": n}``, and ``"limit"`` to score the first so many;
            - ``part``: AP on the first so many images is given too, to set beside jobs with that limit;
            - ``data``: folder of the generated images of :func:`images_of`: make them before several processes start;
            - ``cases``: each ``{"method": ..., **options}``; without any the detector is evaluated as it is;
            - ``bits``: such as ``"W4A4"``; ``scope`` and ``levels`` as in :func:`vitq.detection.quantize`;
            - ``first`` and ``images``: which of the first ``drawn`` training images calibrate;
            - ``pictures``: ids of images whose detections are kept; ``out``: file of the results, or None.

    Returns:
        ``rows``, one a case: ``method``, ``coe``, ``box_ap``, ``mask_ap`` and their parts in percent, ``box_ap_part``
        and ``mask_ap_part``, ``seconds`` to quantize, ``evaluate_seconds``, ``detections`` an image; ``pictures``:
        results in COCO's format by method; ``fingerprint`` of the float weights; ``data_version``; ``job_seconds``.
    """
    done = None if job.get("out") is None else Path(job["out"])
    if done is not None and done.exists():
        return read_json(done)
    begin = time.perf_counter()
    model, test = opened(job), images_of(job["test"]["split"], job["test"]["images"], job["data"])
    found: dict[str, Any] = {"rows": [], "pictures": {}, "fingerprint": fingerprint(model)[:16],
                             "data_version": provenance.digest(test.identity())[:16]}
    for case, network, seconds in quantized(model, job):
        row, kept = scored(network, test, job["test"].get("limit"), job.get("part"), job.get("pictures", ()))
        found["rows"].append({"method": case["method"], "coe": case.get("coe"), "seconds": seconds, **row})
        found["pictures"][case["method"]] = kept
    found["job_seconds"] = time.perf_counter() - begin
    if done is not None:
        done.parent.mkdir(parents=True, exist_ok=True)
        write_json(done, found)
    return found


def images_of(split: str, count: int, folder: str | Path) -> CocoSet:
    """The first ``count`` images of a split of the generated shapes, made in ``folder`` unless they are there."""
    return SETS[split](Path(folder) / f"{split}{count}", count)


def opened(job: dict) -> nn.Module:
    """The float detector of a job, whose fingerprint is noted among the data that a notebook used.

    Raises:
        InputError: The job asks for other weights than there are.
    """
    from vitq.detection import load

    model = load(job["detector"], checkpoint=job.get("weights"))
    mark = fingerprint(model)[:16]
    if job.get("fingerprint", mark) != mark:
        raise InputError(f"detector={job['detector']!r} has the weights {mark}, not {job['fingerprint']}")
    provenance.note_data(job["detector"], mark)
    return model


def quantized(model: nn.Module, job: dict):
    """Each case, its network and the seconds that it would take alone; the float detector if there are none."""
    if not job.get("cases"):
        yield {"method": "fp32"}, model, 0.0
        return
    images = calibration(job)
    weight_bits, act_bits = int(job["bits"][1]), int(job["bits"][3])
    base: dict = {}  # one preparation at a time
    for case in job["cases"]:
        options = {key: value for key, value in case.items() if key != "method"}
        begin = time.perf_counter()
        settings = ErqOptions.from_dict({"weight_bits": weight_bits, "act_bits": act_bits, "vector_strength": None,
                                         **detectors.PUBLISHED, **detectors.METHODS[case["method"]], **options})
        shared = provenance.digest([settings.reparameterize, settings.round_zero_point])
        if shared not in base:
            base.clear()
            base[shared] = prepared(model, images, settings, job.get("scope", "whole"), job.get("levels", "all"))
            prepared_in = time.perf_counter() - begin
            begin = time.perf_counter()
        yield case, corrected(base[shared], settings), time.perf_counter() - begin + prepared_in


def calibration(job: dict) -> list[ImageBatch]:
    """The training images that a job calibrates on, one batch each."""
    data = images_of("training", job["drawn"], job["data"])
    return [data.batch(number) for number in data.image_ids[job["first"]:job["first"] + job["images"]]]


def prepared(model: nn.Module, images: list[ImageBatch], options: ErqOptions, scope: str, levels: str) -> tuple:
    """A calibrated copy, and the moments of its layers: what methods with the same activations share."""
    model, part = detectors.attach(model, options, scope)
    detectors._set_ranges(model, part, images, levels, torch.device("cpu"))
    detectors.reparameterize(part, options)
    return model, detectors._moments(model, part, images)


def corrected(base: tuple, options: ErqOptions) -> nn.Module:
    """The quantized detector, the same to the bit as :func:`vitq.detection.quantize` gives it; ``base`` stays."""
    model, layers = copy.deepcopy(base)
    detectors._correct(layers, options, None)
    return model


def scored(network: nn.Module, test: CocoSet, limit: int | None = None, part: int | None = None,
           pictures: tuple[int, ...] = ()) -> tuple[dict, list[dict]]:
    """AP in percent on a set or its first images, and the results of some of them."""
    begin = time.perf_counter()
    results = detect_all(network, test, limit=limit, progress=False)
    first = {number: results[number] for number in list(results)[:part]}
    row = {}
    for kind in ("box", "mask"):
        found = average_precision(test, results, kind)
        row |= {f"{kind}_{name.lower()}": None if value is None else 100 * value for name, value in found.items()}
        own = found if len(first) == len(results) else average_precision(test, first, kind)
        row[f"{kind}_ap_part"] = 100 * own["AP"]
    row |= {"detections": sum(map(len, results.values())) / len(results),
            "evaluate_seconds": time.perf_counter() - begin}
    return row, [entry for number in pictures for entry in results[number]]
