"""The in-memory image set that every generated or embedded data set becomes."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from vitq.errors import InputError


@dataclass(frozen=True)
class ImageSet:
    """Images and labels of one split, whole in memory.

    Attributes:
        name: Name given to `vitq.data.load`.
        split: "train", "val" or "test".
        images: uint8 pixels, (N, 3, H, W).
        labels: int64 class indices, (N,).
        num_classes: Number of classes, also where some do not occur in this split.
        mean: Mean of each channel that `vitq.data.batches` subtracts, in units of [0, 1] pixels.
        std: Standard deviation of each channel that it divides by, in the same units.
        version: Changes whenever the content would.
        classes: A readable name for each class.
        shift: Largest random shift in pixels that training batches apply by default.
    """

    name: str
    split: str
    images: Tensor
    labels: Tensor
    num_classes: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    version: str
    classes: tuple[str, ...] = ()
    shift: int = 0

    def __len__(self) -> int:
        return len(self.labels)

    def normalized_for(self, mean: tuple[float, float, float], std: tuple[float, float, float]) -> "ImageSet":
        """The same images with another normalisation."""
        return replace(self, mean=tuple(mean), std=tuple(std))

    def for_model(self, model: torch.nn.Module) -> "ImageSet":
        """The same images normalised as a model of timm's expects; unchanged for a model that does not say.

        Args:
            model: With `pretrained_cfg`, as every model of `vitq.zoo` has.
        """
        cfg = getattr(model, "pretrained_cfg", None) or {}
        return self.normalized_for(cfg.get("mean") or self.mean, cfg.get("std") or self.std)

    def subset(self, count: int) -> "ImageSet":
        """The first `count` images; labels of generated sets are balanced over any multiple of the class count."""
        if not 1 <= count <= len(self):
            raise InputError(f"images must lie between 1 and {len(self)} ({self.name} {self.split}), got {count}")
        version = f"{self.version}-first{count}"
        return replace(self, images=self.images[:count], labels=self.labels[:count], version=version)

    def normalize(self, images: Tensor) -> Tensor:
        """Float32 pixels with this set's mean subtracted and its standard deviation divided out.

        Args:
            images: uint8 pixels, (B, 3, H, W), on any device.
        """
        mean = torch.tensor(self.mean, device=images.device).view(3, 1, 1) * 255
        scale = 1 / (torch.tensor(self.std, device=images.device).view(3, 1, 1) * 255)
        return images.float().sub_(mean).mul_(scale)
