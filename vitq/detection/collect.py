r"""Data of a detector's layers in bounded memory, at images of 800 x 1333 pixels and 1000 regions.

The sums are those of :mod:`vitq.papers.erq2024.collect`. Two things are too large for the way it goes about them:

- Unfolded, the input of a 3 x 3 convolution on the finest level has 140 million values. A strip of lines is unfolded at
  a time.
- The first linear layer of a box head has 12,544 inputs, so that :math:`A^\top A` and its factors take 1.3 GB each, and
  1000 rows of data an image. The rows themselves are kept as long as there are fewer of them than inputs;
  :mod:`vitq.detection.wide` works on them.
"""

import copy
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vitq.convert import INPUT
from vitq.errors import InputError
from vitq.papers.erq2024 import rows
from vitq.papers.erq2024.collect import LayerData
from vitq.papers.erq2024.moments import Moments
from vitq.papers.erq2024.prepare import floating
from vitq.quantizers.affine import Affine

PIECE = 4 * 2**20  # values of input, unfolded, that are worked on at a time
WIDE = 4096  # inputs; a linear layer with more keeps its rows while they are fewer


@dataclass
class RegionData(LayerData):
    """What is known of a layer of a detector.

    Attributes:
        kept: Quantized inputs (n, I) and float outputs (n, O) of each call, of a wide layer with few rows; then there
            are no moments.
    """

    kept: list[tuple[Tensor, Tensor]] = field(default_factory=list)

    @property
    def reached(self) -> bool:
        """Whether anything came."""
        return self.moments is not None or bool(self.kept)

    @property
    def step(self) -> float | None:
        """All quantized inputs are integers times this, if they have one scale and a whole zero point."""
        quantizer = getattr(self.module, INPUT, None)
        plain = isinstance(quantizer, Affine) and quantizer.channel_axis is None and not quantizer.fractional
        return quantizer.scale.item() if plain else None

    @torch.no_grad()
    def update(self, x: Tensor, y: Tensor) -> None:
        """Add the float input and output of one call."""
        self.kind = rows.kind(self.module, x)
        quantizer = getattr(self.module, INPUT, None)
        quantized = x if quantizer is None else quantizer.fake_quantize(x)
        if self.moments is None and self._keeps():
            self.kept.append((quantized.flatten(0, -2), y.flatten(0, -2)))  # (n, I), (n, O)
            if sum(len(own) for own, _ in self.kept) > self.module.in_features:
                pairs, self.kept = self.kept, []
                for own, out in pairs:
                    self._add(own[None], out[None], self.step)
            return
        self.by_inputs = self.kind != "conv" and self.module.out_features > self.module.in_features
        if self.kind == "conv":
            parts = strips(self.module, quantized, y)
        else:
            target = x if self.by_inputs else y
            size = max(1, PIECE // x.shape[-1])
            parts = zip(rows.input_rows(self.module, quantized).split(size, 1),
                        rows.input_rows(self.module, target).split(size, 1), strict=True)
        step = self.step
        for own, out in parts:
            self._add(own, out, step)
        if self.by_inputs:  # the energy is that of the outputs all the same
            self.energy += y.double().square().sum()

    def _keeps(self) -> bool:
        module = self.module
        return isinstance(module, nn.Linear) and module.in_features > WIDE and module.bias is not None

    def _add(self, own: Tensor, out: Tensor, step: float | None) -> None:
        if self.moments is None:
            self.moments = Moments(own.shape[-1], out.shape[-1], len(own), own.device)
            self.energy = torch.zeros((), dtype=torch.float64, device=own.device)
        self.moments.update(own, out, step)
        if not self.by_inputs:
            self.energy += out.double().square().sum()


def strips(module: nn.Conv2d, x: Tensor, y: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Rows of unfolded input (groups, n, I) and of output (groups, n, O), at most ``PIECE`` values of input at a time.

    Args:
        module: Padded with zeros, if at all.
        x: (B, C, H, W).
        y: (B, O, H', W').
    """
    bare = copy.copy(module)
    bare.padding = (0, 0)
    down, right = module.padding
    reach = module.dilation[0] * (module.kernel_size[0] - 1) + 1
    line = module.weight[0].numel() * module.groups * y.shape[-1]  # values of one line of one image
    images = max(1, PIECE // line)
    for own, out in zip(x.split(images), y.split(images), strict=True):
        own = F.pad(own, (right, right, down, down))
        lines = max(1, PIECE // (line * len(own)))
        for begin in range(0, out.shape[2], lines):
            part = out[:, :, begin:begin + lines]
            first, last = begin * module.stride[0], (begin + part.shape[2] - 1) * module.stride[0]
            yield rows.input_rows(bare, own[:, :, first:last + reach]), rows.output_rows(bare, part)


@torch.no_grad()
def collect(model: nn.Module, names: list[str], batches: Iterable) -> dict[str, RegionData]:
    """Layer data by path; one forward pass of the float network a batch, on the model's device.

    Args:
        model: Calibrated and reparameterized; its weights are still in floating point.
        names: Layers.
        batches: Each with a method ``to``, as tensors have: what the model takes.
    """
    found = {name: RegionData(model.get_submodule(name)) for name in names}
    handles = [data.module.register_forward_hook(_updating(data)) for data in found.values()]
    device = next(model.parameters()).device
    try:
        with floating(model):
            for batch in batches:
                model(batch.to(device))
    finally:
        for handle in handles:
            handle.remove()
    for name, data in found.items():
        if not data.reached:
            raise InputError(f"model: {name} was not reached by the forward pass")
    return found


def _updating(data: RegionData) -> Callable:
    return lambda _, args, output: data.update(args[0], output)


@contextmanager
def followed(model: nn.Module, names: list[str], what: str, passes: int = 1) -> Iterator[None]:
    """Show a bar, in a terminal, of the layers that so many forward passes inside this block have reached."""
    from tqdm import tqdm

    seen: set[str] = set()

    def reach(name: str) -> None:
        if name == names[0]:
            seen.clear()
        if name not in seen and bar.n < bar.total:
            seen.add(name)
            bar.update()

    with tqdm(total=passes * len(names), desc=what, unit="layer", leave=False, disable=None) as bar:
        handles = [model.get_submodule(name).register_forward_hook(lambda *_, name=name: reach(name))
                   for name in names]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()
