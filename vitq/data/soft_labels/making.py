"""`vitq labels make`: a store of soft labels from any teacher, by one process or many, interrupted or not."""

import sys
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from vitq.data.soft_labels import layout, writing
from vitq.data.soft_labels.formats import LabelFormat
from vitq.data.soft_labels.layout import Header
from vitq.data.soft_labels.store import SoftLabelStore
from vitq.data.soft_labels.teacher import Labeller, read_groups
from vitq.errors import InputError, MissingError

PER_SHARD, SHARDS = 8_192, 32  # images in a shard at most, and shards of a smaller set about


@dataclass(frozen=True)
class CropSettings:
    """How many crops a store holds, how they are drawn and what is kept of the teacher's answer.

    Args:
        crops: Crops of each image. The published labels have 500.
        label: What is kept of each distribution.
        scale: Least and largest share of the image's area. FKD's labels use (0.08, 0.936).
        ratio: Least and largest width over height.
        flip: Probability of mirroring.
        size: Side of the teacher's crops in pixels; None for the teacher's own.
        seed: Of the crops.
        precision: "no" (float32) or "bf16", of the teacher.
        batch_size: Crops in a forward pass.

    Raises:
        InputError: Naming the argument.
    """

    crops: int = 500
    label: LabelFormat = LabelFormat()
    scale: tuple[float, float] = (0.08, 0.936)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    flip: float = 0.5
    size: int | None = None
    seed: int = 0
    precision: str = "no"
    batch_size: int = 256

    def __post_init__(self) -> None:
        for name, least in (("crops", 1), ("seed", 0), ("batch_size", 1), ("size", 1)):
            value = getattr(self, name)
            if value is None and name == "size":
                continue
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise InputError(f"{name} must be a whole number of at least {least}, got {value!r}")
        if not 0 < self.scale[0] <= self.scale[1] <= 1:
            raise InputError(f"scale must be two shares of the area in (0, 1], the least first, got {self.scale}")
        if not 0 < self.ratio[0] <= self.ratio[1]:
            raise InputError(f"ratio must be two positive numbers, the least first, got {self.ratio}")
        if not 0 <= self.flip <= 1:
            raise InputError(f"flip must be a probability, got {self.flip}")
        if self.precision not in ("no", "bf16"):
            raise InputError(f"precision must be no or bf16, got {self.precision!r}")


def make(
    out: str | Path,
    dataset: Any,
    teacher: torch.nn.Module,
    settings: CropSettings,
    *,
    device: str = "cpu",
    part: tuple[int, int] = (0, 1),
    workers: int | None = None,
    progress: bool = True,
) -> SoftLabelStore | None:
    """Label the crops of a data set and write them to a store; called again, it goes on where it was killed.

    Several processes may do this at once in the same folder: each takes the next shard that nobody has. The files are
    the same byte for byte whatever the number of processes and interruptions, on one kind of machine; on a CPU torch
    runs with one thread here, for its sums depend on the number of threads.

    Args:
        out: Folder of the store.
        dataset: From `vitq.data.load`.
        teacher: From `vitq.zoo.load`.
        settings: Crops and label format.
        device: Where the teacher runs.
        part: Index and number of parts: make only this share of the shards.
        workers: Reading processes of a folder set; None for at most 8, one for each core.
        progress: Show a bar on stderr.

    Returns:
        The store, or None if shards are missing that are another part's or that another process is writing.

    Raises:
        InputError: Wrong settings, a folder that holds other labels, a damaged image, NaN from the teacher.
        MissingError: No such device, or not enough room on the disk; said before the work starts.
    """
    out = Path(out).expanduser()
    if not 0 <= part[0] < part[1]:
        raise InputError(f"part must be (index, count) with 0 <= index < count, got {part}")
    if torch.device(device).type == "cuda" and not torch.cuda.is_available():
        raise MissingError(f"device={device!r}: no CUDA device is usable here")
    header = header_of(dataset, teacher, settings)
    writing.begin(out, header, layout.image_names(dataset))
    writing.check_space(out, header)
    threads = torch.get_num_threads()
    bar = ProgressBar(out, header, progress)
    try:
        if torch.device(device).type == "cpu":
            torch.set_num_threads(1)
        _write_shards(out, header, dataset, Labeller(teacher, header, device), part, workers)
    finally:
        torch.set_num_threads(threads)
        bar.close()
    finished = all(layout.shard_file(out, shard).is_file() for shard in range(header.shards))
    return SoftLabelStore(out) if finished else None


def header_of(dataset: Any, teacher: torch.nn.Module, settings: CropSettings) -> Header:
    """The header of the store that `make` would write.

    Raises:
        InputError: The teacher has too few classes for the label format.
    """
    from vitq import zoo

    wanted, images = zoo.preprocessing(teacher), len(dataset)
    settings.label.check(teacher.num_classes)
    return Header(
        images=images, crops=settings.crops, num_classes=teacher.num_classes,
        kind=settings.label.kind, top_k=settings.label.top_k, data=dataset.version,
        teacher=getattr(teacher, "zoo_name", type(teacher).__name__), weights=zoo.fingerprint(teacher),
        size=settings.size or wanted["size"], interpolation=wanted["interpolation"],
        mean=tuple(map(float, wanted["mean"])), std=tuple(map(float, wanted["std"])),
        scale=tuple(map(float, settings.scale)), ratio=tuple(map(float, settings.ratio)), flip=float(settings.flip),
        seed=settings.seed, precision=settings.precision, batch_size=settings.batch_size,
        per_shard=max(1, min(PER_SHARD, -(-images // SHARDS))),
    )  # fmt: skip


def _write_shards(out: Path, header: Header, dataset: Any, labeller: Labeller, part: tuple[int, int],
                  workers: int | None) -> None:  # fmt: skip
    from vitq.data.batches import _cores

    readers = (0 if header.images < 256 else _cores()) if workers is None else workers
    for shard in range(part[0], header.shards, part[1]):
        writer = writing.open_shard(out, header, shard)
        if writer is None:
            continue
        try:
            for images, rows in read_groups(dataset, writer.pending, readers):
                writer.append(*labeller(images, rows))
        finally:
            writer.close()


class ProgressBar:
    """A tqdm bar of the images on disk, by whichever process; it looks at the files twice a second.

    Args:
        out: The store.
        header: Its header.
        active: False shows nothing.
    """

    def __init__(self, out: Path, header: Header, active: bool = True):
        self.out, self.header, self.ended, self.thread = out, header, threading.Event(), None
        if active:
            from tqdm import tqdm

            self.bar = tqdm(total=header.images, initial=writing.written(out, header), unit="image", leave=False,
                            mininterval=0.5 if sys.stderr.isatty() else 30)  # fmt: skip
            self.thread = threading.Thread(target=self._follow, daemon=True)
            self.thread.start()

    def _follow(self) -> None:
        while not self.ended.wait(0.5):
            self.bar.update(writing.written(self.out, self.header) - self.bar.n)

    def close(self) -> None:
        """Take the bar away."""
        if self.thread is not None:
            self.ended.set()
            self.thread.join()
            self.bar.close()
