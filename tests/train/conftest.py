"""Small problems for the loop: they train in milliseconds."""

import hashlib

import pytest
import torch
from torch import nn

from vitq.train import TrainConfig

torch.set_num_threads(1)  # the problems are so small that threads would only wait for each other


def problem(count: int = 96, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Images (N, 3, 8, 8) whose mean tells their label, 0 to 3."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, 4, (count,), generator=generator)
    return torch.randn(count, 3, 8, 8, generator=generator) + 0.5 * labels[:, None, None, None], labels


def network(norm: bool = True, dropout: float = 0.0) -> nn.Module:
    """Stem, depthwise and pointwise convolution, classifier."""
    torch.manual_seed(1)
    layers = [nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(), nn.Conv2d(8, 8, 3, 1, 1, groups=8), nn.ReLU(), nn.Conv2d(8, 8, 1),
              nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(dropout), nn.Linear(8, 4)]
    if norm:
        layers[1:1], layers[4:4] = [nn.BatchNorm2d(8)], [nn.BatchNorm2d(8)]
    return nn.Sequential(*layers)


def digest(model: nn.Module) -> str:
    """SHA-256 of all of the state dict."""
    sums = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        sums.update(name.encode() + tensor.contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return sums.hexdigest()


@pytest.fixture
def data():
    return problem()


@pytest.fixture
def make_problem():
    return problem


@pytest.fixture
def make_network():
    return network


@pytest.fixture
def digest_of():
    return digest


@pytest.fixture
def config():
    """TrainConfig of 20 steps, fields by keyword."""
    def make(**changes):
        fields = {"steps": 20, "batch_size": 16, "learning_rate": 0.05, "log_every": 10, "device": "cpu"} | changes
        return TrainConfig(**fields)
    return make
