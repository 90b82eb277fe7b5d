"""What a remedy sees of training: four hooks and the state of the run."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn


@dataclass
class TrainState:
    """The run as a callback sees it; one object for the whole run.

    `step` counts completed optimizer steps: in `loss` and `after_backward` of the k-th step it is k - 1, in
    `after_step` it is k. `batches()` starts a fresh pass over training batches (images, labels) on `device` and does
    not touch the training order. `model` is the bare model, without the wrappers of data parallelism or compilation.
    """

    model: nn.Module
    device: torch.device
    total_steps: int
    optimizers: list[torch.optim.Optimizer] = field(default_factory=list)
    batches: Callable[[], Iterable] | None = None
    step: int = 0
    epoch: int = 0

    @property
    def optimizer(self) -> torch.optim.Optimizer:
        """The main optimizer; the one of the quantizer scales, if separate, follows it in `optimizers`."""
        return self.optimizers[0]


class Callback:
    """Base class of everything a paper adds to training; every method does nothing by default.

    The hooks run in the order in which the callbacks were given to `fit`. No hook but `metrics`, `state_dict` and
    `before_evaluation` may move a value from the device to Python: that would stall each training step.
    """

    def on_start(self, state: TrainState) -> None:
        """Once, the model being on its device; on resume before `load_state_dict`."""

    def loss(self, state: TrainState) -> Tensor | None:
        """Extra loss term (scalar tensor, a function of the parameters) once per optimizer step; None for none."""

    def after_backward(self, state: TrainState) -> None:
        """Once per optimizer step: gradients complete, averaged over ranks, not yet clipped."""

    def after_step(self, state: TrainState) -> None:
        """Once per optimizer step, the parameters being updated."""

    def before_evaluation(self, state: TrainState) -> None:
        """Before each evaluation of the model being trained."""

    def metrics(self) -> dict[str, Tensor | float]:
        """Values for the log, asked for at logging and evaluation time only."""
        return {}

    def state_dict(self) -> dict[str, Tensor]:
        """Tensors that a resumed run needs, by name; they enter checkpoints bit for bit."""
        return {}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Restore what `state_dict` returned."""


class CallbackList(Callback):
    """Several callbacks as one, called in the order given."""

    def __init__(self, callbacks: Iterable[Callback] = ()):
        self.callbacks = list(callbacks)

    def on_start(self, state: TrainState) -> None:
        for callback in self.callbacks:
            callback.on_start(state)

    def loss(self, state: TrainState) -> Tensor | None:
        total = None
        for callback in self.callbacks:
            term = callback.loss(state)
            if term is not None:
                total = term if total is None else total + term
        return total

    def after_backward(self, state: TrainState) -> None:
        for callback in self.callbacks:
            callback.after_backward(state)

    def after_step(self, state: TrainState) -> None:
        for callback in self.callbacks:
            callback.after_step(state)

    def before_evaluation(self, state: TrainState) -> None:
        for callback in self.callbacks:
            callback.before_evaluation(state)

    def metrics(self) -> dict[str, Tensor | float]:
        return {name: value for callback in self.callbacks for name, value in callback.metrics().items()}

    def state_dict(self) -> dict[str, Tensor]:
        return {f"{self._key(index)}.{name}": tensor for index, callback in enumerate(self.callbacks)
                for name, tensor in callback.state_dict().items()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        for index, callback in enumerate(self.callbacks):
            prefix = self._key(index) + "."
            callback.load_state_dict({k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)})

    def _key(self, index: int) -> str:
        return f"{index}_{type(self.callbacks[index]).__name__}"
