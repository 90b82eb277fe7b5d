"""Jobs of the small-scale study of ERQ: one network under many options, scored on images that no method saw.

The functions take and return plain values, so that :func:`vitq.workers.sweep` can run them in worker processes.
"""

import copy
import time
from pathlib import Path

import torch
from torch import Tensor, nn

from vitq import data, zoo
from vitq.convert import INPUT
from vitq.data.images import ImageSet
from vitq.errors import InputError
from vitq.files import read_json, write_json
from vitq.papers.erq2024 import study_layers, study_probe
from vitq.papers.erq2024.methods import run
from vitq.papers.erq2024.options import ErqOptions
from vitq.papers.erq2024.repq import norm_pairs
from vitq.papers.erq2024.study_probe import outputs
from vitq.papers.erq2024.study_shared import (
    Outcome,
    layer_errors,
    method_options,
    prepared,
    quantized,
    rounded,
    shared_key,
)


def studied(job: dict) -> dict:
    """Do one job: ``{"kind": "network" | "probe" | "layers" | "mipq", "out": file or None, ...}``.

    What was done before is read back from the file.
    """
    kinds = {"network": network, "probe": study_probe.train, "layers": study_layers.layers, "mipq": study_layers.mipq}
    if job.get("kind") not in kinds:
        raise InputError(f"kind={job.get('kind')!r}: choose one of {', '.join(kinds)}")
    done = None if job.get("out") is None else Path(job["out"])
    if done is not None and done.exists():
        return read_json(done)
    torch.manual_seed(0)
    begin = time.perf_counter()
    found = kinds[job["kind"]](job) | {"job_seconds": time.perf_counter() - begin}
    if done is not None:
        done.parent.mkdir(parents=True, exist_ok=True)
        write_json(done, found)
    return found


def network(job: dict) -> dict:
    """Quantize one network under several options and score each.

    Args:
        job: ``model`` and ``image_size`` (or None) for ``vitq.zoo``, ``pixels`` instead for a network that takes any
            size; ``source`` of the calibration images, ``draw`` (their seed); ``test``: ``{"name", "split",
            "images"}``; ``cases``: a list of ``{"method", "options", "images", "layers", "probe", ...}``, where options
            change those of the method, ``layers`` asks for the errors of each layer (one case a job) and ``probe`` for
            the probe's accuracy, and the rest is handed through; cases with the same activations and images should
            stand together. ``probe``: file of :func:`~vitq.papers.erq2024.study_probe.train`.

    Returns:
        ``rows``, one a case: its other entries, draw, error (squared output error over squared output), sqnr_db,
        cosine (mean over images), levels of the first layer's input, stuck (percent of rows, mean over refined layers),
        seconds and, where they can be told, top1, agreement (percent) and probe_top1; ``layers``, see
        :func:`~vitq.papers.erq2024.study_shared.layer_errors`; ``full_precision``: top1; ``data_version``;
        ``fingerprint``.
    """
    model = zoo.load(job["model"], image_size=job.get("image_size"))
    size = job.get("pixels") or study_probe.size(model)
    test = data.load(job["test"]["name"], job["test"]["split"], size=size, images=job["test"]["images"])
    test = test.for_model(model)
    exact = outputs(model, test)
    most = max(case["images"] for case in job["cases"])
    images = data.load(job["source"], "train", size=size, images=most, seed=job["draw"]).for_model(model)
    images = images.normalize(images.images)
    found = {"rows": [], "layers": [], "data_version": test.version, "fingerprint": zoo.fingerprint(model),
             "full_precision": _accuracy(model, exact, test)}
    base = {}  # one preparation at a time: it is large
    for case in job["cases"]:
        options = method_options(case["method"], **case["options"])
        row = {k: v for k, v in case.items() if k not in ("options", "layers", "probe")} | {"draw": job["draw"]}
        result, seconds, outcomes = _quantize(model, images[: case["images"]], options, base)
        stuck = [outcome.stuck for outcome in outcomes if outcome.refined]
        row |= {"seconds": seconds, **score(result, exact, test), "levels": input_levels(result),
                "stuck": 100 * sum(stuck) / len(stuck) if stuck else 0.0}
        if case.get("probe"):
            row["probe_top1"] = study_probe.top1(result, job["probe"])
        found["rows"].append(row)
        if case.get("layers"):
            (own,) = base.values()
            found["layers"] = layer_errors(own, result, options, test.normalize(test.images))
    return found


def _quantize(model: nn.Module, images: Tensor, options: ErqOptions,
              base: dict) -> tuple[nn.Module, float, list[Outcome]]:
    """The network, the seconds that it would take alone or nearly so, and what became of its layers."""
    begin = time.perf_counter()
    if options.data_path == "sequential":
        result = run(model, images, options)
        return result.model, result.seconds["total"], []
    plain = options.weights == "nearest" and not options.aqer
    if plain and not options.reparameterize:
        return rounded(model, images, options), time.perf_counter() - begin, []
    key = (shared_key(options), len(images))
    if key not in base:
        base.clear()
        base[key] = prepared(model, images, options)
    begin = time.perf_counter()
    result, outcomes = quantized(base[key], options)
    before = base[key].seconds["ranges"] + (0 if plain else base[key].seconds["moments"])
    return result, time.perf_counter() - begin + before, outcomes


def score(model: nn.Module, exact: Tensor, test: ImageSet) -> dict[str, float]:
    """How near the outputs (N, F) of a network on the test images are to the exact ones; top-1 if it classifies them.

    Returns:
        error, sqnr_db, cosine and, for a classifier, agreement and, of the test set's classes, top1.
    """
    found = outputs(model, test).double()
    exact = exact.double()
    error = ((found - exact).square().sum() / exact.square().sum()).item()
    values = {"error": error, "sqnr_db": -10 * torch.tensor(max(error, 1e-30)).log10().item(),
              "cosine": torch.cosine_similarity(found, exact).mean().item()}
    if getattr(model, "num_classes", 0):
        values["agreement"] = 100 * (found.argmax(1) == exact.argmax(1)).double().mean().item()
        values |= _accuracy(model, found, test)
    return values


def _accuracy(model: nn.Module, outputs: Tensor, test: ImageSet) -> dict[str, float]:
    if getattr(model, "num_classes", 0) != test.num_classes:
        return {}
    return {"top1": 100 * (outputs.argmax(1) == test.labels).double().mean().item()}


@torch.no_grad()
def input_levels(model: nn.Module) -> int:
    """Levels that the input of the first layer behind a LayerNorm can take; 0 for a network without such a layer."""
    for pair in norm_pairs(model):
        quantizer = getattr(model.get_submodule(pair.linear), INPUT, None)
        if quantizer is not None and quantizer.channel_axis is None:
            quantizer = copy.deepcopy(quantizer).double()
            low, high = (v.item() for v in quantizer.limits(quantizer.scale))
            margin = (high - low) / 8
            values = torch.linspace(low - margin, high + margin, 4001, dtype=torch.float64)
            return len((quantizer.fake_quantize(values) * 1e6 / (high - low)).round().unique())
    return 0
