"""Re-iterable batches of a data set, deterministic in (seed, epoch) and able to start anywhere in an epoch."""

import os
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from vitq.data.augmentation import Augmentation, mirrored_part
from vitq.data.folder import FolderSet, View, collate
from vitq.data.images import ImageSet
from vitq.errors import InputError


class Batches:
    """Normalised batches (images float32 (B, 3, H, W), labels int64 (B,)) of the current epoch, iteration by iteration.

    Training batches are shuffled, augmented and all of the same size (an incomplete last one is left out);
    evaluation batches keep the order and cover every image. What a batch holds depends on the seed, the epoch and its
    position alone, so skipping batches reads none of them, and the parts that several processes take make up the batch
    that one process would have seen.

    Args:
        dataset: Images in memory or in a folder.
        batch_size: Images a batch, over all parts.
        train: Shuffle, augment and drop an incomplete batch.
        seed: Seed of order and augmentation.
        epoch: Epoch to begin with.
        start: Number of batches of that epoch to skip; later epochs begin at 0.
        device: Where the batches go.
        part: Index and number of the processes that share each batch.
    """

    def __init__(
        self,
        dataset: ImageSet | FolderSet,
        batch_size: int,
        train: bool = False,
        seed: int = 0,
        epoch: int = 0,
        start: int = 0,
        device: torch.device | str | None = None,
        part: tuple[int, int] = (0, 1),
    ):
        self.dataset, self.batch_size, self.train, self.seed = dataset, batch_size, train, seed
        self.epoch, self.start, self.device, self.part = epoch, start, device, part
        if train and batch_size > len(dataset):
            raise InputError(
                f"batch_size must be at most the {len(dataset)} images of {dataset.name}, got {batch_size}"
            )
        if not 0 <= part[0] < part[1] or (train and batch_size % part[1]):
            raise InputError(f"part must be (index, count), count a divisor of batch_size={batch_size}, got {part}")
        if not 0 <= start <= self.per_epoch:
            raise InputError(f"start must lie between 0 and the {self.per_epoch} batches of an epoch, got {start}")

    @property
    def per_epoch(self) -> int:
        """Batches of a whole epoch."""
        count = len(self.dataset)
        return count // self.batch_size if self.train else -(-count // self.batch_size)

    def __len__(self) -> int:
        return self.per_epoch - self.start

    def set_epoch(self, epoch: int) -> None:
        """Begin the next iteration with the batches of this epoch; a new epoch begins at its first batch."""
        if epoch != self.epoch:
            self.epoch, self.start = epoch, 0

    def rows(self) -> list[Tensor]:
        """Image indices of this epoch's batches from `start` on, each (B,), before they are divided into parts."""
        order = torch.arange(len(self.dataset))
        if self.train:
            order = order[torch.randperm(len(order), generator=_generator(self.seed, self.epoch, 0))]
        return list(order[: self.per_epoch * self.batch_size].split(self.batch_size)[self.start :])

    def mine(self, rows: Tensor) -> Tensor:
        """This process's share of a batch, along its first dimension."""
        return rows.tensor_split(self.part[1])[self.part[0]]


class MemoryBatches(Batches):
    """Batches of an `ImageSet`, made whole in torch; training images are shifted at random.

    Args:
        augment: Largest random shift in pixels, False for none, None for the data set's own.
        arguments: Those of `Batches`.
    """

    def __init__(self, *arguments, augment: int | bool | None = None, **more):
        super().__init__(*arguments, **more)
        shift = self.dataset.shift if augment is None or augment is True else int(augment)
        if not 0 <= shift < self.dataset.images.shape[-1]:
            raise InputError(f"augment must be a shift of fewer pixels than an image has, or False, got {augment}")
        self.shift = shift if self.train else 0

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        epoch, start = self.epoch, self.start
        for index, rows in enumerate(self.rows(), start):
            rows_here = self.mine(rows)
            images, labels = self.dataset.images[rows_here], self.dataset.labels[rows_here]
            if self.shift:
                offsets = torch.randint(
                    -self.shift, self.shift + 1, (len(rows), 2), generator=_generator(self.seed, epoch, 1, index)
                )
                images = shifted(images, self.mine(offsets))
            if self.device is not None:
                images, labels = images.to(self.device), labels.to(self.device)
            yield self.dataset.normalize(images), labels


