"""The published FKD soft labels as they are: one pickled file an image, `<root>/imagenet/train/<wnid>/<name>.tar`."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import torch

from vitq.data.soft_labels.formats import KINDS, LabelFormat
from vitq.data.soft_labels.layout import HEADER
from vitq.data.soft_labels.store import CropLabels, SoftLabels, SoftLabelStore
from vitq.data.soft_labels.unpickle import load_arrays
from vitq.errors import InputError, MissingError


def load(path: str | Path, dataset: Any, kind: str | None = None) -> SoftLabels:
    """Soft labels of a data set: a store of this package, or a folder of FKD's.

    Args:
        path: The folder.
        dataset: From `vitq.data.load`.
        kind: Label format of an FKD folder, see `FKDLabels`.

    Raises:
        MissingError: There is no such folder, or no labels in it.
        InputError: They are labels of another data set.
    """
    folder = Path(path).expanduser()
    if (folder / HEADER).is_file() or not hasattr(dataset, "samples"):
        labels = SoftLabelStore(folder)
    else:
        labels = FKDLabels(folder, dataset, kind)
    labels.require(dataset)
    return labels


class FKDLabels:
    """Published label files behind the interface of the store.

    A file holds `coords` (N, 4) = top, left, height, width in shares of the sides, `flip` (N,) and `label`: (N, 2, k)
    class indices and probabilities, (N, 2) for "smoothing" and (N,) for "hard". Class indices count the sorted class
    folders. Files are opened with an unpickler that knows arrays and nothing else.

    Args:
        root: The folder given by FKD, or imagenet/train in it.
        dataset: The folder set whose images the labels belong to; a part of ImageNet will do, if it has all classes.
        kind: "marginal_smoothing" or "marginal_renorm", which the files do not tell; None: marginal_renorm if the
            folder's name says so. Hard and smoothing labels are known by their shape.

    Raises:
        MissingError: No label file for the first image.
        InputError: A set in memory, or a label file that is not of this layout.
    """

    def __init__(self, root: str | Path, dataset: Any, kind: str | None = None):
        if not hasattr(dataset, "samples"):
            raise InputError(f"FKD labels belong to image folders, not to {getattr(dataset, 'name', dataset)!r}")
        if kind is not None and kind not in KINDS:
            raise InputError(f"kind must be one of {', '.join(KINDS)}, got {kind!r}")
        self.root, self.num_classes = Path(root).expanduser(), dataset.num_classes
        self.names = [Path(os.path.relpath(file, dataset.root)).with_suffix(".tar") for file, _ in dataset.samples]
        self.base = self._base()
        self.kind = kind or ("marginal_renorm" if "renorm" in self.root.name else "marginal_smoothing")
        _, flips, label = self._arrays(0)
        self.crops, self.label = len(flips), self._format(label)
        self.version = f"fkd-{self.root.name}"

    def __len__(self) -> int:
        return len(self.names)

    def read(self, rows: Any, crops: Any) -> CropLabels:
        """The stored crops numbered `crops` (B, M) of the images numbered `rows` (B,).

        Raises:
            MissingError: An image has no label file.
            InputError: A file is damaged, of another layout, or asks for more than arrays; it is named.
        """
        found = [self._image(row, chosen) for row, chosen in zip(np.asarray(rows).tolist(), crops, strict=True)]
        return CropLabels(*(np.stack(part) for part in zip(*found, strict=True)))

    def require(self, dataset: Any) -> None:
        """InputError unless the labels were opened for this data set."""
        if len(dataset) != len(self.names) or dataset.num_classes != self.num_classes:
            raise InputError(f"{self.root} was opened for another data set of {len(self.names)} images")

    def _base(self) -> Path:
        tails = ("imagenet/train", "train", ".")
        for folder in (self.root / tail for tail in tails):
            if (folder / self.names[0]).is_file():
                return folder
        raise MissingError(f"{self.root} holds no soft labels: no {tails[0]}/{self.names[0]}")

    def _image(self, row: int, chosen: np.ndarray) -> tuple[np.ndarray, ...]:
        coords, flips, label = self._arrays(row)
        if max(chosen) >= len(flips) or label.shape[1:] != self._shape():
            raise self._unfit(row, f"{len(flips)} crops with labels of shape {label.shape[1:]}")
        coords, flips, label = coords[chosen], flips[chosen], label[chosen].reshape(len(chosen), -1, self.label.top_k)
        if self.label.kind == "hard":
            return coords, flips, label[:, 0].astype(np.int64), np.empty((len(chosen), 0), np.float32)
        return coords, flips, self._indices(row, label[:, 0]), label[:, 1].astype(np.float32)

    def _indices(self, row: int, stored: np.ndarray) -> np.ndarray:
        indices = stored.astype(np.int64)
        if indices.min() < 0 or indices.max() >= self.num_classes:
            raise self._unfit(row, f"class {indices.max()} where the data set has {self.num_classes} classes")
        return indices

    def _arrays(self, row: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        path = self.base / self.names[row]
        try:
            found = load_arrays(path)
        except FileNotFoundError:
            raise MissingError(f"there are no soft labels {path}") from None
        if not isinstance(found, list | tuple) or len(found) != 3:
            raise self._unfit(row, "no list of coords, flip and label")
        coords, flips, label = (self._array(row, part) for part in found)
        if coords.shape != (len(flips), 4) or len(label) != len(flips) or flips.ndim != 1:
            raise self._unfit(row, f"shapes {coords.shape}, {flips.shape}, {label.shape}")
        if not (np.isfinite(coords).all() and np.isfinite(label).all()):
            raise self._unfit(row, "NaN or infinity")
        return coords.astype(np.float32), flips.astype(bool), label

    def _array(self, row: int, part: Any) -> np.ndarray:
        if isinstance(part, list | tuple) and part and all(isinstance(item, torch.Tensor) for item in part):
            part = torch.stack(list(part))
        array = part.detach().float().numpy() if isinstance(part, torch.Tensor) else np.asarray(part)
        if array.dtype.kind not in "biuf" or array.ndim < 1:
            raise self._unfit(row, f"something that is no array of numbers ({type(part).__name__})")
        return array

    def _format(self, label: np.ndarray) -> LabelFormat:
        if label.ndim == 1:
            return LabelFormat("hard", 1)
        if label.shape[1:] == (2,):
            return LabelFormat("smoothing", 1)
        if label.ndim == 3 and label.shape[1] == 2:
            return LabelFormat(self.kind, label.shape[2])
        raise self._unfit(0, f"labels of shape {label.shape}")

    def _shape(self) -> tuple[int, ...]:
        return {"hard": (), "smoothing": (2,)}.get(self.label.kind, (2, self.label.top_k))

    def _unfit(self, row: int, what: str) -> InputError:
        return InputError(f"{self.base / self.names[row]} is no FKD soft label of this set: it holds {what}")
