"""The sequential data path: each layer is corrected on inputs that the layers before it, already quantized, make.

Not what is released; an ablation. The target is still the output of the float network. Both networks run up to the
layer for each layer, so the time grows with the square of the depth.
"""

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn

from vitq.papers.erq2024.collect import LayerData
from vitq.papers.erq2024.correct import LayerReport, correct_layer
from vitq.papers.erq2024.options import ErqOptions
from vitq.papers.erq2024.prepare import floating


class _Reached(Exception):
    """Ends a forward pass at the layer whose input and output it holds."""

    def __init__(self, x: Tensor, y: Tensor) -> None:
        super().__init__()
        self.x, self.y = x, y


def _stop(module: nn.Module, args: tuple, output: Tensor) -> None:
    raise _Reached(args[0], output)


def _at(model: nn.Module, name: str, images: Tensor) -> _Reached:
    """Input and output of a layer; nothing behind it is computed."""
    handle = model.get_submodule(name).register_forward_hook(_stop)
    try:
        model(images)
    except _Reached as found:
        return found
    finally:
        handle.remove()
    raise AssertionError(f"{name} was reached in an earlier pass but not in this one")


def call_order(model: nn.Module, names: list[str], images: Tensor) -> list[str]:
    """The layers in the order in which the forward pass calls them first."""
    order: dict[str, None] = {}
    handles = [model.get_submodule(name).register_forward_hook(lambda *_, name=name: order.setdefault(name))
               for name in names]
    try:
        model(images)
    finally:
        for handle in handles:
            handle.remove()
    return list(order)


@torch.no_grad()
def correct_in_order(model: nn.Module, names: list[str], batches: list[Tensor], options: ErqOptions,
                     progress: Callable[[LayerReport], None] | None = None) -> list[LayerReport]:
    """Correct and quantize every layer in place, in the order of the forward pass.

    Args:
        model: Calibrated and reparameterized.
        names: Layers.
        batches: (N, C, H, W) each.
        options: What to do.
        progress: Called with each layer's report.
    """
    device = next(model.parameters()).device
    reference, reports = copy.deepcopy(model), []
    with floating(reference):
        for name in call_order(model, names, batches[0][:1].to(device)):
            data = LayerData(model.get_submodule(name), project=False)
            for batch in batches:
                target = _at(reference, name, batch.to(device)).y
                data.update(_at(model, name, batch.to(device)).x, target)
            reports.append(correct_layer(name, data, options))
            if progress is not None:
                progress(reports[-1])
    return reports
