"""ERQ and its baselines on a whole network: one function a method, all with the same signature.

Order of work, as in the released code: activation ranges on the first images in one pass, reparameterization, moments
of every layer in one pass of the float network, then each layer for itself: Aqer, the weight's range, the rounding.
"""

import itertools
import resource
import sys
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from vitq.errors import InputError
from vitq.papers.erq2024.collect import collect, rebatch
from vitq.papers.erq2024.correct import LayerReport, correct_layer
from vitq.papers.erq2024.options import ErqOptions
from vitq.papers.erq2024.prepare import calibrate, layer_names, prepare, reparameterize

if TYPE_CHECKING:
    import pandas

Progress = Callable[[LayerReport], None]


@dataclass
class Quantized:
    """A quantized model and what was done to it.

    Attributes:
        model: In evaluation mode; weights lie on their grids.
        layers: One report a layer, in model order.
        seconds: Wall time by phase: ``"ranges"``, ``"moments"``, ``"layers"``, ``"total"``.
        images: Images seen.
        peak_memory: Largest resident memory of the process so far, in MB.
    """

    model: nn.Module
    layers: list[LayerReport]
    seconds: dict[str, float] = field(default_factory=dict)
    images: int = 0
    peak_memory: float = 0.0

    def table(self) -> "pandas.DataFrame":
        """One row a layer."""
        import pandas

        return pandas.DataFrame([asdict(layer) for layer in self.layers])


def run(model: nn.Module, images: Tensor | Iterable, options: ErqOptions,
        progress: Progress | None = None) -> Quantized:
    """Quantize a copy of ``model``.

    Args:
        model: Float timm model: ViT, DeiT, Swin or a CNN.
        images: Normalized calibration images, a tensor (N, C, H, W) or batches of such (labels are ignored). How they
            are cut into batches makes no difference.
        options: What to do.
        progress: Called with each layer's report.
    """
    begin = time.perf_counter()
    model = prepare(model, options)
    device = next(model.parameters()).device
    parts = rebatch(images, options.chunk)
    first, count = [], 0
    for part in parts:
        first.append(part)
        count += len(part)
        if count >= options.calibration_images:
            break
    if not first:
        raise InputError("images is empty: calibration needs at least one image")
    if options.act_bits is not None:
        calibrate(model, torch.cat(first)[: options.calibration_images].to(device))
        reparameterize(model, options)
    ranges = time.perf_counter()
    counter = _Counted(itertools.chain(first, parts))
    names = layer_names(model)
    if options.data_path == "sequential":
        from vitq.papers.erq2024.sequential import correct_in_order

        layers, moments = correct_in_order(model, names, list(counter), options, progress), ranges
    else:
        data = collect(model, names, counter)
        moments = time.perf_counter()
        layers = _correct(data, options, progress)
    end = time.perf_counter()
    seconds = {"ranges": ranges - begin, "moments": moments - ranges, "layers": end - moments, "total": end - begin}
    return Quantized(model, layers, seconds, counter.images, _peak_memory())


class _Counted:
    """Passes batches on and counts their images."""

    def __init__(self, batches: Iterable[Tensor]) -> None:
        self.batches, self.images = batches, 0

    def __iter__(self):
        for batch in self.batches:
            self.images += len(batch)
            yield batch


def _correct(data: dict, options: ErqOptions, progress: Progress | None) -> list[LayerReport]:
    def work(name: str) -> LayerReport:
        report = correct_layer(name, data.pop(name), options)
        if progress is not None:
            progress(report)
        return report

    names = list(data)
    if options.workers == 1:
        return [work(name) for name in names]
    with ThreadPoolExecutor(options.workers) as pool:
        return list(pool.map(work, names))


def _peak_memory() -> float:
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20


def _method(summary: str, **fixed) -> Callable[..., Quantized]:
    def quantize(model: nn.Module, images: Tensor | Iterable, weight_bits: int | None = 4, act_bits: int | None = 4,
                 *, progress: Progress | None = None, **options) -> Quantized:
        values = {"weight_bits": weight_bits, "act_bits": act_bits, **fixed, **options}
        return run(model, images, ErqOptions.from_dict(values), progress)

    quantize.__doc__ = f"""{summary}

    Args:
        model: Float timm model; left as it was.
        images: Normalized calibration images, (N, C, H, W) or batches of such.
        weight_bits: Bits of the weights, or None.
        act_bits: Bits of layer inputs and attention operands, or None.
        progress: Called with the report of each layer.
        options: Fields of :class:`~vitq.papers.erq2024.options.ErqOptions`; they win over the method's own.
    """
    return quantize


quantize_nearest = _method("Rounding to nearest, one range for each layer's input.",
                           aqer=False, weights="nearest", reparameterize=False)
quantize_repq = _method("RepQ-ViT: reparameterized ranges behind LayerNorm, weights rounded to nearest.",
                        aqer=False, weights="nearest")
quantize_gptq = _method("GPTQ with RepQ-ViT's activation quantizers.", aqer=False, weights="gptq")
quantize_aqer = _method("Aqer alone: corrected weights, then rounded to nearest.", aqer=True, weights="nearest")
quantize_wqer = _method("Wqer alone: weights rounded half by half with refinement and ridge correction.",
                        aqer=False, weights="wqer")
quantize_erq = _method("ERQ: Aqer, then Wqer.", aqer=True, weights="wqer")
quantize_erq_plus = _method("ERQ+, the journal version: ERQ with dual uniform quantization of qkv and fc1.",
                            aqer=True, weights="wqer", dual=True)

METHODS: dict[str, Callable[..., Quantized]] = {
    "nearest": quantize_nearest, "repq": quantize_repq, "gptq": quantize_gptq, "aqer": quantize_aqer,
    "wqer": quantize_wqer, "erq": quantize_erq, "erq_plus": quantize_erq_plus,
}
