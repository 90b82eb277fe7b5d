"""Image folders (ImageNet and anything laid out like it) through timm, behind the interface of the in-memory sets."""

import hashlib
import os
import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from vitq.data.augmentation import Augmentation, mended
from vitq.errors import InputError, MissingError

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class FolderSet(Dataset):
    """Images in class folders, read when they are needed. Item i is a normalised evaluation crop and its label.

    Attributes:
        name: Name given to `vitq.data.load`.
        split: "train", "val" or "test".
        root: The folder that holds the class folders of this split.
        samples: Path and class index of every image.
        classes: Names of the class folders.
        size: Side of a crop in pixels.
        mean: Mean of each channel, in units of [0, 1] pixels.
        std: Standard deviation of each channel, in the same units.
        version: Changes with the file names, and with the size in bytes of 1,000 files spread evenly.
        crop_pct: Share of the shorter side that the evaluation crop keeps.
        interpolation: Of the evaluation resize; training crops use it too if `augmentation` names no other.
        augmentation: Of training images; None for random crops and mirroring alone.
    """

    name: str
    split: str
    root: Path
    samples: list[tuple[str, int]]
    classes: tuple[str, ...]
    size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    version: str
    crop_pct: float = 0.875
    interpolation: str = "bicubic"
    augmentation: Augmentation | None = None

    @property
    def num_classes(self) -> int:
        """Number of class folders."""
        return len(self.classes)

    @property
    def labels(self) -> Tensor:
        """int64 class indices, (N,)."""
        return torch.tensor([label for _, label in self.samples])

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.read(index, self.transform(train=False))

    def read(self, index: int, transform) -> tuple[Tensor, int]:
        """One transformed image and its label.

        Raises:
            InputError: The file is truncated or no image; it is named.
        """
        from PIL import Image

        file, label = self.samples[index]
        try:
            with Image.open(self.opened(file)) as image:
                pixels = image.convert("RGB")
        except (OSError, SyntaxError, ValueError) as error:
            raise InputError(f"{file} is damaged or no image ({error}); replace it or take it away") from None
        return transform(pixels), label

    def opened(self, file: str):
        """What Pillow opens for the sample called `file`."""
        return file

    def transform(self, train: bool):
        """Timm's standard transform: random resized crop and what `augmentation` says, or resize and centre crop."""
        from timm.data import create_transform

        options = {"interpolation": self.interpolation}
        if train:
            options = (self.augmentation or Augmentation()).options(self.interpolation)
        shared = {"color_jitter": None, "mean": self.mean, "std": self.std, "crop_pct": self.crop_pct}
        transform = create_transform(self.size, is_training=train, **shared, **options)
        return mended(transform) if self.augmentation is not None else transform

    def normalized_for(self, mean: tuple[float, float, float], std: tuple[float, float, float]) -> "FolderSet":
        """The same images with another normalisation."""
        return replace(self, mean=tuple(mean), std=tuple(std))

    def for_model(self, model: torch.nn.Module) -> "FolderSet":
        """The same images resized, cropped and normalised as a model of timm's expects, at this set's size.

        Args:
            model: With `pretrained_cfg`, as every model of `vitq.zoo` has; unchanged for a model that does not say.
        """
        cfg = getattr(model, "pretrained_cfg", None) or {}
        fields = ("mean", "std", "crop_pct", "interpolation")
        return replace(self, **{field: cfg[field] for field in fields if cfg.get(field)})

    def subset(self, count: int) -> "FolderSet":
        """`count` images spread evenly over the files, and so over the classes."""
        if not 1 <= count <= len(self):
            raise InputError(f"images must lie between 1 and the {len(self)} files of {self.root}, got {count}")
        chosen = np.linspace(0, len(self) - 1, count).round().astype(int)
        return replace(self, samples=[self.samples[i] for i in chosen], version=f"{self.version}-spread{count}")


def load(
    name: str,
    split: str,
    path: str | Path,
    size: int | None = None,
    images: int | None = None,
    num_classes: int | None = None,
) -> FolderSet:
    """ImageFolder layout: `path`/train/CLASS/*.jpg and `path`/val/CLASS/*.jpg. The test split is the folder val.

    Args:
        name: Name of the set.
        split: "train", "val" or "test".
        path: The folder that holds train and val.
        size: Side of a crop in pixels, 224 by default.
        images: So many images, spread evenly, instead of all.
        num_classes: Number of classes that must be there.

    Raises:
        MissingError: The folder, or train or val in it, does not exist.
        InputError: A class folder is empty, train and val differ in their classes, or there are not `num_classes`.
    """
    folders = require(path)
    classes = _classes(folders, num_classes)
    here = folders["train" if split == "train" else "val"]
    samples = _samples(here, classes)
    dataset = FolderSet(
        name=name,
        split=split,
        root=here,
        samples=samples,
        classes=classes,
        size=size or 224,
        mean=MEAN,
        std=STD,
        version=f"{name}-{_hash(here, samples)}-{split}-{len(samples)}",
    )
    return dataset.subset(images) if images else dataset


