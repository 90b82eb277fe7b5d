"""The data, network and teacher that a run configuration names."""

import copy
import dataclasses
from pathlib import Path
from typing import Any

from torch import nn

from vitq import data, zoo
from vitq.data.augmentation import Augmentation
from vitq.errors import InputError, MissingError
from vitq.train.config import TrainConfig
from vitq.train.losses import CrossEntropy, Distillation, HardAndSoftDistillation, two_headed
from vitq.train.ranks import Ranks
from vitq.train.run_config import RunConfig


def load_data(config: RunConfig) -> tuple[Any, Any]:
    """Training and test set."""
    given = config.data
    shared = {"size": given.image_size, "seed": given.seed, "path": given.path}
    return (augmented(data.load(given.name, "train", images=given.train_images, **shared), config),
            data.load(given.name, given.test_split, images=given.test_images, **shared))


def augmented(dataset: Any, config: RunConfig) -> Any:
    """The training set with the augmentation of the run, where it names one."""
    if config.data.augmentation is None:
        return dataset
    return dataclasses.replace(dataset, augmentation=Augmentation.from_dict(config.data.augmentation))


def load_model(config: RunConfig, dataset: Any) -> nn.Module:
    """The full-precision network at the start, with as many outputs as the labels have classes.

    A run that looks at a teacher alone keeps the network's own classes, whatever the labels of its images are; one on
    stored soft labels has their classes.
    """
    teacher_alone = config.teacher is not None and config.teacher.alone
    classes = dataset.num_classes if config.soft_labels is None else label_classes(config, dataset)
    model = zoo.load(config.model, pretrained=config.pretrained, checkpoint=config.checkpoint,
                     num_classes=None if teacher_alone else classes)
    if not config.stochastic_depth:
        switch_off_stochastic_depth(model)
    elif config.stochastic_depth is not True:
        set_stochastic_depth(model, config.stochastic_depth)
    return model


def switch_off_stochastic_depth(model: nn.Module) -> None:
    """Let every residual branch take part in every training step, in place."""
    from timm.layers import DropPath

    for module in model.modules():
        if isinstance(module, DropPath):
            module.drop_prob = 0.0


def set_stochastic_depth(model: nn.Module, rate: float) -> None:
    """Drop residual branches of a transformer in training, from never in its first block to `rate` in its last.

    Raises:
        InputError: the network has no such blocks.
    """
    from timm.layers import DropPath

    blocks = [module for module in model.modules() if hasattr(module, "drop_path1") and hasattr(module, "drop_path2")]
    if not blocks:
        raise InputError(f"run.stochastic_depth={rate!r}: the network has no transformer blocks of timm; give true or "
                         "false")
    for number, block in enumerate(blocks):
        own = rate * number / max(1, len(blocks) - 1)
        block.drop_path1, block.drop_path2 = (DropPath(own) if own else nn.Identity() for _ in range(2))


def load_teacher(config: RunConfig, model: nn.Module) -> nn.Module | None:
    """The network to distil from: a copy of `model` before quantization, or another of the zoo.

    Raises:
        InputError: it has another number of classes.
    """
    if config.teacher is None:
        return None
    if config.teacher.model == "self":
        return copy.deepcopy(model)
    teacher = zoo.load(config.teacher.model, checkpoint=config.teacher.checkpoint)
    if teacher.num_classes != model.num_classes:
        raise InputError(f"teacher.model={config.teacher.model!r}: it has {teacher.num_classes} classes and "
                         f"{config.model} has {model.num_classes}; give one with as many")
    return teacher


def label_classes(config: RunConfig, dataset: Any) -> int:
    """Classes of the stored soft labels: those of the teacher that made the store; FKD's are those of the folder.

    Raises:
        MissingError: there is no such folder, naming `soft_labels.path`.
        InputError: its header cannot be read.
    """
    from vitq.data.soft_labels.layout import HEADER, Header

    folder = label_folder(config)
    return Header.read(folder).num_classes if (folder / HEADER).is_file() else dataset.num_classes


