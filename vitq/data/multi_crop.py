"""Batches of several stored crops an image, each with its soft label: an image is read and decoded once for all."""

import weakref
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from vitq.data.batches import _cores, _generator
from vitq.data.images import ImageSet
from vitq.data.soft_labels.crops import crop_resize, pixel_boxes
from vitq.data.soft_labels.store import CropLabels, SoftLabels
from vitq.errors import InputError

Batch = tuple[Tensor, Tensor]


class MultiCropSource:
    """A `vitq.train.sources.Source` of (crops (B * M, 3, S, S), soft labels float32 (B * M, classes)).

    An epoch is one pass over the images with M distinct stored crops of each (VVTQ 2023, section 3.3): box, flip and
    label of a crop come from the same stored entry. The crops of a batch lie crop-major: the first crop of all its
    images, then the second of all. What a batch holds depends on seed, epoch and its number alone. An epoch has
    ceil(images / B) batches; the last is filled up with the first images of the epoch's order.

    Args:
        dataset: From `vitq.data.load`.
        labels: Of this data set, from `vitq.data.soft_labels.load`.
        batch_size: Crops in a batch over all ranks, B * M.
        crops: M.
        seed: Of the order of the images and the choice of crops.
        device: Where the batches go.
        part: Index and number of the ranks that share each batch.
        size: Side of a crop in pixels, S; None for the data set's own.
        interpolation: "bilinear" or "bicubic", of the resize to that side.
        workers: Reading processes of a folder set; None for at most 8, one for each core.

    Raises:
        InputError: A wrong argument, or labels of another data set; while iterating, a damaged image or a corrupt
            label, by name.
    """

    def __init__(self, dataset: Any, labels: SoftLabels, batch_size: int, crops: int = 4, *, seed: int = 0,
                 device: torch.device | str | None = None, part: tuple[int, int] = (0, 1), size: int | None = None,
                 interpolation: str = "bilinear", workers: int | None = None):  # fmt: skip
        labels.require(dataset)
        if not 1 <= crops <= labels.crops:
            raise InputError(f"crops must lie between 1 and the {labels.crops} stored ones, got {crops}")
        if not 0 <= part[0] < part[1]:
            raise InputError(f"part must be (index, count) with 0 <= index < count, got {part}")
        if batch_size < 1 or batch_size % (crops * part[1]):
            raise InputError(f"batch_size counts crops and must be a multiple of crops times ranks, "
                             f"{crops * part[1]}, got {batch_size}")  # fmt: skip
        if batch_size // crops > len(dataset):
            raise InputError(f"batch_size must be at most {len(dataset) * crops}, {crops} crops of the {len(dataset)} "
                             f"images of {dataset.name}, got {batch_size}")  # fmt: skip
        if interpolation not in ("bilinear", "bicubic"):
            raise InputError(f"interpolation must be bilinear or bicubic, got {interpolation!r}")
        self.dataset, self.labels, self.batch_size, self.crops = dataset, labels, batch_size, crops
        self.seed, self.device, self.part, self.interpolation = seed, device, part, interpolation
        self.in_memory = isinstance(dataset, ImageSet)
        self.size = size or (dataset.images.shape[-1] if self.in_memory else dataset.size)
        self.workers = (0 if len(dataset) < 256 else _cores()) if workers is None else workers

    @property
    def images(self) -> int:
        """Images in a batch over all ranks, B."""
        return self.batch_size // self.crops

    def __len__(self) -> int:
        return -(-len(self.dataset) // self.images)

    def with_crops(self, crops: int) -> "MultiCropSource":
        """The same source with another number of crops an image and as many crops in a batch."""
        return MultiCropSource(self.dataset, self.labels, self.batch_size, crops, seed=self.seed, device=self.device,
                               part=self.part, size=self.size, interpolation=self.interpolation,
                               workers=self.workers)  # fmt: skip

    def chosen(self, epoch: int, start: int = 0) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """This rank's images (B,) and numbers of stored crops (B, M) of each batch of an epoch from `start` on."""
        order = torch.randperm(len(self.dataset), generator=_generator(self.seed, epoch, 0))
        order = torch.cat([order, order[: len(self) * self.images - len(order)]])
        for number in range(start, len(self)):
            rows = order[number * self.images : (number + 1) * self.images]
            keys = torch.rand(len(rows), self.labels.crops, generator=_generator(self.seed, epoch, 1, number))
            crops = keys.topk(self.crops).indices  # (B, M), distinct
            yield tuple(whole.tensor_split(self.part[1])[self.part[0]].numpy() for whole in (rows, crops))

    def iterate(self, epoch: int = 0, start: int = 0) -> Iterator[Batch]:
        """The batches of an epoch from number `start` on; those before are not read."""
        read = self._from_memory if self.in_memory else self._from_files
        for pixels, found in read(epoch, start):
            found = CropLabels(*(part.swapaxes(0, 1) for part in found))  # (M, B, ...)
            yield pixels, found.distributions(self.labels.label, self.labels.num_classes, self.device).flatten(0, 1)

    def _from_memory(self, epoch: int, start: int) -> Iterator[tuple[Tensor, CropLabels]]:
        height, width = self.dataset.images.shape[-2:]
        for rows, crops in self.chosen(epoch, start):
            found = self.labels.read(rows, crops)
            images = self.dataset.normalize(self.dataset.images[torch.from_numpy(rows)].to(self.device))
            boxes = torch.from_numpy(pixel_boxes(found.boxes, height, width))
            pixels = crop_resize(images, boxes, torch.from_numpy(found.flips), self.size, self.interpolation)
            yield pixels.transpose(0, 1).flatten(0, 1), found  # (M * B, 3, S, S)

    def _from_files(self, epoch: int, start: int) -> Iterator[tuple[Tensor, CropLabels]]:
        on_cuda = self.device is not None and torch.device(self.device).type == "cuda"
        loader = torch.utils.data.DataLoader(
            _Crops(self), batch_sampler=_Lists(self, epoch, start), num_workers=self.workers, collate_fn=_collate,
            pin_memory=on_cuda, generator=_generator(self.seed, epoch, 2),
        )  # fmt: skip
        memory = _Memory()
        for batch in loader:
            if isinstance(batch, Exception):
                raise batch
            pixels, found = batch
            pixels = self._normalized(pixels.to(self.device, non_blocking=True), memory)
            yield pixels, CropLabels(*(part.numpy() for part in found))

    def _normalized(self, pixels: Tensor, memory: "_Memory") -> Tensor:
        """What `ImageSet.normalize` gives, (N, 3, S, S) laid out as channels last, from uint8 (N, S, S, 3)."""
        if pixels.device.type != "cpu":
            return ImageSet.normalize(self.dataset, pixels.permute(0, 3, 1, 2))
        mean, std = (torch.tensor(value).repeat(self.size) * 255 for value in (self.dataset.mean, self.dataset.std))
        scale, done = 1 / std, memory.take(tuple(pixels.shape))
        for crop, target in zip(pixels.flatten(2), done.flatten(2), strict=True):  # (S, S * 3), fits a cache
            target.copy_(crop).sub_(mean).mul_(scale)
        return done.permute(0, 3, 1, 2)


class _Memory:
    """Memory of earlier batches that nothing refers to any more; the page faults of fresh memory cost several times
    what it costs to fill it, hence NumPy too, which asks for large pages where torch does not.
    """

    def __init__(self):
        self.free: list[np.ndarray] = []

    def take(self, shape: tuple[int, ...]) -> Tensor:
        """Float32 memory; it comes back by itself when the last tensor that shares it has gone."""
        block = self.free.pop() if self.free and self.free[-1].shape == shape else np.empty(shape, np.float32)
        lent = block.view()  # the tensor keeps this view alive
        weakref.finalize(lent, self.free.append, block).atexit = False
        return torch.from_numpy(lent)


class _Lists:
    """The batches of an epoch as lists of (image, stored crops), made one by one."""

    def __init__(self, source: MultiCropSource, epoch: int, start: int):
        self.source, self.epoch, self.start = source, epoch, start

    def __len__(self) -> int:
        return len(self.source) - self.start

    def __iter__(self) -> Iterator[list[tuple[int, np.ndarray]]]:
        for rows, crops in self.source.chosen(self.epoch, self.start):
            yield list(zip(rows.tolist(), crops, strict=True))


class _Crops(torch.utils.data.Dataset):
    """One image of a folder set, read and decoded once: its M crops, uint8 (S, S, 3), and their labels."""

    def __init__(self, source: MultiCropSource):
        self.dataset, self.labels, self.size = source.dataset, source.labels, source.size
        self.interpolation = source.interpolation

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, item: tuple[int, np.ndarray]) -> tuple[list[np.ndarray], CropLabels] | Exception:
        row, crops = item
        try:
            found = CropLabels(*(part[0] for part in self.labels.read([row], crops[None])))
            return self.dataset.read(row, lambda image: self._cut(image, found))[0], found
        except Exception as error:  # as a value: raised in a worker it would arrive as a long traceback
            return error

    def _cut(self, image: Any, found: CropLabels) -> list[np.ndarray]:
        pixels = torch.from_numpy(np.array(image))[None].permute(0, 3, 1, 2)  # (1, 3, H, W), channels last
        boxes = pixel_boxes(found.boxes, image.height, image.width).tolist()
        crops = []
        for (top, left, height, width), flip in zip(boxes, found.flips, strict=True):
            crop = pixels[:, :, top : top + height, left : left + width]
            crop = F.interpolate(crop, size=(self.size,) * 2, mode=self.interpolation, antialias=True)
            crops.append((crop.flip(3) if flip else crop)[0].permute(1, 2, 0).numpy())
        return crops


def _collate(samples: list) -> tuple[Tensor, tuple[Tensor, ...]] | Exception:
    """Pixels uint8 (M * B, S, S, 3) and the parts of `CropLabels`; the first error among the samples instead."""
    for sample in samples:
        if isinstance(sample, Exception):
            return sample
    pixels, found = zip(*samples, strict=True)
    labels = tuple(torch.from_numpy(np.stack(part)) for part in zip(*found, strict=True))
    return torch.from_numpy(np.stack([crop for crops in zip(*pixels, strict=True) for crop in crops])), labels