def require(path: str | Path) -> dict[str, Path]:
    """The folders train and val, or MissingError."""
    root = Path(path).expanduser()
    folders = {part: root / part for part in ("train", "val")}
    for folder in (root, *folders.values()):
        if not folder.is_dir():
            raise MissingError(f"path={str(path)!r} must hold train/CLASS/ and val/CLASS/: no folder {folder}")
    return folders


def _classes(folders: dict[str, Path], num_classes: int | None) -> tuple[str, ...]:
    from timm.utils.misc import natural_key

    found = {
        part: {entry.name for entry in os.scandir(folder) if entry.is_dir() and entry.name[0] != "."}
        for part, folder in folders.items()
    }
    for part, folder in folders.items():
        if not found[part]:
            raise InputError(f"{folder} is empty: it must hold one folder for each class")
    for name in sorted(found["train"] ^ found["val"]):
        part, other = ("train", "val") if name in found["train"] else ("val", "train")
        raise InputError(f"class folder {folders[part] / name} has no counterpart in {folders[other]}")
    if num_classes is not None and len(found["train"]) != num_classes:
        raise InputError(f"{folders['train']} holds {len(found['train'])} class folders, expected {num_classes}")
    return tuple(sorted(found["train"], key=natural_key))


def _samples(folder: Path, classes: tuple[str, ...]) -> list[tuple[str, int]]:
    from timm.data import create_dataset

    indices = {name: index for index, name in enumerate(classes)}
    try:
        samples = create_dataset("", root=str(folder), search_split=False, class_map=indices).reader.samples
    except RuntimeError:
        samples = []
    occupied = {label for _, label in samples}
    for index, name in enumerate(classes):
        if index not in occupied:
            raise InputError(f"class folder {folder / name} holds no image")
    return samples


def _hash(folder: Path, samples: list[tuple[str, int]]) -> str:
    digest = hashlib.sha256("\n".join(os.path.relpath(file, folder) for file, _ in samples).encode())
    for index in np.linspace(0, len(samples) - 1, min(1000, len(samples))).round().astype(int):
        digest.update(os.path.getsize(samples[index][0]).to_bytes(8, "little"))
    return digest.hexdigest()[:8]


class View(Dataset):
    """A folder set as one epoch reads it: every image has its own random stream, whoever reads it and when.

    Args:
        dataset: The folder set.
        train: Use the training transform.
        seed: Seed of the run.
        epoch: The epoch.
        repeats: Copies of an image, each with a stream of its own; item i is copy i % repeats of image i // repeats.
    """

    def __init__(self, dataset: FolderSet, train: bool, seed: int, epoch: int, repeats: int = 1):
        self.dataset, self.train, self.transform = dataset, train, dataset.transform(train)
        self.key, self.repeats = (seed, epoch), repeats

    def __len__(self) -> int:
        return len(self.dataset) * self.repeats

    def __getitem__(self, item: int) -> tuple[Tensor, int] | InputError:
        index, copy = divmod(item, self.repeats)
        try:
            if not self.train:
                return self.dataset.read(index, self.transform)
            with seeded(*self.key, index, *([copy] if copy else [])):
                return self.dataset.read(index, self.transform)
        except InputError as error:  # as a value: raised in a worker it would arrive as a long traceback
            return error


@contextmanager
def seeded(seed: int, *key: int) -> Iterator[None]:
    """Python's, NumPy's and torch's generators at a state that seed and key decide; afterwards they are as before."""
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    value = int(np.random.SeedSequence(seed, spawn_key=key).generate_state(1)[0])
    random.seed(value), np.random.seed(value), torch.manual_seed(value)
    try:
        yield
    finally:
        random.setstate(states[0]), np.random.set_state(states[1]), torch.set_rng_state(states[2])


def collate(samples: list) -> tuple[Tensor, Tensor] | InputError:
    """Stack images (B, 3, H, W) and labels (B,); the first error among the samples instead of a batch.

    Of no samples, the share of one process in a last small batch, images are (0, 3, 0, 0).
    """
    if not samples:
        return torch.zeros(0, 3, 0, 0), torch.zeros(0, dtype=torch.long)
    for sample in samples:
        if isinstance(sample, InputError):
            return sample
    images, labels = zip(*samples, strict=True)
    return torch.stack(images), torch.tensor(labels)