def load_soft_labels(config: RunConfig, dataset: Any) -> Any:
    """The stored soft labels of the training set; None if the run has none.

    Raises:
        MissingError: there are none, or not all, naming `soft_labels.path`.
        InputError: they are labels of other images, or fewer crops than the run takes.
    """
    if config.soft_labels is None:
        return None
    from vitq.data import soft_labels

    given, folder = config.soft_labels, label_folder(config)
    try:
        labels = soft_labels.load(folder, dataset, given.kind)
    except (InputError, MissingError) as error:
        raise type(error)(f"soft_labels.path={given.path!r}: {error}") from None
    if given.crops > labels.crops:
        raise InputError(f"soft_labels.crops={given.crops}: {given.path} has {labels.crops} crops of each image; give "
                         "at most so many")
    return labels


def label_folder(config: RunConfig) -> Path:
    """The folder of a run's soft labels; MissingError, naming `soft_labels.path`, if there is none."""
    path = config.soft_labels.path
    if not path or not Path(path).expanduser().is_dir():
        raise MissingError(f"soft_labels.path={path!r}: there is no such folder; make one with vitq labels make, or "
                           "give the folder of FKD's labels")
    return Path(path).expanduser()


def training_data(config: RunConfig, dataset: Any, labels: Any, ranks: Ranks) -> tuple[Any, TrainConfig]:
    """What `fit` reads, and the settings that go with it: the data set itself, or its stored crops and soft labels.

    Args:
        config: the run.
        dataset: the training set, with the network's normalisation.
        labels: from `load_soft_labels`.
        ranks: the processes that share each batch.

    Raises:
        InputError: the batch cannot be shared so, or holds more images than there are.
    """
    given, settings = config.soft_labels, config.train
    if given is None:
        return dataset, settings
    from vitq.data.multi_crop import MultiCropSource
    from vitq.papers.vvtq2023.mckd import MultiCropDistillation

    if settings.batch_size % (given.crops * ranks.count):
        raise InputError(f"train.batch_size={settings.batch_size}: give a multiple of {given.crops * ranks.count}, "
                         "soft_labels.crops times the number of ranks")
    if settings.batch_size > len(dataset):
        raise InputError(f"train.batch_size={settings.batch_size}: more than the {len(dataset)} training images, which "
                         "single-crop epochs need as many of; give less")
    source = MultiCropSource(dataset, labels, settings.batch_size, given.crops, seed=config.seed, device=ranks.device,
                             part=ranks.part, interpolation=given.interpolation)
    whole = MultiCropDistillation(source, settings.epochs, settings.warmup_epochs)
    return whole, whole.settings(settings)


def task_loss(config: RunConfig, teacher: nn.Module | None) -> nn.Module:
    """What training minimises, the terms of the remedies apart."""
    smoothing = config.train.label_smoothing
    if config.soft_labels is not None:
        from vitq.papers.vvtq2023.mckd import SoftCrossEntropy
        return SoftCrossEntropy()
    if teacher is None:
        return CrossEntropy(smoothing)
    if config.teacher.kind == "hard_and_soft":
        return HardAndSoftDistillation(teacher, smoothing)
    return Distillation(teacher, config.teacher.temperature, config.teacher.weight, smoothing)


def set_heads(model: nn.Module, config: RunConfig) -> None:
    """Let a two-headed network give both logits in training, if the loss looks at them apart."""
    if two_headed(model):
        model.set_distilled_training(config.teacher is not None and config.teacher.kind == "hard_and_soft")


def preprocessed(dataset: Any, model: nn.Module, config: RunConfig) -> Any:
    """The data set with the normalisation of the network and, in a folder set, its crop and interpolation."""
    wanted = zoo.preprocessing(model)
    dataset = dataset.normalized_for(wanted["mean"], wanted["std"])
    crop = {name: getattr(config.data, name) or wanted[name] for name in ("crop_pct", "interpolation")}
    return dataclasses.replace(dataset, **crop) if hasattr(dataset, "crop_pct") else dataset
