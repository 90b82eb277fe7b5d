"""Post-training quantization of a detector by ERQ or a baseline, whole or its backbone alone.

The steps are those of :mod:`vitq.papers.erq2024` on every linear layer and convolution and on the products of
attention; transposed convolutions, norms, pooling and box decoding stay in floating point. What detection adds:

- The proposal head runs on five levels. Its ranges and its moments are those of all five; ``levels="first"`` sets the
  ranges by the finest level alone, as the released RepQ-ViT does by quantizing at the first call.
- Windows are padded with zeros between norm and attention. ``windows="exact"`` keeps reparameterization exact there;
  ``"released"`` folds the shift into the norm all the same, so that padding is no longer the image of 0.
- Ranges are set on all calibration images at once, padded to the largest; moments on one image at a time.
- Memory stays bounded at the published image size and 1000 regions, see :mod:`vitq.detection.collect`.

In a terminal, bars show how far it is.
"""

import copy
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from vitq.convert import INPUT
from vitq.detection.collect import RegionData, collect, followed
from vitq.detection.images import ImageBatch
from vitq.detection.wide import correct_wide
from vitq.errors import InputError
from vitq.numerics import check_choice
from vitq.papers.erq2024.correct import LayerReport, correct_layer
from vitq.papers.erq2024.methods import Quantized, _peak_memory
from vitq.papers.erq2024.options import ErqOptions
from vitq.papers.erq2024.prepare import _pass, calibrate, layer_names, pairs, prepare
from vitq.papers.erq2024.prepare import rebuild as erq_rebuild
from vitq.papers.erq2024.repq import make_room, reparameterize_layernorm

METHODS: dict[str, dict] = {
    "nearest": {"aqer": False, "weights": "nearest", "reparameterize": False},
    "repq": {"aqer": False, "weights": "nearest"},
    "gptq": {"aqer": False, "weights": "gptq"},
    "aqer": {"aqer": True, "weights": "nearest"},
    "wqer": {"aqer": False, "weights": "wqer"},
    "erq": {"aqer": True, "weights": "wqer"},
    "erq_plus": {"aqer": True, "weights": "wqer", "dual": True},
}
PUBLISHED = {"image_bits": 8, "merge": True}  # of RepQ-ViT's detectors; of ERQ's nothing is known, see section 8.2
SCOPES, LEVELS, WINDOWS = ("whole", "backbone"), ("all", "first"), ("exact", "released")


def quantize(model: nn.Module, images: ImageBatch | list[ImageBatch], method: str = "erq", weight_bits: int | None = 4,
             act_bits: int | None = 4, *, scope: str = "whole", levels: str = "all", windows: str = "exact",
             progress: Callable[[LayerReport], None] | None = None, **options) -> Quantized:
    """Quantize a copy of a float detector.

    Args:
        model: Float detector; left as it was.
        images: Calibration images: one, as published, or any number. The first ``calibration_images`` set the ranges
            together, which takes about 0.8 GB for each of 800 x 1216 pixels. From 13 images on, a box head's first
            linear layer has more rows of data than inputs; solving for it then takes up to 10 GB.
        method: ``"nearest"``, ``"repq"``, ``"gptq"``, ``"aqer"``, ``"wqer"``, ``"erq"`` or ``"erq_plus"``.
        weight_bits: Of all weights, or None.
        act_bits: Of layer inputs and attention operands, or None; the image has 8 bits.
        scope: ``"whole"`` or ``"backbone"``.
        levels: ``"all"`` or ``"first"``: what sets the ranges of the proposal head.
        windows: ``"exact"`` or ``"released"``.
        progress: Called with each layer's report.
        options: Fields of :class:`~vitq.papers.erq2024.options.ErqOptions`; they win. Layers of region vectors have
            the ridge of other linear layers (``vector_strength=None``): the released 0.1 is that of a classifier.
            ``chunk`` and ``workers`` have no effect here.

    Raises:
        InputError: An unknown choice, a model that is quantized already, or no image.
    """
    check_choice("method", method, tuple(METHODS))
    for name, value, choices in (("scope", scope, SCOPES), ("levels", levels, LEVELS), ("windows", windows, WINDOWS)):
        check_choice(name, value, choices)
    settings = ErqOptions.from_dict({"weight_bits": weight_bits, "act_bits": act_bits, "vector_strength": None,
                                     **PUBLISHED, **METHODS[method], **options})
    if settings.data_path != "fp_inputs":
        raise InputError(f"data_path={settings.data_path!r}: detectors are quantized on 'fp_inputs' alone")
    batches = _single(images)
    begin = time.perf_counter()
    model, part = attach(model, settings, scope)
    device = next(model.parameters()).device
    if act_bits is not None:
        _set_ranges(model, part, batches[: settings.calibration_images], levels, device)
        reparameterize(part, settings, windows)
    ranges = time.perf_counter()
    data = _moments(model, part, batches)
    moments = time.perf_counter()
    reports = _correct(data, settings, progress)
    end = time.perf_counter()
    seconds = {"ranges": ranges - begin, "moments": moments - ranges, "layers": end - moments, "total": end - begin}
    return Quantized(model, reports, seconds, len(batches), _peak_memory())


