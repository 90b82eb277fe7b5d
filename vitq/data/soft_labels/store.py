"""Reading soft labels: one interface for the store of this package and for published folders."""

from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from vitq.data.soft_labels.formats import LabelFormat
from vitq.data.soft_labels.layout import NAMES, Header, checksum, from_fractions, shard_file
from vitq.errors import InputError, MissingError


class CropLabels(NamedTuple):
    """M stored crops of each of B images: where they lie and what the teacher said.

    Attributes:
        boxes: Top, left, height, width as shares of the image's sides, float32 (B, M, 4).
        flips: Whether the teacher saw the crop mirrored, bool (B, M).
        indices: Most probable classes, int64 (B, M, k).
        probabilities: Of these classes, float32 (B, M, k); empty for hard labels.
    """

    boxes: np.ndarray
    flips: np.ndarray
    indices: np.ndarray
    probabilities: np.ndarray

    def distributions(self, label: LabelFormat, num_classes: int, device: torch.device | str | None = None) -> Tensor:
        """Full distributions, float32 (B, M, num_classes)."""
        indices, probabilities = (torch.from_numpy(part).to(device) for part in (self.indices, self.probabilities))
        return label.recover(indices, probabilities, num_classes)


class SoftLabels(Protocol):
    """What a loader needs of soft labels.

    Attributes:
        crops: Stored crops of each image.
        num_classes: Classes of the teacher.
        label: How a distribution is compressed.
        version: Changes with what made the labels.
    """

    crops: int
    num_classes: int
    label: LabelFormat
    version: str

    def __len__(self) -> int:
        """Number of images."""

    def read(self, rows: Any, crops: Any) -> CropLabels:
        """The stored crops numbered `crops` (B, M) of the images numbered `rows` (B,)."""

    def require(self, dataset: Any) -> None:
        """InputError unless these are labels of this data set."""


class SoftLabelStore:
    """Soft labels from `vitq labels make`, memory-mapped; a block's checksum is looked at when it is first touched.

    Args:
        folder: The store.
        partial: Also open a store that is not finished; reading an image that is missing is an error then.

    Raises:
        MissingError: No store, or shards are missing.
        InputError: A header that cannot be read, or a shard of the wrong size.
    """

    def __init__(self, folder: str | Path, partial: bool = False):
        self.folder = Path(folder).expanduser()
        self.header = Header.read(self.folder)
        self.crops, self.num_classes, self.label = self.header.crops, self.header.num_classes, self.header.label
        self.version = f"{self.header.data}-{self.header.teacher}-{self.header.weights}-seed{self.header.seed}"
        self._maps: dict[int, np.ndarray] = {}
        self._checked = np.zeros(self.header.images, bool)
        missing = [shard for shard in range(self.header.shards) if not shard_file(self.folder, shard).is_file()]
        if missing and not partial:
            raise MissingError(f"{self.folder} is not finished: {len(missing)} of {self.header.shards} shards are "
                               "missing; the command that began it goes on")  # fmt: skip

    def __len__(self) -> int:
        return self.header.images

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_maps": {}}  # a reading process maps the files itself

    def read(self, rows: Any, crops: Any) -> CropLabels:
        """The stored crops numbered `crops` (B, M) of the images numbered `rows` (B,).

        Raises:
            InputError: A number outside the store, or a corrupt block; file and image are named.
        """
        rows, crops = np.asarray(rows), np.asarray(crops)
        if rows.size and not 0 <= rows.min() <= rows.max() < len(self):
            raise InputError(f"rows must lie between 0 and {len(self) - 1}, got {rows.min()} to {rows.max()}")
        if crops.size and not 0 <= crops.min() <= crops.max() < self.crops:
            raise InputError(f"crops must lie between 0 and {self.crops - 1}, got {crops.min()} to {crops.max()}")
        records = np.empty(crops.shape, self.header.block["crops"].base)
        shards = rows // self.header.per_shard
        for shard in np.unique(shards).tolist():
            here = np.nonzero(shards == shard)[0]
            blocks, local = self._shard(shard), rows[here] - shard * self.header.per_shard
            for row in rows[here][~self._checked[rows[here]]].tolist():
                self.check(row)
            records[here] = blocks["crops"][local[:, None], crops[here]]
        return self._unpacked(records)

    def image(self, row: int) -> CropLabels:
        """All stored crops of one image, with B = 1."""
        return self.read([row], np.arange(self.crops)[None])

    def check(self, row: int) -> None:
        """InputError, naming file and image, if the checksum of an image's block is wrong."""
        shard = row // self.header.per_shard
        block = self._shard(shard)[row - shard * self.header.per_shard]
        if checksum(block["crops"], row) != int(block["crc"]):
            file = shard_file(self.folder, shard)
            raise InputError(f"{file}: the block of image {row}{self._named(row)} is corrupt; delete this file and run "
                             "the same vitq labels make again")  # fmt: skip
        self._checked[row] = True

    def corrupt(self) -> list[str]:
        """One line for each corrupt block or damaged file among the finished shards."""
        lines = []
        for shard in range(self.header.shards):
            if not shard_file(self.folder, shard).is_file():
                continue
            for row in self.header.rows(shard):
                try:
                    self.check(row)
                except InputError as error:
                    lines.append(str(error))
                    if shard not in self._maps:  # the file as a whole is damaged
                        break
        return lines

    def require(self, dataset: Any) -> None:
        """InputError unless these are labels of this data set."""
        if dataset.version != self.header.data:
            raise InputError(f"{self.folder} holds labels of {self.header.data}, not of {dataset.version}; make others "
                             "with vitq labels make")  # fmt: skip

    def _shard(self, shard: int) -> np.ndarray:
        if shard not in self._maps:
            file, rows = shard_file(self.folder, shard), self.header.rows(shard)
            wanted = len(rows) * self.header.block.itemsize
            if not file.is_file():
                raise MissingError(f"{file} is missing; the command that began this store goes on")
            if file.stat().st_size != wanted:
                raise InputError(f"{file} has {file.stat().st_size} bytes instead of {wanted}; delete it and run the "
                                 "same vitq labels make again")  # fmt: skip
            self._maps[shard] = np.memmap(file, self.header.block, "r", shape=(len(rows),)).view(np.ndarray)
        return self._maps[shard]

    def _named(self, row: int) -> str:
        names = self.folder / NAMES
        lines = names.read_text(encoding="utf-8").splitlines() if names.is_file() else []
        return f" ({lines[row]})" if row < len(lines) else ""

    def _unpacked(self, records: np.ndarray) -> CropLabels:
        known = self.label.kind != "hard"
        probabilities = records["probabilities"].astype(np.float32) if known else np.empty((*records.shape, 0), "f4")
        return CropLabels(from_fractions(records["box"]), records["flip"].astype(bool),
                          records["indices"].astype(np.int64), probabilities)  # fmt: skip
