"""One run as a YAML file: data, model, quantization, training, remedies."""

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from vitq.data.augmentation import Augmentation
from vitq.errors import InputError, MissingError
from vitq.train.config import TrainConfig
from vitq.train.fields import check_types, config_hash, from_mapping, require


@dataclass(frozen=True)
class DataConfig:
    """Which images to train and test on.

    Args:
        name: as in `vitq.data.load`.
        path: folder of a data set that is not embedded.
        image_size: pixels; None for the data set's own.
        train_images: number of training images; None for all.
        test_images: number of test images; None for all.
        test_split: "test" or "val".
        seed: of generated images; not the seed of the run.
        crop_pct: share of the shorter side that evaluation crops of a folder set keep; None for the network's own.
        interpolation: of the resize of a folder set, "bilinear" or "bicubic"; None for the network's own.
        augmentation: fields of `vitq.data.augmentation.Augmentation` for the training images of a folder set; None for
            random crops and mirroring alone.
    """

    name: str = "digits"
    path: str | None = None
    image_size: int | None = None
    train_images: int | None = None
    test_images: int | None = None
    test_split: Literal["test", "val"] = "test"
    seed: int = 0
    crop_pct: float | None = None
    interpolation: Literal["bilinear", "bicubic"] | None = None
    augmentation: dict | None = None

    def __post_init__(self) -> None:
        check_types(self, "data")
        require(self.crop_pct is None or 0 < self.crop_pct <= 1, "data", "crop_pct", self.crop_pct,
                "give a share in (0, 1]")
        for name in ("image_size", "train_images", "test_images"):
            value = getattr(self, name)
            require(value is None or value >= 1, "data", name, value, "give at least 1, or null for the default")
        if self.augmentation is not None:
            require(self.name == "imagenet", "data", "augmentation", self.augmentation,
                    f"it is for image folders (name: imagenet), and {self.name} is none; leave it out")
            Augmentation.from_dict(self.augmentation)


@dataclass(frozen=True)
class TeacherConfig:
    """Distillation: from the network's own full-precision self, or from another model of the zoo.

    Args:
        model: "self" or a name of `vitq.zoo`.
        checkpoint: weights of that model.
        temperature: of the softmaxes.
        weight: share of the distillation term against the labels; 1 ignores the labels.
        kind: "soft" for the Kullback-Leibler divergence in these shares, or "hard_and_soft" for OFQ's sum of two
            cross-entropies, with the labels on the class head and with the teacher on the distillation head, if the
            network has two; it has neither temperature nor weight.
    """

    model: str = "self"
    checkpoint: str | None = None
    temperature: float = 1.0
    weight: float = 1.0
    kind: Literal["soft", "hard_and_soft"] = "soft"

    def __post_init__(self) -> None:
        check_types(self, "teacher")
        require(self.temperature > 0, "teacher", "temperature", self.temperature, "give a positive number")
        require(0 <= self.weight <= 1, "teacher", "weight", self.weight, "give a share in [0, 1]")
        for name in ("temperature", "weight"):
            value = getattr(self, name)
            require(self.kind == "soft" or value == 1, "teacher", name, value,
                    "kind: hard_and_soft has none; leave it out")

    @property
    def alone(self) -> bool:
        """Whether labels are not looked at."""
        return self.kind == "soft" and self.weight == 1


@dataclass(frozen=True)
class SoftLabelsConfig:
    """Training on stored crops and the soft labels of a teacher (VVTQ 2023), instead of the labels of the images.

    `train.epochs` counts as the paper does: a pass over the images with so many crops of each is as many epochs, and
    the rest is done with single crops. `train.batch_size` counts crops. With `schedule_per: epoch` the learning rate
    moves with the passes.

    Args:
        path: a store made by `vitq labels make` for the same images, or a folder of FKD's labels.
        kind: label format of an FKD folder, which its files do not tell: "marginal_smoothing" or "marginal_renorm";
            None to go by the name of the folder.
        crops: of each image in a pass.
        interpolation: of the resize of a crop, "bilinear" or "bicubic".
    """

    path: str | None = None
    kind: Literal["marginal_smoothing", "marginal_renorm"] | None = None
    crops: int = 4
    interpolation: Literal["bilinear", "bicubic"] = "bilinear"

    def __post_init__(self) -> None:
        check_types(self, "soft_labels")
        require(self.crops >= 1, "soft_labels", "crops", self.crops, "give at least 1")

    def check(self, train: TrainConfig, data: DataConfig, teacher: TeacherConfig | None) -> None:
        """Whether the rest of a run goes with soft labels."""
        with_labels = "it does not go with soft_labels; leave it out"
        require(teacher is None, "run", "teacher", getattr(teacher, "model", None), with_labels)
        require(data.augmentation is None, "data", "augmentation", data.augmentation,
                "soft labels belong to stored crops; leave it out")
        require(train.epochs is not None, "train", "epochs", train.epochs, "give epochs, not steps, with soft_labels")
        require(train.batch_size % self.crops == 0, "train", "batch_size", train.batch_size,
                f"it counts crops with soft_labels; give a multiple of soft_labels.crops={self.crops}")
        require(train.warmup_epochs <= (train.epochs or 0), "train", "warmup_epochs", train.warmup_epochs,
                f"give at most epochs={train.epochs}")
        require(train.schedule_per == "step" or not train.warmup_steps, "train", "warmup_steps", train.warmup_steps,
                "with schedule_per: epoch and soft_labels give warmup_epochs")
        for name in ("label_smoothing", "cooldown_epochs"):
            require(not getattr(train, name), "train", name, getattr(train, name), with_labels)
        require(train.augment is None, "train", "augment", train.augment, with_labels)


