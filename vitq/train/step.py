"""One optimizer step: forward and backward in parts, the remedies' hooks, the update; no value leaves the device."""

import contextlib
from collections.abc import Callable

import torch
from torch import Tensor, nn

from vitq.errors import InputError
from vitq.train.callbacks import Callback, TrainState
from vitq.train.config import TrainConfig
from vitq.train.ranks import Ranks


class TrainingStep:
    """Callable `step(images (B, 3, H, W), labels, learning_rate) -> mean task loss of this rank's images`.

    The images of this rank are cut into `accumulation` parts; part losses are weighted so that the gradients add up
    to those of the mean over the whole batch, whatever the number of parts and ranks.
    """

    def __init__(self, model: nn.Module, loss: Callable, callbacks: Callback, state: TrainState, config: TrainConfig,
                 ranks: Ranks):
        self.model, self.state, self.callbacks, self.ranks, self.config = model, state, callbacks, ranks, config
        self.loss, self.needs_images = loss, getattr(loss, "needs_images", False)
        self.wrapped = ranks.wrap(model, config.compile)
        self.clipped = [p for p in model.parameters() if p.requires_grad] if config.clip is not None else []

    def __call__(self, images: Tensor, labels: Tensor, learning_rate: float) -> Tensor:
        total = self._gradients(images, labels)
        self.callbacks.after_backward(self.state)
        if self.clipped:
            nn.utils.clip_grad_norm_(self.clipped, self.config.clip)
        for group in self.state.optimizer.param_groups:
            group["lr"] = learning_rate
        for optimizer in self.state.optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        return total

    def _gradients(self, images: Tensor, labels: Tensor) -> Tensor:
        parts = self._parts(images, labels)
        total = None
        for number, (some, targets) in enumerate(parts):
            last = number == len(parts) - 1
            with self.ranks.accumulate(self.wrapped, last):
                loss = self._task_loss(some, targets)
                if len(parts) > 1:
                    loss = loss / len(parts)
                total = loss.detach() if total is None else total + loss.detach()
                if last:
                    extra = self.callbacks.loss(self.state)
                    loss = loss if extra is None else loss + extra
                loss.backward()
        return total

    def _parts(self, images: Tensor, labels: Tensor) -> list[tuple[Tensor, Tensor]]:
        device, expected = self.state.device, self.config.batch_size // self.ranks.count
        if len(labels) != expected:
            raise InputError(f"train_data: a batch of {len(labels)} images; give {expected}, that is train.batch_size "
                             "over the number of ranks")
        layout = torch.channels_last if self.config.channels_last and images.ndim == 4 else torch.preserve_format
        images = images.to(device, non_blocking=True, memory_format=layout)
        labels = labels.to(device, non_blocking=True)
        pieces = self.config.accumulation
        return list(zip(images.chunk(pieces), labels.chunk(pieces), strict=True))

    def _task_loss(self, images: Tensor, labels: Tensor) -> Tensor:
        with self._autocast():
            logits = self.wrapped(images)
            logits = tuple(head.float() for head in logits) if isinstance(logits, tuple) else logits.float()
            return self.loss(logits, labels, images) if self.needs_images else self.loss(logits, labels)

    def _autocast(self) -> contextlib.AbstractContextManager:
        if self.config.precision == "no":
            return contextlib.nullcontext()
        return torch.autocast(self.state.device.type, torch.bfloat16)
