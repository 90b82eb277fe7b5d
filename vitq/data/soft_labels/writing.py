"""Writing a store: append-only shards under a lock, renamed when they are whole; a killed process loses nothing."""

import errno
import fcntl
import os
import shutil
from pathlib import Path

import numpy as np

from vitq.data.soft_labels.layout import HEADER, NAMES, Header, checksum, shard_file
from vitq.errors import InputError, MissingError
from vitq.files import write_json, write_text


def begin(folder: Path, header: Header, names: list[str]) -> None:
    """Write the header of a new store, or see that the one that is there is the same.

    Raises:
        InputError: The folder holds labels of other images or another teacher, or other crops; the first difference is
            named.
        MissingError: The folder cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = open(folder / ".lock", "a")
    except OSError as error:
        raise MissingError(f"out={str(folder)!r}: {error.strerror or error}") from None
    with lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / HEADER).is_file():
            if names:
                write_text(folder / NAMES, "\n".join(names) + "\n")
            write_json(folder / HEADER, header.to_dict())
            return
    there, wanted = Header.read(folder).to_dict(), header.to_dict()
    for name, value in wanted.items():
        if there[name] != value:
            raise InputError(f"out={str(folder)!r} holds labels with {name} {there[name]!r}, not {value!r}; give the "
                             "same arguments to go on, or another folder")  # fmt: skip


def written(folder: Path, header: Header) -> int:
    """Images that are on disk by now, finished shards and those in progress."""
    count, size = 0, header.block.itemsize
    for shard in range(header.shards):
        file = shard_file(folder, shard)
        for path in (file, file.with_suffix(".part")):
            try:
                count += min(len(header.rows(shard)), path.stat().st_size // size)
                break
            except FileNotFoundError:
                continue
    return count


def check_space(folder: Path, header: Header) -> None:
    """MissingError if the disk has no room for the images that are still to be written."""
    left = (header.images - written(folder, header)) * header.block.itemsize
    free = shutil.disk_usage(folder).free
    if left > free:
        raise MissingError(f"out={str(folder)!r}: {left / 1e9:.1f} GB are still to be written and {free / 1e9:.1f} GB "
                           "are free; free space, or ask for fewer crops")  # fmt: skip


class ShardWriter:
    """One shard in the making, held by one process.

    Use `open_shard`. Whole groups of images that an earlier process has left are kept, anything after them is cut off.

    Args:
        folder: The store.
        header: Its header.
        shard: Number of the shard.
        file: Its .part file, open without a buffer and locked.
    """

    def __init__(self, folder: Path, header: Header, shard: int, file):
        self.header, self.rows, self.file = header, header.rows(shard), file
        self.target = shard_file(folder, shard)
        good = self._good_blocks()
        self.done = good if good == len(self.rows) else good // header.group * header.group
        file.truncate(self.done * header.block.itemsize)
        file.seek(0, os.SEEK_END)

    def _good_blocks(self) -> int:
        self.file.seek(0)
        for number, row in enumerate(self.rows):
            data = self.file.read(self.header.block.itemsize)
            if len(data) < self.header.block.itemsize:
                return number
            block = np.frombuffer(data, self.header.block)[0]
            if checksum(block["crops"], row) != int(block["crc"]):
                return number
        return len(self.rows)

    @property
    def pending(self) -> list[range]:
        """The groups of images that are still to be written, in order."""
        left = self.rows[self.done :]
        return [left[i : i + self.header.group] for i in range(0, len(left), self.header.group)]

    def append(self, boxes: np.ndarray, flips: np.ndarray, indices: np.ndarray, probabilities: np.ndarray) -> None:
        """Write the next images at once.

        Args:
            boxes: Stored uint16 shares, (B, crops, 4); see `layout.to_fractions`.
            flips: Bool, (B, crops).
            indices: Class indices, (B, crops, k).
            probabilities: float16, (B, crops, k); not looked at for hard labels.

        Raises:
            MissingError: The disk is full; what was written before is kept.
        """
        blocks = np.zeros(len(boxes), self.header.block)
        crops = blocks["crops"]
        crops["box"], crops["flip"], crops["indices"] = boxes, flips, indices
        if "probabilities" in crops.dtype.names:
            crops["probabilities"] = probabilities
        first = self.rows[self.done]
        blocks["crc"] = [checksum(crops[i], first + i) for i in range(len(blocks))]
        left = memoryview(blocks.tobytes())
        try:
            while left:
                left = left[self.file.write(left) :]
        except OSError as error:
            what = "no space left on the device" if error.errno == errno.ENOSPC else error.strerror or str(error)
            raise MissingError(f"{self.file.name}: {what}; free space and run the same command again") from None
        self.done += len(blocks)

    def close(self) -> None:
        """Let go of the shard; a complete one gets its final name."""
        with self.file:
            if self.done == len(self.rows):
                os.fsync(self.file.fileno())
                os.replace(self.file.name, self.target)


def open_shard(folder: Path, header: Header, shard: int) -> ShardWriter | None:
    """A shard to write, or None if it is finished or another process is writing it."""
    target = shard_file(folder, shard)
    if target.is_file():
        return None
    part = target.with_suffix(".part")
    try:
        file = open(part, "a+b", buffering=0)
    except OSError as error:
        raise MissingError(f"{part}: {error.strerror or error}") from None
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        file.close()
        return None
    if target.is_file():  # finished between the first look and the lock
        file.close()
        part.unlink(missing_ok=True)
        return None
    return ShardWriter(folder, header, shard, file)
