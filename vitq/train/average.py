"""Moving average of the weights (EMA), kept beside those that are trained."""

import copy

import torch
from torch import Tensor, nn

from vitq.train.callbacks import Callback, TrainState


class WeightAverage(Callback):
    """`average = decay * average + (1 - decay) * weights` after every step, by timm's `ModelEmaV3`.

    Parameters and floating-point buffers are averaged, scales of quantizers and statistics of batch norm among them;
    other buffers are copied. The first step copies everything.

    Args:
        decay: in (0, 1).
    """

    def __init__(self, decay: float):
        self.decay, self.ema = decay, None

    @property
    def model(self) -> nn.Module:
        """The network with averaged weights, in evaluation mode."""
        return self.ema.module

    def on_start(self, state: TrainState) -> None:
        from timm.utils import ModelEmaV3

        self.ema = ModelEmaV3(state.model, self.decay)

    def after_step(self, state: TrainState) -> None:
        if len(state.model.state_dict()) != len(self.model.state_dict()):  # freezing adds its masks when it begins
            self._grow(state.model)
        self.ema.update(state.model, state.step)

    @torch.no_grad()
    def _grow(self, model: nn.Module) -> None:
        """Take over what the network has gained, and keep the averages."""
        kept = self.model.state_dict()
        self.ema.module = copy.deepcopy(model).eval()
        for name, value in self.model.state_dict().items():
            if name in kept:
                value.copy_(kept[name])

    def state_dict(self) -> dict[str, Tensor]:
        return dict(self.model.state_dict())

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self.model.load_state_dict(state)
