"""Training and test data as numbered batches, so that a run can stop in the middle of an epoch and go on there."""

import itertools
import math
from collections.abc import Iterator
from typing import Any, Protocol

import torch
from torch import Tensor

from vitq.errors import InputError

Batch = tuple[Tensor, Tensor]


class Source(Protocol):
    """Batches of (images (B, 3, H, W), labels (B,)), deterministic in the epoch."""

    def __len__(self) -> int:
        """Batches in an epoch."""

    def iterate(self, epoch: int = 0, start: int = 0) -> Iterator[Batch]:
        """The batches of an epoch from number `start` on."""


class TensorSource:
    """A pair (images, labels) of tensors in memory, shuffled anew each epoch when training.

    Args:
        images: float, (N, ...).
        labels: (N,).
        batch_size: images per batch; in evaluation the last batch may be smaller.
        train: shuffle, and leave out an incomplete last batch.
        seed: of the order, together with the epoch.
        device: where the batches go.
    """

    def __init__(self, images: Tensor, labels: Tensor, batch_size: int, *, train: bool = False, seed: int = 0,
                 device: torch.device | str | None = None):
        if len(images) != len(labels) or not len(images):
            raise InputError(f"data: {len(images)} images and {len(labels)} labels; give as many of both, at least 1")
        self.images, self.labels = images, labels
        self.batch_size, self.train, self.seed, self.device = batch_size, train, seed, device

    def __len__(self) -> int:
        return len(self.images) // self.batch_size if self.train else math.ceil(len(self.images) / self.batch_size)

    def iterate(self, epoch: int = 0, start: int = 0) -> Iterator[Batch]:
        order = torch.arange(len(self.images))
        if self.train:
            generator = torch.Generator().manual_seed(hash((self.seed, epoch)) % 2**63)
            order = torch.randperm(len(self.images), generator=generator)
        for number in range(start, len(self)):
            rows = order[number * self.batch_size:(number + 1) * self.batch_size]
            yield self.images[rows].to(self.device), self.labels[rows].to(self.device)


class DatasetSource:
    """A data set from `vitq.data.load`, read by `vitq.data.batches` with its augmentation when training.

    Args:
        dataset: from `vitq.data.load`.
        batch_size: images per batch.
        train: shuffle and augment.
        seed: of order and augmentation, together with the epoch.
        device: where the batches go.
        options: further arguments of `vitq.data.batches`.
    """

    def __init__(self, dataset: Any, batch_size: int, *, train: bool = False, seed: int = 0,
                 device: torch.device | str | None = None, **options: Any):
        self.dataset, self.batch_size = dataset, batch_size
        self.arguments = {"train": train, "seed": seed, "device": device, **options}

    def __len__(self) -> int:
        return len(self._batches())

    def iterate(self, epoch: int = 0, start: int = 0) -> Iterator[Batch]:
        return iter(self._batches(epoch=epoch, start=start))

    def _batches(self, **position: int) -> Any:
        from vitq.data import batches
        return batches(self.dataset, self.batch_size, **self.arguments, **position)


class LimitedSource:
    """The first `limit` batches of each epoch of another source."""

    def __init__(self, source: Source, limit: int):
        self.source, self.limit = source, limit

    def __len__(self) -> int:
        return min(self.limit, len(self.source))

    def iterate(self, epoch: int = 0, start: int = 0) -> Iterator[Batch]:
        return itertools.islice(self.source.iterate(epoch, start), max(0, len(self) - start))


def as_source(data: Any, batch_size: int, *, train: bool = False, seed: int = 0,
              device: torch.device | str | None = None, limit: int | None = None, **options: Any) -> Source:
    """A source from a data set of `vitq.data`, a pair (images, labels) of tensors, or a source itself.

    Args:
        data: what to read.
        batch_size: images per batch; a source keeps its own.
        train: shuffle and augment.
        seed: of order and augmentation.
        device: where the batches go; a source keeps its own.
        limit: use only so many batches of each epoch.
        options: further arguments of `vitq.data.batches`.
    """
    if hasattr(data, "iterate"):
        source = data
    elif isinstance(data, tuple) and len(data) == 2 and all(isinstance(part, Tensor) for part in data):
        source = TensorSource(*data, batch_size, train=train, seed=seed, device=device)
    elif hasattr(data, "num_classes"):
        source = DatasetSource(data, batch_size, train=train, seed=seed, device=device, **options)
    else:
        raise InputError(f"data of type {type(data).__name__}: give a data set from vitq.data.load, a pair of "
                         "tensors (images, labels), or a source with iterate(epoch, start) and a length")
    return source if limit is None else LimitedSource(source, limit)
