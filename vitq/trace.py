"""Training callback that keeps the last steps of a few single weights (Nagel 2022, Fig. 2)."""

import torch
from torch import Tensor

from vitq.convert import weight_quantizers
from vitq.errors import InputError
from vitq.train.callbacks import Callback, TrainState


class WeightTrace(Callback):
    """Records latent weights, in steps of the grid, and codes of one layer after every optimizer step.

    Args:
        layer: Module path of a quantized layer.
        channel: Output channel whose weights are recorded; ``None`` for all channels. That makes k weights.
        last: Number of steps to keep, counted from the end of the run.

    Attributes:
        latent: float32 (last, k), in steps of the grid (w/s). codes: int8 (last, k). Row i is step
            ``total - last + i + 1``.
    """

    def __init__(self, layer: str, channel: int | None = None, last: int = 200) -> None:
        if last < 1:
            raise InputError(f"last={last!r}: give at least 1 step")
        self.layer, self.channel, self.last = layer, channel, last

    def on_start(self, state: TrainState) -> None:
        sites = weight_quantizers(state.model)
        if self.layer not in sites:
            raise InputError(f"layer={self.layer!r} is not quantized; choose one of {', '.join(sites)}")
        self.site = sites[self.layer]
        channels = self.site.shape[0]
        if self.channel is not None and not 0 <= self.channel < channels:
            raise InputError(f"channel={self.channel!r}: the layer has {channels} output channels")
        k = self.site.shape.numel() // (1 if self.channel is None else channels)
        self.latent = torch.zeros(self.last, k, device=state.device)
        self.codes = torch.zeros(self.last, k, dtype=torch.int8, device=state.device)

    @torch.no_grad()
    def after_step(self, state: TrainState) -> None:
        row = state.step - 1 - (state.total_steps - self.last)
        if row >= 0:
            weight, quantizer = self.site.latent, self.site.quantizer
            part = slice(None) if self.channel is None else self.channel
            self.latent[row] = quantizer.position(weight)[part].flatten()
            self.codes[row] = quantizer.codes(weight)[part].flatten()

    def state_dict(self) -> dict[str, Tensor]:
        return {"latent": self.latent, "codes": self.codes}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self.latent.copy_(state["latent"])
        self.codes.copy_(state["codes"])
