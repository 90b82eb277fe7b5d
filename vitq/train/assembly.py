"""The data, network and teacher that a run configuration names."""

import copy
import dataclasses
from typing import Any

from torch import nn

from vitq import data, zoo
from vitq.data.augmentation import Augmentation
from vitq.errors import InputError
from vitq.train.losses import CrossEntropy, Distillation, HardAndSoftDistillation, two_headed
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

    A run that looks at a teacher alone keeps the network's own classes, whatever the labels of its images are.
    """
    teacher_alone = config.teacher is not None and config.teacher.alone
    model = zoo.load(config.model, pretrained=config.pretrained, checkpoint=config.checkpoint,
                     num_classes=None if teacher_alone else dataset.num_classes)
    if not config.stochastic_depth:
        switch_off_stochastic_depth(model)
    return model


def switch_off_stochastic_depth(model: nn.Module) -> None:
    """Let every residual branch take part in every training step, in place."""
    from timm.layers import DropPath

    for module in model.modules():
        if isinstance(module, DropPath):
            module.drop_prob = 0.0


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


def task_loss(config: RunConfig, teacher: nn.Module | None) -> nn.Module:
    """What training minimises, the terms of the remedies apart."""
    smoothing = config.train.label_smoothing
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
