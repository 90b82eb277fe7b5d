"""Data sets by name and batches of them: `load` and `batches`.

`digits`, `glyphs` and `photos` need no download; `imagenet` is the user's own copy, or any folder laid out like it.
"""

import os
from importlib import import_module
from pathlib import Path

import torch

from vitq import provenance
from vitq.data.batches import Batches, FolderBatches, MemoryBatches
from vitq.data.folder import FolderSet
from vitq.data.images import ImageSet
from vitq.errors import InputError, MissingError

__all__ = ["NAMES", "SPLITS", "FolderSet", "ImageSet", "batches", "load", "names"]

NAMES = ("digits", "glyphs", "photos", "imagenet")
SPLITS = ("train", "val", "test")


def load(
    name: str,
    split: str = "train",
    *,
    size: int | None = None,
    images: int | None = None,
    seed: int = 0,
    path: str | Path | None = None,
    num_classes: int | None = None,
) -> ImageSet | FolderSet:
    """A data set by name.

    Args:
        name: "digits", "glyphs", "photos" (whole in memory) or "imagenet" (read from a folder through timm).
        split: "train", "val" or "test"; for imagenet, val and test are both the folder val.
        size: Side in pixels instead of the set's own: 32 for digits and glyphs, 224 for photos and imagenet.
        images: Number of images instead of all that the split has.
        seed: Seed of generated content or of the division into splits; it has nothing to do with training.
        path: The folder with train/CLASS/ and val/CLASS/, with tar shards (`vitq.data.shards`) or with the parquet
            files of Hugging Face (`vitq.data.parquet`), for imagenet; otherwise the variable VITQ_IMAGENET is used.
        num_classes: Refuse a set with another number of classes.

    Raises:
        InputError: A wrong argument, an empty class folder, another number of classes.
        MissingError: The files of the set are not there.
    """
    _check(name, split, size, images, seed)
    if name == "imagenet":
        dataset = _reader(_folder_path(path)).load(name, split, _folder_path(path), size, images, num_classes)
    elif path is not None:
        raise InputError(f"path={str(path)!r} is for imagenet only; {name} needs none")
    else:
        dataset = _module(name).load(split, size, images, seed)
    if num_classes is not None and dataset.num_classes != num_classes:
        raise InputError(f"num_classes={num_classes}, but {name} has {dataset.num_classes} classes")
    provenance.note_data(dataset.name, dataset.version)
    return dataset


def batches(
    dataset: ImageSet | FolderSet,
    batch_size: int,
    *,
    train: bool = False,
    seed: int = 0,
    epoch: int = 0,
    start: int = 0,
    device: torch.device | str | None = None,
    augment: int | bool | None = None,
    workers: int | None = None,
    part: tuple[int, int] = (0, 1),
) -> Batches:
    """Batches (images float32 (B, 3, H, W) normalised, labels int64 (B,)) to iterate as often as wanted.

    They are deterministic in (seed, epoch); `set_epoch` moves to another epoch. Training batches are shuffled,
    augmented and complete, evaluation batches in order and over every image.

    Args:
        dataset: From `load`.
        batch_size: Images a batch.
        train: Training or evaluation batches.
        seed: Seed of order and augmentation.
        epoch: Epoch to begin with.
        start: Batches of that epoch to skip, without reading them.
        device: Where the batches go.
        augment: False for none, a number of pixels for the random shift of in-memory sets, None for the set's own.
        workers: Reading processes of a folder set; what they read does not depend on their number.
        part: Index and number of processes that share each batch; their parts, in order, make up the whole.

    Raises:
        InputError: A wrong argument; while iterating over a folder set, a damaged image, by name.
    """
    _whole("batch_size", batch_size, 1)
    for label, value in (("seed", seed), ("epoch", epoch), ("start", start)):
        _whole(label, value, 0)
    arguments = (dataset, batch_size, train, seed, epoch, start, device, part)
    if isinstance(dataset, FolderSet):
        return FolderBatches(*arguments, augment=augment, workers=workers)
    if isinstance(dataset, ImageSet):
        return MemoryBatches(*arguments, augment=augment)
    raise InputError(f"dataset must come from vitq.data.load, got {type(dataset).__name__}")


def names():
    """A pandas table, one row a data set (its index): source, images a split, and "found" or what is missing."""
    import pandas

    sources = {
        "digits": "scikit-learn wheel",
        "glyphs": "rendered from matplotlib's fonts",
        "photos": "photographs of the scikit-image and scikit-learn wheels",
        "imagenet": "folder named by path or VITQ_IMAGENET",
    }
    rows = [(name, source, *_look(name)) for name, source in sources.items()]
    return pandas.DataFrame(rows, columns=["name", "source", "images", "found"]).set_index("name")


def _module(name: str):
    return import_module(f"vitq.data.{'folder' if name == 'imagenet' else name}")


def _reader(path: str | Path):
    """The module that reads a folder: of tar shards or parquet files, if it holds any, or of class folders."""
    shards, parquet = (import_module(f"vitq.data.{name}") for name in ("shards", "parquet"))
    if any(shards.shards(path).values()):
        return shards
    return parquet if parquet.files(path) else _module("imagenet")


def _folder_path(path: str | Path | None) -> str | Path:
    path = path or os.environ.get("VITQ_IMAGENET")
    if not path:
        raise MissingError("imagenet needs path=FOLDER (or the variable VITQ_IMAGENET) that holds train/ and val/")
    return path


def _look(name: str) -> tuple[str, str]:
    """Images in train / val / test, and "found" or what is missing."""
    images = "all files" if name == "imagenet" else " / ".join(str(_module(name).SIZES[split]) for split in SPLITS)
    try:
        if name == "imagenet":
            _reader(_folder_path(None)).require(_folder_path(None))
        else:
            _module(name).require()
    except MissingError as error:
        return images, str(error)
    return images, "found"


def _check(name: str, split: str, size: int | None, images: int | None, seed: int) -> None:
    if name not in NAMES:
        raise InputError(f"name must be one of {', '.join(NAMES)}, got {name!r}")
    if split not in SPLITS:
        raise InputError(f"split must be one of {', '.join(SPLITS)}, got {split!r}")
    for label, value in (("size", size), ("images", images)):
        if value is not None:
            _whole(label, value, 1)
    _whole("seed", seed, 0)


def _whole(label: str, value: int, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise InputError(f"{label} must be a whole number of at least {least}, got {value!r}")