class FolderBatches(Batches):
    """Batches of a `FolderSet` from a torch `DataLoader`; training images go through the set's augmentation.

    Where it mixes images, a batch is mixed as a whole: labels are float32 (B, classes), and the parts that several
    processes take together hold the images of the batch in another order.

    Args:
        augment: False reads training images as for evaluation.
        workers: Processes that read; by default at most 8, one for each core that this process has to itself, and none
            for fewer than 256 images.
        arguments: Those of `Batches`.
    """

    def __init__(self, *arguments, augment: int | bool | None = None, workers: int | None = None, **more):
        super().__init__(*arguments, **more)
        self.random = self.train and (augment is None or augment is not False)
        self.augmentation = (self.random and self.dataset.augmentation) or Augmentation()
        self.workers = (0 if len(self.dataset) < 256 else _cores()) if workers is None else workers
        if self.augmentation.mixes and self.batch_size % (2 * self.part[1]):
            raise InputError(f"batch_size={self.batch_size}: mixup and cutmix pair the images of each process's share; "
                             f"give a multiple of {2 * self.part[1]}")

    def rows(self) -> list[Tensor]:
        """Items of this epoch's batches from `start` on, each (B,): image times repeats plus number of the copy."""
        repeats = self.augmentation.repeats
        if repeats == 1:
            return super().rows()
        items = torch.randperm(len(self.dataset), generator=_generator(self.seed, self.epoch, 0)) * repeats
        items = (items[:, None] + torch.arange(repeats)).flatten()  # (N * repeats,), the copies of an image in a row
        return list(items[: self.per_epoch * self.batch_size].split(self.batch_size)[self.start :])

    def mine(self, rows: Tensor) -> Tensor:
        """This process's share of a batch; where images are mixed, one that holds the partner of each image."""
        return mirrored_part(rows, self.part) if self.augmentation.mixes else super().mine(rows)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        epoch, start = self.epoch, self.start
        loader = torch.utils.data.DataLoader(
            View(self.dataset, self.random, self.seed, epoch, self.augmentation.repeats),
            batch_sampler=[self.mine(rows).tolist() for rows in self.rows()],
            num_workers=self.workers,
            pin_memory=self.device is not None and torch.device(self.device).type == "cuda",
            collate_fn=collate,
            generator=_generator(self.seed, self.epoch, 2),
        )
        for number, batch in enumerate(loader, start):
            if isinstance(batch, InputError):
                raise batch
            images, labels = batch
            if self.device is not None:
                images, labels = (t.to(self.device, non_blocking=True) for t in (images, labels))
            if self.augmentation.mixes:
                images, labels = self.augmentation.mix(images, labels, self.dataset.num_classes, self.seed, epoch, 3,
                                                       number)
            yield images, labels


def _cores() -> int:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(8, cores // int(os.environ.get("LOCAL_WORLD_SIZE", 1))))


def _generator(seed: int, *key: int) -> torch.Generator:
    state = np.random.SeedSequence(seed, spawn_key=key).generate_state(1, np.uint64)
    return torch.Generator().manual_seed(int(state[0] >> np.uint64(1)))


def shifted(images: Tensor, offsets: Tensor) -> Tensor:
    """Each image moved by its own number of pixels; the border pixels are repeated.

    Args:
        images: Any dtype, (B, C, H, W).
        offsets: Pixels up and to the left, int64 (B, 2).
    """
    count, channels, height, width = images.shape
    rows = (torch.arange(height) + offsets[:, :1]).clamp_(0, height - 1)  # (B, H)
    columns = (torch.arange(width) + offsets[:, 1:]).clamp_(0, width - 1)  # (B, W)
    pixels = (rows[:, :, None] * width + columns[:, None, :]).view(count, 1, -1)  # (B, 1, H * W)
    moved = images.reshape(count, channels, -1).gather(2, pixels.expand(-1, channels, -1))
    return moved.view(images.shape)