def attach(model: nn.Module, options: ErqOptions, scope: str,
           prepare: Callable[[nn.Module, ErqOptions], nn.Module] = prepare) -> tuple[nn.Module, nn.Module]:
    """A copy of a detector with uncalibrated quantizers, and the part of it that has them."""
    if scope == "whole":
        model = part = prepare(model, options)
    else:
        if hasattr(model, "quantization"):
            raise InputError("model is quantized already; give the float model")
        model = copy.deepcopy(model).eval().requires_grad_(False)
        model.backbone = part = prepare(model.backbone, options)
    model.quantization = {"scope": scope, "options": options.to_dict()}
    return model, part


def rebuild(model: nn.Module, quantization: dict) -> nn.Module:
    """The quantized structure of a float detector, ready to take the state of one that was quantized before.

    Args:
        model: Float.
        quantization: ``scope`` and ``options``, as the attribute ``quantization`` of a quantized detector has them.
    """
    return attach(model, ErqOptions.from_dict(quantization["options"]), quantization["scope"], erq_rebuild)[0]


def _single(images: ImageBatch | list[ImageBatch]) -> list[ImageBatch]:
    """Batches of one image each, without the padding that a larger one brought."""
    batches = [images] if isinstance(images, ImageBatch) else list(images)
    if not batches or not all(isinstance(batch, ImageBatch) and len(batch) for batch in batches):
        raise InputError("images: give an ImageBatch, or a list of such, with at least one image")
    return [ImageBatch(batch.images[row:row + 1], batch.sizes[row:row + 1], batch.originals[row:row + 1],
                       batch.scales[row:row + 1]) for batch in batches for row in range(len(batch))]


@torch.no_grad()
def _set_ranges(model: nn.Module, part: nn.Module, batches: list[ImageBatch], levels: str,
                device: torch.device) -> None:
    """Ranges in one pass over all images; later layers see quantized inputs."""
    batch = ImageBatch.join(batches).to(device)
    with followed(part, layer_names(part), "ranges"):
        if part is not model:
            return calibrate(part, batch.images)
        if levels == "all":
            calibrate_levels(model.rpn.head, model.features(batch.images))
        _finding(model, lambda: calibrate(model, batch))


def calibrate_levels(head: nn.Module, maps: tuple[Tensor, ...]) -> None:
    """Ranges of the proposal head's inputs by their values on all levels, layer after layer.

    Args:
        head: Prepared, uncalibrated.
        maps: Pyramid, (B, C, H, W) each.
    """
    layers = [head.conv[0][0], head.cls_logits, head.bbox_pred]
    for layer in layers:
        getattr(layer, INPUT).forward = _pass
    for now in (layers[:1], layers[1:]):  # both of the second step read the first's output
        seen: list[list[Tensor]] = [[] for _ in now]
        handles = [getattr(layer, INPUT).register_forward_pre_hook(_into(own))
                   for layer, own in zip(now, seen, strict=True)]
        head(list(maps))
        for layer, own, handle in zip(now, seen, handles, strict=True):
            handle.remove()
            del getattr(layer, INPUT).forward
            getattr(layer, INPUT).initialize(torch.cat(own))


def _into(seen: list[Tensor]) -> Callable:
    return lambda _, args: seen.append(args[0].flatten())


def reparameterize(part: nn.Module, options: ErqOptions, windows: str = "exact") -> None:
    """Fold channel-wise ranges behind LayerNorm, in place; ``"released"`` as if windows were never padded."""
    for pair in pairs(part, options):
        norm, linear = part.get_submodule(pair.norm), part.get_submodule(pair.linear)
        make_room(norm, linear, pair.padded)
        reparameterize_layernorm(norm, linear, getattr(linear, INPUT), options.round_zero_point,
                                 pair.padded and windows == "exact")


def _moments(model: nn.Module, part: nn.Module, batches: list[ImageBatch]) -> dict[str, RegionData]:
    names = layer_names(part)
    with followed(part, names, "moments", len(batches)):
        if part is not model:
            return collect(part, names, [batch.images for batch in batches])
        return _finding(model, lambda: collect(model, names, batches))


def _correct(data: dict[str, RegionData], options: ErqOptions,
             progress: Callable[[LayerReport], None] | None) -> list[LayerReport]:
    from tqdm import tqdm

    reports = []
    for name in tqdm(list(data), "layers", unit="layer", leave=False, disable=None):
        own = data.pop(name)
        reports.append((correct_wide if own.kept else correct_layer)(name, own, options))
        if progress is not None:
            progress(reports[-1])
    return reports


def _finding(model: nn.Module, work: Callable):
    """Do something that needs every head; where nothing is found in the images, again with all detections."""
    try:
        return work()
    except InputError as error:
        if "was not reached" not in str(error):
            raise
    with _threshold(model, 0.0):
        return work()


@contextmanager
def _threshold(model: nn.Module, value: float) -> Iterator[None]:
    before, model.roi.score_threshold = model.roi.score_threshold, value
    try:
        yield
    finally:
        model.roi.score_threshold = before
