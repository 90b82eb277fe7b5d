r"""Multi-crop knowledge distillation (VVTQ 2023, section 3 of the method; soft labels as in FKD).

A strong teacher labels many crops of every training image once, before training; the student then learns from M stored
crops of each image that it reads. No teacher runs during training, and reading and decoding an image is paid once for
M crops. The loss is the soft cross-entropy

.. math:: L_{KD} = -\frac{1}{BM} \sum_{b,m} \sum_c p_T(c \mid x_{bm}) \log p_S(c \mid x_{bm})

at temperature 1 and without a term for the hard label. A pass over the images with M crops counts as M epochs.
"""

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

from vitq.data.multi_crop import Batch, MultiCropSource
from vitq.errors import InputError
from vitq.train.config import TrainConfig


class SoftCrossEntropy(nn.Module):
    """Mean over the batch of the cross-entropy of logits (B, C) against distributions (B, C).

    It equals the KL divergence plus the entropy of the labels, so it does not fall to 0; against one-hot labels it is
    the ordinary cross-entropy. Labels given as class indices, int64 (B,), are taken as one-hot.
    """

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(logits, labels)


@dataclass(frozen=True)
class Pass:
    """One pass over the images: the epoch index at its start, crops of each image, optimizer steps."""

    epoch: int
    crops: int
    steps: int


def epoch_plan(images: int, batch_size: int, epochs: int = 150, crops: int = 4, warmup_epochs: int = 0) -> list[Pass]:
    """The passes of a training run of so many epochs (section 3.3, spec test T13).

    A pass with M crops of each image counts as M epochs. Warm-up epochs have a single crop, and from epoch E - M on the
    tail has too: with E = 150 and M = 4 there are 37 passes, at epochs 0, 4, ..., 144, and single-crop epochs 148, 149.

    Args:
        images: Training images.
        batch_size: Crops in an optimizer step; a pass of M crops takes ceil(batch_size / M) images a step.
        epochs: E.
        crops: M.
        warmup_epochs: Epochs with a single crop at the start.

    Returns:
        Passes in order; their crops sum to `epochs`.

    Raises:
        InputError: Naming the argument.
    """
    given = {"images": images, "batch_size": batch_size, "epochs": epochs, "crops": crops}
    for name, value in given.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise InputError(f"{name} must be a whole number of at least 1, got {value!r}")
    if not 0 <= warmup_epochs <= epochs:
        raise InputError(f"warmup_epochs must lie between 0 and epochs={epochs}, got {warmup_epochs}")
    passes, epoch = [], 0
    while epoch < epochs:
        each = 1 if epoch < warmup_epochs or epoch >= epochs - crops else crops
        passes.append(Pass(epoch, each, math.ceil(images / math.ceil(batch_size / each))))
        epoch += each
    return passes


def pass_learning_rate(epoch: int, epochs: int, peak: float) -> float:
    """Learning rate of the pass that starts at an epoch index: peak / 2 * (1 + cos(pi * epoch / epochs)).

    The released code steps the schedule before each single-crop epoch at the end instead of after it, so that its last
    epoch trains with a learning rate of 0; here every epoch has the rate of its own index.

    Args:
        epoch: Epoch index at the start of the pass.
        epochs: E.
        peak: Highest learning rate.
    """
    return peak / 2 * (1 + math.cos(math.pi * epoch / epochs))


@dataclass(frozen=True)
class PassConfig(TrainConfig):
    """Settings of `fit` on a `MultiCropDistillation`; made by its `settings`.

    With `schedule_per: epoch` the learning rate is that of the epoch at which a pass starts, see `pass_learning_rate`;
    `min_learning_rate`, `warmup_epochs` and `warmup_learning_rate` count the same epochs.

    Args:
        passes: Of the run, in order.
    """

    passes: tuple[Pass, ...] = ()

    def rate(self, step: int, total: int, steps_per_epoch: int) -> float:
        if self.schedule_per == "step":
            return super().rate(step, total, steps_per_epoch)
        epochs = self.passes[-1].epoch + self.passes[-1].crops
        return super().rate(self._epoch(step), epochs, 1)

    def _epoch(self, step: int) -> int:
        for part in self.passes:
            if step < part.steps:
                return part.epoch
            step -= part.steps
        return self.passes[-1].epoch


class MultiCropDistillation:
    """A whole training run on stored soft labels as one source: multi-crop passes, then single-crop epochs.

    For `vitq.train.fit` an epoch is a pass with M crops, and the single-crop epochs at the end, which are shorter,
    share the last one (so do those of a warm-up the first, with the beginning of the first pass). Hence the number of
    the pass is `TrainState.epoch`, evaluation and checkpoints come once a pass, and a run goes on anywhere. Give `fit`
    the settings of `settings` and the loss `loss`.

    Args:
        source: Reads the data with M crops of each image.
        epochs: E, counted in single crops.
        warmup_epochs: Epochs with a single crop at the start.
    """

    def __init__(self, source: MultiCropSource, epochs: int, warmup_epochs: int = 0):
        self.sources = {each: source if each == source.crops else source.with_crops(each)
                        for each in (source.crops, 1)}  # fmt: skip
        self.epochs, self.loss = epochs, SoftCrossEntropy()
        self.plan = epoch_plan(len(source.dataset), source.batch_size, epochs, source.crops, warmup_epochs)
        self.steps = sum(part.steps for part in self.plan)

    def settings(self, config: TrainConfig) -> PassConfig:
        """Settings with the steps of this run in the place of `epochs`, and the learning rate of its passes."""
        fields = config.to_dict() | {"epochs": None, "steps": self.steps}
        return PassConfig(**fields, passes=tuple(self.plan))

    def __len__(self) -> int:
        return max(part.steps for part in self.plan)

    def iterate(self, epoch: int = 0, start: int = 0) -> Iterator[Batch]:
        """The batches of an epoch, as `fit` counts them, from number `start` on; none after the end of the run."""
        begin, end = epoch * len(self) + start, min((epoch + 1) * len(self), self.steps)
        for part in self.plan:
            if max(begin, 0) < min(end, part.steps):
                batches = self.sources[part.crops].iterate(part.epoch, max(begin, 0))
                yield from itertools.islice(batches, min(end, part.steps) - max(begin, 0))
            begin, end = begin - part.steps, end - part.steps
