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
    """Batches of (images (B, 3, H, W), labels (B,)), deterministic in the epoch; on several ranks, parts of them."""

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
        part: index and number of the ranks that share each batch.
    """

    def __init__(self, images: Tensor, labels: Tensor, batch_size: int, *, train: bool = False, seed: int = 0,
                 device: torch.device | str | None = None, part: tuple[int, int] = (0, 1)):
        if len(images) != len(labels) or not len(images):
            raise InputError(f"data: {len(images)} images and {len(labels)} labels; give as many of both, at least 1")
        self.images, self.labels = images, labels
        self.batch_size, self.train, self.seed, self.device, self.part = batch_size, train, seed, device, part

    def __len__(self) -> int:
        return len(self.images) // self.batch_size if self.train else math.ceil(len(self.images) / self.batch_size)

    def iterate(self, epoch: int = 0, start: int = 0) -> Iterator[Batch]:
        order = torch.arange(len(self.images))
        if self.train:
            generator = torch.Generator().manual_seed(hash((self.seed, epoch)) % 2**63)
            order = torch.randperm(len(self.images), generator=generator)
        for number in range(start, len(self)):
            rows = order[number * self.batch_size:(number + 1) * self.batch_size]
            rows = rows.tensor_split(self.part[1])[self.part[0]]
            yield self.images[rows].to(self.device), self.labels[rows].to(self.device)


class DatasetSource:
    """A data set from `vitq.data.load`, read by `vitq.data.batches` with its augmentation when training.

    Args:
        dataset: from `vitq.data.load`.
        batch_size: images per batch.
        options: further arguments of `vitq.data.batches`.
    """

    def __init__(self, dataset: Any, batch_size: int, **options: Any):
        self.dataset, self.batch_size, self.options = dataset, batch_size, options

    def __len__(self) -> int:
        return len(self._batches())

    def iterate(self, epoch: int = 0, start: int = 0) -> Iterator[Batch]:
        return iter(self._batches(epoch=epoch, start=start))

    def _batches(self, **position: int) -> Any:
        from vitq.data import batches
        return batches(self.dataset, self.batch_size, **self.options, **position)


class LimitedSource:
    """The first `limit` batches of each epoch of another source."""

    def __init__(self, source: Source, limit: int):
        self.source, self.limit = source, limit

    def __len__(self) -> int:
        return min(self.limit, len(self.source))

    def iterate(self, epoch: int = 0, start: int = 0) -> Iterator[Batch]:
        return itertools.islice(self.source.iterate(epoch, start), max(0, len(self) - start))


def as_source(data: Any, batch_size: int, *, train: bool = False, seed: int = 0,
              device: torch.device | str | None = None, part: tuple[int, int] = (0, 1), limit: int | None = None,
              **options: Any) -> Source:
    """A source from a data set of `vitq.data`, a pair (images, labels) of tensors, or a source itself.

    Args:
        data: what to read; a source is taken as it is and has to see to seed, device and part itself.
        batch_size: images per batch, over all ranks.
        train: shuffle and augment.
        seed: of order and augmentation.
        device: where the batches go.
        part: index and number of the ranks that share each batch.
        limit: use only so many batches of each epoch.
        options: further arguments of `vitq.data.batches`.

    Raises:
        InputError: `data` is none of these.
    """
    shared = {"train": train, "seed": seed, "device": device, "part": part}
    if hasattr(data, "iterate"):
        source = data
    elif isinstance(data, tuple) and len(data) == 2 and all(isinstance(half, Tensor) for half in data):
        source = TensorSource(*data, batch_size, **shared)
    elif hasattr(data, "num_classes"):
        source = DatasetSource(data, batch_size, **shared, **options)
    else:
        raise InputError(f"data of type {type(data).__name__}: give a data set from vitq.data.load, a pair of "
                         "tensors (images, labels), or a source with iterate(epoch, start) and a length")
    return source if limit is None else LimitedSource(source, limit)
