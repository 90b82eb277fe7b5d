"""Augmentation of a folder set's training images, through timm: crops, RandAugment, erasing, repeats, mixing."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from vitq.train.fields import check_types, from_mapping, require

WHERE = "data.augmentation"
POLICY = re.compile(r"rand(-(m|n|mmax|inc)\d+|-(p|mstd)\d+(\.\d+)?)*|(original|v0)r?(-mstd\d+(\.\d+)?)?")


@dataclass(frozen=True)
class Augmentation:
    """What training images go through; the defaults are those of a folder set without this section.

    Mixing and repeats follow timm's `Mixup` and `RepeatAugSampler` with two differences: a batch is mixed as a whole,
    whatever the number of processes that share it, and the repeats of an image may meet on one process.

    Args:
        scale: smallest and largest share of the image's area that a random crop keeps, in (0, 1].
        hflip: probability of mirroring, in [0, 1].
        interpolation: of the resize of crops: "bilinear", "bicubic", "random" (one of the two an image), or None for
            that of the evaluation.
        auto_augment: timm's name of a policy, such as "rand-m9-mstd0.5-inc1"; None for none.
        erasing: probability that a rectangle is replaced by noise, pixel by pixel, in [0, 1].
        mixup: Beta parameter of mixup, 0 for none.
        cutmix: Beta parameter of CutMix, 0 for none; with both, each batch gets one of them with equal probability.
        mixup_smoothing: label smoothing of mixed images, in [0, 1); images that are not mixed get none.
        repeats: times that an image follows itself in an epoch, with other crops; the epoch keeps its length, so that
            it sees one in so many images.

    Raises:
        InputError: naming the field, its value and what to do.
    """

    scale: list = field(default_factory=lambda: [0.08, 1.0])
    hflip: float = 0.5
    interpolation: Literal["bilinear", "bicubic", "random"] | None = None
    auto_augment: str | None = None
    erasing: float = 0.0
    mixup: float = 0.0
    cutmix: float = 0.0
    mixup_smoothing: float = 0.1
    repeats: int = 1

    def __post_init__(self) -> None:
        check_types(self, WHERE)
        numbers = all(isinstance(end, int | float) and not isinstance(end, bool) for end in self.scale)
        require(len(self.scale) == 2 and numbers and 0 < self.scale[0] <= self.scale[1] <= 1, WHERE, "scale",
                self.scale, "give two shares of the area, the smaller first, in (0, 1]")
        for name in ("hflip", "erasing"):
            require(0 <= getattr(self, name) <= 1, WHERE, name, getattr(self, name), "give a probability in [0, 1]")
        for name in ("mixup", "cutmix"):
            require(0 <= getattr(self, name) < float("inf"), WHERE, name, getattr(self, name), "give 0 or more")
        require(0 <= self.mixup_smoothing < 1, WHERE, "mixup_smoothing", self.mixup_smoothing,
                "give a number in [0, 1)")
        require(self.repeats >= 1, WHERE, "repeats", self.repeats, "give 1 for none, or more")
        policy = self.auto_augment
        require(policy is None or POLICY.fullmatch(policy) is not None, WHERE, "auto_augment", policy,
                "give a policy of timm such as 'rand-m9-mstd0.5-inc1'")

    @classmethod
    def from_dict(cls, mapping: dict[str, Any]) -> "Augmentation":
        """Build from a mapping such as a YAML section; unknown keys are refused."""
        return from_mapping(cls, mapping, WHERE)

    @property
    def mixes(self) -> bool:
        """Whether images of a batch are mixed with each other."""
        return self.mixup > 0 or self.cutmix > 0

    def options(self, interpolation: str) -> dict[str, Any]:
        """Arguments of `timm.data.create_transform` for single images.

        Args:
            interpolation: of the evaluation, used where this says nothing.
        """
        return {"scale": tuple(self.scale), "hflip": self.hflip, "interpolation": self.interpolation or interpolation,
                "auto_augment": self.auto_augment, "re_prob": self.erasing, "re_mode": "pixel"}

    def mix(self, images: Tensor, labels: Tensor, classes: int, *key: int) -> tuple[Tensor, Tensor]:
        """Mix each image with its mirror partner in the batch, i with B - 1 - i.

        Args:
            images: float (B, 3, H, W), B even; changed in place.
            labels: int64 (B,).
            classes: of the data set.
            key: seed and further numbers such as epoch and batch, which alone decide the kind and the amount.

        Returns:
            Images, and labels as distributions, float32 (B, classes).
        """
        from timm.data import Mixup

        mixup = Mixup(self.mixup, self.cutmix, label_smoothing=self.mixup_smoothing, num_classes=classes)
        with _numpy_seeded(*key):
            return mixup(images, labels)


def mended(transform: Any) -> Any:
    """A transform of timm whose posterizing takes 0 bits, in place.

    RandAugment with noise on its magnitude asks for 0 bits now and then. Pillow gave a black image until it refused.
    """
    for step in transform.transforms:
        policies = getattr(step, "policy", [getattr(step, "ops", [])])
        for operation in (operation for operations in policies for operation in operations):
            if operation.name.startswith("Posterize"):
                operation.aug_fn = _posterize
    return transform


def _posterize(image: Any, bits: int, **_: Any) -> Any:
    from PIL import Image, ImageOps

    if bits < 1:
        return Image.new(image.mode, image.size)
    return image if bits >= 8 else ImageOps.posterize(image, bits)


@contextmanager
def _numpy_seeded(seed: int, *key: int) -> Iterator[None]:
    state = np.random.get_state()
    np.random.seed(int(np.random.SeedSequence(seed, spawn_key=key).generate_state(1)[0]))
    try:
        yield
    finally:
        np.random.set_state(state)


def mirrored_part(rows: Tensor, part: tuple[int, int]) -> Tensor:
    """One process's share of a batch, closed under the mirror i -> B - 1 - i, so that its own mirror is the batch's.

    Args:
        rows: of the batch, (B, ...), B a multiple of twice the number of processes.
        part: index and number of processes.
    """
    index, count = part
    front, back = rows[: len(rows) // 2], rows[len(rows) // 2 :].flip(0)
    return torch.cat([front.tensor_split(count)[index], back.tensor_split(count)[index].flip(0)])
