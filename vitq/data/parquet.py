"""A data set of Hugging Face as it is downloaded, a folder of parquet files, through timm's reader `hfds`."""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vitq.data.folder import MEAN, STD, FolderSet
from vitq.errors import InputError, MissingError


@dataclass(frozen=True)
class ParquetSet(FolderSet):
    """A `FolderSet` whose images are rows of a table; a sample is called by the number of its row.

    Attributes:
        reader: Of timm; item i is an open file and a label.
    """

    reader: Any = None

    def opened(self, file: str) -> Any:
        """The bytes of one image."""
        return self.reader[int(file)][0]


def files(path: str | Path) -> list[Path]:
    """The parquet files of a folder, itself or its folder `data`."""
    root = Path(path).expanduser()
    return sorted(root.glob("*.parquet")) or sorted(root.glob("data/*.parquet"))


def require(path: str | Path) -> list[Path]:
    """The parquet files, or MissingError, also if the package `datasets` is not installed."""
    try:
        import datasets  # noqa: F401
    except ImportError:
        raise MissingError(f"path={str(path)!r} holds parquet files, and the package datasets, which reads them, is "
                           "not installed: pip install datasets") from None
    return files(path)


def load(
    name: str,
    split: str,
    path: str | Path,
    size: int | None = None,
    images: int | None = None,
    num_classes: int | None = None,
) -> ParquetSet:
    """Arguments and errors of `vitq.data.folder.load`; `path` holds the parquet files, nothing is downloaded.

    Raises:
        InputError: There is no such split, or there are not `num_classes`.
        MissingError: The package `datasets` is not installed.
    """
    found = require(path)
    reader = _reader(path, split)
    samples = [(str(row), int(label)) for row, label in enumerate(reader.iter_targets())]
    count = len(reader.class_to_idx) or 1 + max(label for _, label in samples)
    if num_classes not in (None, count):
        raise InputError(f"path={str(path)!r} holds {count} classes, expected {num_classes}")
    if wrong := [label for _, label in samples if not 0 <= label < count]:
        raise InputError(f"path={str(path)!r}: the split {reader.split} has images of label {wrong[0]}, which is none "
                         f"of 0 to {count - 1}: one without labels, perhaps")
    classes = sorted(reader.class_to_idx, key=reader.class_to_idx.get) or map(str, range(count))
    digest = hashlib.sha256(repr([(file.name, file.stat().st_size) for file in found]).encode()).hexdigest()[:8]
    dataset = ParquetSet(
        name=name, split=split, root=Path(path).expanduser(), samples=samples, classes=tuple(classes),
        size=size or 224, mean=MEAN, std=STD, version=f"{name}-{digest}-{split}-{len(samples)}",
        reader=reader)  # fmt: skip
    return dataset.subset(images) if images else dataset


def _reader(path: str | Path, split: str) -> Any:
    from timm.data import create_reader

    names = [file.name for file in files(path)]
    choices = ("train",) if split == "train" else ("validation", "test")
    for choice in choices:
        if any(name.startswith(choice[:3]) for name in names):
            return create_reader(f"hfds/{Path(path).expanduser().resolve()}", split=choice)
    raise InputError(f"path={str(path)!r} holds no parquet file {choices[0]}*.parquet")
