"""Moments of every layer in one pass of the float network: quantized inputs against full-precision outputs."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from vitq.convert import INPUT
from vitq.errors import InputError
from vitq.papers.erq2024 import rows
from vitq.papers.erq2024.moments import Moments
from vitq.papers.erq2024.prepare import floating
from vitq.quantizers.affine import Affine

PIECE = 8 * 2**20  # values of unfolded input that are worked on at a time


def rebatch(images: Tensor | Iterable, size: int) -> Iterator[Tensor]:
    """Batches of ``size`` images, however the images come: a tensor, batches, or batches with labels.

    Raises:
        InputError: There is no image, or an entry is not (N, C, H, W).
    """
    waiting, count = [], 0
    for batch in [images] if isinstance(images, Tensor) else images:
        batch = batch[0] if isinstance(batch, (tuple, list)) else batch
        if not isinstance(batch, Tensor) or batch.dim() != 4:
            raise InputError("images: give a tensor (N, C, H, W) or batches of such tensors")
        while len(batch):
            taken = min(size - count, len(batch))
            waiting.append(batch[:taken])
            batch, count = batch[taken:], count + taken
            if count == size:
                yield torch.cat(waiting)
                waiting, count = [], 0
    if waiting:
        yield torch.cat(waiting)


@dataclass
class LayerData:
    """What is known of a layer: its kind and its moments.

    Where a layer has more outputs than inputs, the float inputs take the place of the outputs as targets, and the
    weight is applied once, at the end: a quarter of the work for fc1. Only with ``project``, where the targets are the
    layer's own outputs.
    """

    module: nn.Module
    kind: str = "linear"
    moments: Moments | None = None
    energy: Tensor | None = None
    by_inputs: bool = False
    project: bool = True

    @torch.no_grad()
    def update(self, x: Tensor, y: Tensor) -> None:
        """Add the float input and output of one pass; x may instead be what a partly quantized network made."""
        self.kind = rows.kind(self.module, x)
        quantizer = getattr(self.module, INPUT, None)
        plain = isinstance(quantizer, Affine) and quantizer.channel_axis is None and not quantizer.fractional
        step = quantizer.scale.item() if plain else None
        quantized = x if quantizer is None else quantizer.fake_quantize(x)
        per_image = quantized[:1].numel() * _kernel(self.module)
        size = max(1, PIECE // max(per_image, 1)) if self.kind == "conv" else len(x)
        for own, floats, out in zip(quantized.split(size), x.split(size), y.split(size), strict=True):
            own, out = rows.input_rows(self.module, own), rows.output_rows(self.module, out)
            if self.moments is None:
                self.by_inputs = self.project and self.kind != "conv" and out.shape[-1] > own.shape[-1]
                targets = own.shape[-1] if self.by_inputs else out.shape[-1]
                self.moments = Moments(own.shape[-1], targets, len(own), x.device)
                self.energy = torch.zeros((), dtype=torch.float64, device=x.device)
            target = rows.input_rows(self.module, floats) if self.by_inputs else out
            self.moments.update(own, target, step)
            self.energy += out.double().square().sum()

    def finish(self) -> Moments:
        """The moments with the layer's outputs as targets. Call it while the weight is still the float one."""
        moments = self.moments
        if self.by_inputs:
            weight, bias = self.module.weight.detach(), self.module.bias
            moments = moments.project(weight[None], None if bias is None else bias.detach()[None])
        moments.energy = self.energy
        return moments


def _kernel(module: nn.Module) -> int:
    return module.kernel_size[0] * module.kernel_size[1] if isinstance(module, nn.Conv2d) else 1


@torch.no_grad()
def collect(model: nn.Module, names: list[str], batches: Iterable[Tensor]) -> dict[str, LayerData]:
    """Layer data by path; one forward pass of the float network a batch, on the model's device.

    Args:
        model: Calibrated and reparameterized; its weights are still in floating point.
        names: Layers.
        batches: (N, C, H, W) each.
    """
    found = {name: LayerData(model.get_submodule(name)) for name in names}

    def hook(name: str):
        return lambda module, args, output: found[name].update(args[0], output)

    handles = [data.module.register_forward_hook(hook(name)) for name, data in found.items()]
    device = next(model.parameters()).device
    try:
        with floating(model):
            for batch in batches:
                model(batch.to(device))
    finally:
        for handle in handles:
            handle.remove()
    unreached = [name for name, data in found.items() if data.moments is None]
    if unreached:
        raise InputError(f"model: {unreached[0]} was not reached by the forward pass")
    return found
