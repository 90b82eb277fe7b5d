"""How a store lies on disk: a header, and shards of fixed-size blocks, one block an image with its own checksum."""

import math
import os
import zlib
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vitq.data.soft_labels.formats import LabelFormat
from vitq.errors import InputError, MissingError
from vitq.files import read_json

FORMAT = "vitq soft labels 1"
HEADER, NAMES = "header.json", "images.txt"
IMAGENET_IMAGES = 1_281_167
_FRACTION = 65_535  # a share of an image's side in steps of 1 / 65,535: exact to the pixel up to 32,767 pixels


@dataclass(frozen=True)
class Header:
    """What a store holds and what made it; two stores with equal headers hold equal labels.

    Attributes:
        images: Number of images.
        crops: Stored crops of each image.
        num_classes: Classes of the teacher.
        kind: `LabelFormat.kind`.
        top_k: `LabelFormat.top_k`.
        data: Version of the data set, as `vitq.data.load` gives it.
        teacher: Name of the teacher in `vitq.zoo`.
        weights: `vitq.zoo.fingerprint` of the teacher.
        size: Side of the teacher's crops in pixels.
        interpolation: Of the resize to that side.
        mean: Of the teacher's normalisation.
        std: Of the teacher's normalisation.
        scale: Least and largest share of the image's area that a crop has.
        ratio: Least and largest width over height.
        flip: Probability of mirroring.
        seed: Of the crops.
        precision: "no" (float32) or "bf16".
        batch_size: Crops in a forward pass of the teacher.
        per_shard: Images in a shard.
    """

    images: int
    crops: int
    num_classes: int
    kind: str
    top_k: int
    data: str
    teacher: str
    weights: str
    size: int
    interpolation: str
    mean: tuple[float, ...]
    std: tuple[float, ...]
    scale: tuple[float, float]
    ratio: tuple[float, float]
    flip: float
    seed: int
    precision: str
    batch_size: int
    per_shard: int

    @property
    def label(self) -> LabelFormat:
        """The label format."""
        return LabelFormat(self.kind, self.top_k)

    @property
    def block(self) -> np.dtype:
        """One image's block: its crops and a CRC-32."""
        return block_dtype(self.crops, self.label)

    @property
    def shards(self) -> int:
        """Number of shards."""
        return math.ceil(self.images / self.per_shard)

    @property
    def group(self) -> int:
        """Images that the teacher sees together; a resumed shard goes on at the beginning of a group."""
        return max(1, self.batch_size // self.crops)

    def rows(self, shard: int) -> range:
        """The images of a shard."""
        return range(shard * self.per_shard, min(self.images, (shard + 1) * self.per_shard))

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {"format": FORMAT} | {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}

    @classmethod
    def read(cls, folder: Path) -> "Header":
        """The header of a store.

        Raises:
            MissingError: There is no store in this folder.
            InputError: The header cannot be understood.
        """
        path = folder / HEADER
        if not path.is_file():
            raise MissingError(f"{folder} holds no soft labels ({HEADER} is not there); make them: vitq labels make")
        given = read_json(path)
        if not isinstance(given, dict) or given.pop("format", None) != FORMAT:
            raise InputError(f"{path} is not the header of {FORMAT!r}")
        try:
            return cls(**{k: tuple(v) if isinstance(v, list) else v for k, v in given.items()})
        except TypeError as error:
            raise InputError(f"{path}: {error}") from None


def block_dtype(crops: int, label: LabelFormat) -> np.dtype:
    """One image: for each crop box, flip, class indices and (but for "hard") probabilities, then a CRC-32."""
    fields = [("box", "<u2", (4,)), ("flip", "u1"), ("indices", "<u2", (label.top_k,))]
    if label.kind != "hard":
        fields.append(("probabilities", "<f2", (label.top_k,)))
    return np.dtype([("crops", np.dtype(fields), (crops,)), ("crc", "<u4")])


def bytes_per_crop(label: LabelFormat) -> int:
    """29 for marginal smoothing with k = 5: box 8, flip 1, indices 10, probabilities 10."""
    return block_dtype(1, label).itemsize - 4


def total_bytes(images: int, crops: int, label: LabelFormat) -> int:
    """Bytes of all shards, checksums included; 18.6 GB for ImageNet with 500 crops and k = 5."""
    return images * block_dtype(crops, label).itemsize


def shard_file(folder: Path, shard: int) -> Path:
    """A finished shard; while it is being written it ends in .part."""
    return folder / f"labels-{shard:05d}.bin"


def to_fractions(boxes: np.ndarray, height: int, width: int) -> np.ndarray:
    """Pixel boxes (..., 4) = top, left, height, width as stored uint16 shares of the image's sides."""
    return np.rint(boxes * (_FRACTION / np.array([height, width, height, width]))).astype(np.uint16)


def from_fractions(stored: np.ndarray) -> np.ndarray:
    """Stored boxes as float32 shares in [0, 1]."""
    return stored.astype(np.float32) / np.float32(_FRACTION)


def checksum(payload: np.ndarray, row: int) -> int:
    """CRC-32 of one image's crops and its number, so that a block in the wrong place is noticed too."""
    return zlib.crc32(payload, zlib.crc32(row.to_bytes(8, "little")))


def image_names(dataset: Any) -> list[str]:
    """File names relative to the folder of a folder set; empty for a set in memory."""
    return [os.path.relpath(file, dataset.root) for file, _ in getattr(dataset, "samples", ())]