@dataclass(frozen=True)
class ReestimationConfig:
    """Batch-norm re-estimation before the final evaluation: number of training batches, 0 for none."""

    batches: int = 50

    def __post_init__(self) -> None:
        check_types(self, "bn_reestimation")
        require(self.batches >= 0, "bn_reestimation", "batches", self.batches, "give 0 or more")


@dataclass(frozen=True)
class RunConfig:
    """All that determines the result of `run`; sections may be given as mappings. See the classes of the sections.

    Args:
        claim: which claim of which paper the run is for; a label.
        model: name in `vitq.zoo`.
        pretrained: begin with pretrained weights.
        checkpoint: file with other weights to begin with.
        stochastic_depth: train with the network's own rate of dropped residual branches (0.1 in timm's Swin, none in
            its DeiT); False for none; a number for a rate that rises to it from 0, block by block.
        data: `DataConfig`.
        quant: fields of `vitq.QuantSpec`, or None to train in full precision.
        train: `TrainConfig`.
        remedies: mappings with a `name` and the arguments of the remedy, in the order of their hooks.
        calibration_batches: training batches that set the activation ranges.
        bn_reestimation: `ReestimationConfig`.
        teacher: `TeacherConfig`, or None to learn from the labels alone.
        soft_labels: `SoftLabelsConfig`, or None; with it there is no other teacher.
        continue_from: folder of a finished run with the same network and quantization: begin with its weights,
            quantizers and optimizer moments instead of calibrating; None for a run of its own.
        evaluate_before: evaluate the float model and the quantized one before training.
        seed: of data order, augmentation and random generators.
        scale: "smoke", "small" or "full".
        variant: "paper", "released" or "corrected", for the remedies that name none.
        limit_batches: cut training, re-estimation and each evaluation to so many batches, to try the path.

    Raises:
        InputError: naming section, field, value and what to do.
    """

    claim: str = ""
    model: str = "mobilenet_micro"
    pretrained: bool = True
    checkpoint: str | None = None
    stochastic_depth: bool | float = True
    data: DataConfig = field(default_factory=DataConfig)
    quant: dict | None = field(default_factory=dict)
    train: TrainConfig = field(default_factory=lambda: TrainConfig(epochs=1))
    remedies: list = field(default_factory=list)
    calibration_batches: int = 1
    bn_reestimation: ReestimationConfig = field(default_factory=ReestimationConfig)
    teacher: TeacherConfig | None = None
    soft_labels: SoftLabelsConfig | None = None
    continue_from: str | None = None
    evaluate_before: bool = True
    seed: int = 0
    scale: Literal["smoke", "small", "full"] = "small"
    variant: Literal["paper", "released", "corrected"] = "corrected"
    limit_batches: int | None = None

    def __post_init__(self) -> None:
        sections = {"data": DataConfig, "train": TrainConfig, "bn_reestimation": ReestimationConfig,
                    "teacher": TeacherConfig, "soft_labels": SoftLabelsConfig}
        for name, section in sections.items():
            value = getattr(self, name)
            if value is None and name in ("teacher", "soft_labels", "bn_reestimation"):
                value = ReestimationConfig(0) if name == "bn_reestimation" else None
            elif not isinstance(value, section):
                value = from_mapping(section, value, name)
            object.__setattr__(self, name, value)
        check_types(self, "run")
        require(self.stochastic_depth is True or 0 <= self.stochastic_depth < 1, "run", "stochastic_depth",
                self.stochastic_depth, "give true, false or a rate in [0, 1)")
        require(self.calibration_batches >= 1, "run", "calibration_batches", self.calibration_batches,
                "give at least 1")
        require(not self.mixes or self.train.batch_size % 2 == 0, "train", "batch_size", self.train.batch_size,
                "give an even number: mixup and cutmix pair the images of a batch")
        if self.soft_labels is not None:
            self.soft_labels.check(self.train, self.data, self.teacher)
        require(self.limit_batches is None or self.limit_batches >= 1, "run", "limit_batches", self.limit_batches,
                "give at least 1, or null for no limit")

    @property
    def mixes(self) -> bool:
        """Whether training mixes the images of a batch."""
        return self.data.augmentation is not None and Augmentation.from_dict(self.data.augmentation).mixes

    @classmethod
    def from_dict(cls, mapping: dict[str, Any]) -> "RunConfig":
        """Build from the mapping that a YAML file holds; unknown keys are refused."""
        return from_mapping(cls, mapping, "run")

    @classmethod
    def from_yaml(cls, path: Path | str, **changes: Any) -> "RunConfig":
        """Read a YAML file; `changes` override fields.

        Raises:
            MissingError: there is no such file.
            InputError: it is no YAML mapping, or a field is wrong.
        """
        import yaml
        try:
            mapping = yaml.safe_load(Path(path).read_text())
        except OSError as error:
            raise MissingError(f"config={str(path)!r}: {error.strerror}; give a YAML file") from None
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise InputError(f"config={str(path)!r}: not YAML: {' '.join(str(error).split())}") from None
        if not isinstance(mapping, dict):
            raise InputError(f"config={str(path)!r}: give a YAML mapping of names to values")
        return cls.from_dict(mapping | changes)

    def to_dict(self) -> dict[str, Any]:
        """Plain nested mapping of all fields, defaults included."""
        return dataclasses.asdict(self)

    @property
    def hash(self) -> str:
        """Tells this configuration from others; independent of the order of keys and of defaults being spelt out."""
        return config_hash(self.to_dict())
