"""The data, network and teacher that a run configuration names."""

import copy
from typing import Any

from torch import nn

from vitq import data, zoo
from vitq.train.run_config import RunConfig


def load_data(config: RunConfig) -> tuple[Any, Any]:
    """Training and test set, normalised for the network of the run."""
    given = config.data
    shared = {"size": given.image_size, "seed": given.seed, "path": given.path}
    train = data.load(given.name, "train", images=given.train_images, **shared)
    test = data.load(given.name, given.test_split, images=given.test_images, **shared)
    return train, test


def load_model(config: RunConfig, dataset: Any) -> nn.Module:
    """The full-precision network at the start, with as many outputs as the labels need."""
    return zoo.load(config.model, pretrained=config.pretrained, checkpoint=config.checkpoint)


def load_teacher(config: RunConfig, model: nn.Module, dataset: Any) -> nn.Module | None:
    """The network to distil from: a copy of `model` before quantization, or another of the zoo."""
    if config.teacher is None:
        return None
    if config.teacher.model == "self":
        return copy.deepcopy(model)
    return zoo.load(config.teacher.model, checkpoint=config.teacher.checkpoint)
