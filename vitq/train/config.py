"""How long, how fast and how often: the settings of one training run."""

import dataclasses
import math
from dataclasses import dataclass
from typing import Any, Literal

from vitq.train.fields import check_types, from_mapping, require
from vitq.train.schedules import learning_rate


@dataclass(frozen=True)
class TrainConfig:
    """Settings of `fit`; they check themselves when made.

    `batch_size` is the number of images of one optimizer step, over all ranks and accumulated parts, so that a
    configuration means the same on one device and on many: each forward pass sees
    batch_size / (ranks * accumulation) images. Defaults follow Nagel et al. (2022), section 7.2 of their code.

    Args:
        steps: optimizer steps; give either this or `epochs`.
        epochs: passes over the training images, without the `cooldown_epochs`.
        batch_size: images per optimizer step.
        learning_rate: peak rate of the main optimizer.
        momentum: of SGD.
        weight_decay: on all parameters of the main optimizer, or without norms and biases by `decay`.
        optimizer: "sgd" or "adamw" (betas 0.9 and 0.999, epsilon 1e-8).
        decay: "all", "weights" (norm parameters and biases, that is tensors of one dimension, excluded) or
            "transformer" (also class and distillation tokens, position embeddings and all parameters of quantizers;
            relative-position tables decay, as in Liu et al. 2023).
        schedule: "cosine" (to `min_learning_rate`) or "constant".
        schedule_per: "step", or "epoch" for a cosine that moves at epoch boundaries only.
        warmup_steps: steps of linear warm-up.
        min_learning_rate: rate at the end of the cosine.
        warmup_epochs: first epochs that rise linearly instead of following the cosine, which is not shifted; with
            `schedule_per: epoch`.
        warmup_learning_rate: rate of the first of these epochs.
        cooldown_epochs: epochs at `min_learning_rate` after the cosine, on top of `epochs`; with `schedule_per: epoch`.
        scale_learning_rate: constant rate of the separate Adam of the quantizer scales, without weight decay;
            "with_weights" trains them by the main optimizer.
        label_smoothing: of the cross-entropy, in [0, 1).
        precision: "no" for float32 or "bf16" for autocast.
        accumulation: parts into which a batch is cut, to save memory.
        clip: largest gradient norm; None for no clipping.
        log_every: steps between two lines of the log.
        checkpoint_every: steps between two checkpoints; None for each epoch, 0 for the end only.
        evaluate_every: steps between two evaluations; None for each epoch, 0 for the end only.
        compile: run the model through torch.compile.
        channels_last: keep images and convolutions in channels-last layout, which the convolutions of a CPU and of a
            GPU in bf16 run faster in (a third less time a step for the micro MobileNet).
        device: "auto", "cpu" or "cuda".
        ema: decay of a moving average of the weights, in (0, 1), evaluated beside them (metrics that end in `_ema`) and
            kept in the checkpoints; None for none.
        tensorboard: write the log for TensorBoard too, into the folder `tensorboard` of the run.
        augment: of training batches, see `vitq.data.batches`; None for the data set's own.

    Raises:
        InputError: naming the field, its value and what to do.
    """

    steps: int | None = None
    epochs: int | None = None
    batch_size: int = 128
    learning_rate: float = 0.01
    momentum: float = 0.9
    weight_decay: float = 0.0
    optimizer: Literal["sgd", "adamw"] = "sgd"
    decay: Literal["all", "weights", "transformer"] = "all"
    schedule: Literal["cosine", "constant"] = "cosine"
    schedule_per: Literal["step", "epoch"] = "step"
    warmup_steps: int = 0
    min_learning_rate: float = 0.0
    warmup_epochs: int = 0
    warmup_learning_rate: float = 1e-6
    cooldown_epochs: int = 0
    scale_learning_rate: float | Literal["with_weights"] = 1e-5
    label_smoothing: float = 0.0
    precision: Literal["no", "bf16"] = "no"
    accumulation: int = 1
    clip: float | None = None
    log_every: int = 50
    checkpoint_every: int | None = None
    evaluate_every: int | None = 0
    compile: bool = False
    channels_last: bool = True
    device: Literal["auto", "cpu", "cuda"] = "auto"
    augment: bool | int | None = None
    ema: float | None = None
    tensorboard: bool = False

    def __post_init__(self) -> None:
        check_types(self, "train")
        require((self.steps is None) != (self.epochs is None), "train", "steps", self.steps,
                f"with epochs={self.epochs!r}; give exactly one of steps and epochs")
        for name in ("steps", "epochs", "batch_size", "accumulation", "log_every"):
            value = getattr(self, name)
            require(value is None or value >= 1, "train", name, value, "give at least 1")
        for name in ("warmup_steps", "checkpoint_every", "evaluate_every", "weight_decay", "min_learning_rate",
                     "warmup_epochs", "warmup_learning_rate", "cooldown_epochs"):
            value = getattr(self, name)
            require(value is None or 0 <= value < math.inf, "train", name, value, "give 0 or more")
        for name in ("learning_rate", "scale_learning_rate", "clip"):
            value = getattr(self, name)
            require(value is None or isinstance(value, str) or 0 < value < math.inf, "train", name, value,
                    "give a positive finite number")
        for name in ("momentum", "label_smoothing"):
            value = getattr(self, name)
            require(0 <= value < 1, "train", name, value, "give a number in [0, 1)")
        require(self.ema is None or 0 < self.ema < 1, "train", "ema", self.ema, "give a number in (0, 1)")
        require(self.batch_size % self.accumulation == 0, "train", "accumulation", self.accumulation,
                f"give a divisor of batch_size={self.batch_size}")
        self._check_schedule()

    def _check_schedule(self) -> None:
        require(self.min_learning_rate <= self.learning_rate, "train", "min_learning_rate", self.min_learning_rate,
                f"give at most learning_rate={self.learning_rate!r}")
        for name in ("warmup_epochs", "cooldown_epochs"):
            value = getattr(self, name)
            require(not value or self.schedule_per == "epoch", "train", name, value,
                    "give schedule_per: epoch with it")
        require(not self.warmup_epochs or not self.warmup_steps, "train", "warmup_epochs", self.warmup_epochs,
                f"with warmup_steps={self.warmup_steps}; give one of them")
        require(not self.cooldown_epochs or self.epochs is not None, "train", "cooldown_epochs", self.cooldown_epochs,
                "give epochs, not steps, with it")

    @classmethod
    def from_dict(cls, mapping: dict[str, Any]) -> "TrainConfig":
        """Build from a mapping such as a YAML section; unknown keys are refused."""
        return from_mapping(cls, mapping, "train")

    def to_dict(self) -> dict[str, Any]:
        """Plain mapping of all fields."""
        return dataclasses.asdict(self)

    def total_steps(self, steps_per_epoch: int) -> int:
        """Optimizer steps of the run."""
        return self.steps if self.steps is not None else (self.epochs + self.cooldown_epochs) * steps_per_epoch

    def cut(self, steps: int, **changes: Any) -> "TrainConfig":
        """The same settings for so many steps only, with further fields changed."""
        return dataclasses.replace(self, epochs=None, steps=steps, cooldown_epochs=0, **changes)

    def rate(self, step: int, total: int, steps_per_epoch: int) -> float:
        """Learning rate of the main optimizer in its step number `step` of `total`, counted from 0."""
        return learning_rate(
            step, total, self.learning_rate, schedule=self.schedule, warmup=self.warmup_steps,
            steps_per_epoch=steps_per_epoch if self.schedule_per == "epoch" else None, floor=self.min_learning_rate,
            warmup_epochs=self.warmup_epochs, warmup_from=self.warmup_learning_rate,
            cooldown_epochs=self.cooldown_epochs)
