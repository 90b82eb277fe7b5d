"""Soft labels and multi-crop batches: writing and reading rates, and what a crop costs at M = 4 against M = 1.

Exit status 1 if a bar is missed. `rows()` gives the figures to other programs. Loading is timed in turn (M = 4, M = 1,
M = 4, ...) so that a change in the machine's speed hits both; the figure is the median of the ratios of neighbours.
"""

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from bench_report import printed

from vitq import data, environment, zoo
from vitq.data import photos
from vitq.data.multi_crop import MultiCropSource
from vitq.data.soft_labels import CropSettings, Header, LabelFormat, SoftLabelStore, draw_crops, layout, writing
from vitq.data.soft_labels.teacher import Labeller

CROPS, LABEL = 500, LabelFormat()
READ_BAR, LOADER_BAR = 20_000, 0.5


def header(images: int, version: str = "bench", crops: int = CROPS) -> Header:
    """Of a store of random labels for ImageNet's classes."""
    return Header(
        images=images, crops=crops, num_classes=1000, kind=LABEL.kind, top_k=LABEL.top_k, data=version,
        teacher="none", weights="none", size=224, interpolation="bicubic", mean=(0.5,) * 3, std=(0.5,) * 3,
        scale=(0.08, 0.936), ratio=(3 / 4, 4 / 3), flip=0.5, seed=0, precision="no", batch_size=32 * crops,
        per_shard=max(1, images // 4),
    )  # fmt: skip


def write_store(folder: Path, head: Header, height: int = 375, width: int = 500) -> float:
    """A store of random labels; crops a second, the drawing of boxes and the disk's fsync included."""
    rng = np.random.default_rng(0)
    indices = rng.integers(0, 1000, (head.group, head.crops, head.top_k))
    probabilities = rng.dirichlet(np.ones(20), (head.group, head.crops))[..., : head.top_k].astype(np.float16)
    start = time.perf_counter()
    writing.begin(folder, head, [])
    for shard in range(head.shards):
        writer = writing.open_shard(folder, head, shard)
        for rows in writer.pending:
            drawn = [draw_crops(head.crops, height, width, 0, row, head.scale) for row in rows]
            boxes, flips = (np.stack(part) for part in zip(*drawn, strict=True))
            stored = layout.to_fractions(boxes, height, width)
            writer.append(stored, flips, indices[: len(rows)], probabilities[: len(rows)])
        writer.close()
    return head.images * head.crops / (time.perf_counter() - start)


def read_rate(folder: Path, each: int, calls: int = 3000) -> tuple[float, float]:
    """Crops a second, one call an image in random order: at first touch (checksums) and from then on."""
    store, rng = SoftLabelStore(folder), np.random.default_rng(1)
    store.image(0)
    rates = []
    for rows in (rng.permutation(len(store)), rng.integers(0, len(store), calls)):
        crops = np.stack([rng.permutation(store.crops)[:each] for _ in rows])
        start = time.perf_counter()
        for row, some in zip(rows.tolist(), crops, strict=True):
            store.read([row], some[None])
        rates.append(each * len(rows) / (time.perf_counter() - start))
    return tuple(rates)


def jpeg_folder(folder: Path, images: int, side: int) -> None:
    """Square windows of the photographs that need no download, not resized, as JPEG files of quality 95."""
    from PIL import Image

    rng = np.random.default_rng(0)
    wholes = [photos.photograph(Path(file).stem) for _, file in photos.FILES]
    wholes = [whole for whole in wholes if min(whole.shape[:2]) >= side]
    for split, count in (("train", images), ("val", 1)):
        (folder / split / "n0").mkdir(parents=True)
        for i in range(count):
            whole = wholes[i % len(wholes)]
            top, left = (int(rng.integers(0, length - side + 1)) for length in whole.shape[:2])
            window = Image.fromarray(whole[top : top + side, left : left + side])
            window.save(folder / split / "n0" / f"{i:04d}.jpeg", quality=95)


def loader_ratio(folder: Path, side: int, images: int = 192, rounds: int = 5) -> tuple[float, float, float]:
    """Cost of a crop at M = 4 over that at M = 1, and the milliseconds of each; one process, one thread."""
    jpeg_folder(folder / "images", images, side)
    dataset = data.load("imagenet", "train", path=folder / "images")
    head = header(images, dataset.version)
    write_store(folder / "labels", head, side, side)
    store = SoftLabelStore(folder / "labels")
    sources = {m: MultiCropSource(dataset, store, 64, m, workers=0) for m in (4, 1)}

    def cost(m: int, epoch: int) -> float:
        start = time.perf_counter()
        count = sum(len(labels) for _, labels in sources[m].iterate(epoch))
        return 1e3 * (time.perf_counter() - start) / count

    cost(4, 0), cost(1, 0)
    pairs = [(cost(4, epoch), cost(1, epoch)) for epoch in range(1, rounds + 1)]
    return statistics.median(a / b for a, b in pairs), *(statistics.median(part) for part in zip(*pairs, strict=True))


def labelling_rate(crops: int = 8, images: int = 128) -> float:
    """Crops of glyphs that the micro ViT labels in a second, in one thread."""
    dataset, teacher = data.load("glyphs", images=images), zoo.load("vit_micro")
    from vitq.data.soft_labels.making import header_of

    head = header_of(dataset, teacher, CropSettings(crops=crops))
    labeller = Labeller(teacher, head, "cpu")
    rates = []
    for _ in range(3):
        start = time.perf_counter()
        for i in range(0, images, head.group):
            labeller(dataset.images[i : i + head.group], range(i, i + head.group))
        rates.append(images * crops / (time.perf_counter() - start))
    return max(rates)


def rows(images: int = 1000, rounds: int = 5) -> list[dict]:
    """Every figure as `figure`, `measured`, `bound`, `good` and `note`; `bound` is None where there is no bar."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write = write_store(folder / "store", header(images))
        size = sum(file.stat().st_size for file in (folder / "store").glob("*.bin"))
        first, again = read_rate(folder / "store", 4)
        whole = read_rate(folder / "store", CROPS)[1]
        total = layout.IMAGENET_IMAGES * CROPS
        found = [
            ("bytes a crop", size / images / CROPS, None, f"ImageNet: {size / images * 1_281_167 / 1e9:.1f} GB"),
            ("writing (crops/s)", write, None, f"ImageNet: {total / write / 60:.0f} min without the teacher"),
            ("reading 4 of an image, first touch (crops/s)", first, READ_BAR, "checksum of 500 crops included"),
            ("reading 4 of an image, warm (crops/s)", again, READ_BAR, ""),
            ("reading all 500 of an image (crops/s)", whole, READ_BAR, ""),
            ("labelling glyphs, vit_micro (crops/s)", labelling_rate(), None, "one thread"),
        ]
        for side in (224, 400):
            ratio, four, one = loader_ratio(folder / str(side), side, rounds=rounds)
            sizes = [file.stat().st_size / 1e3 for file in (folder / str(side)).glob("images/train/n0/*")]
            note = f"{four:.2f} ms against {one:.2f} ms a crop, {statistics.mean(sizes):.0f} kB a file"
            found.append((f"loader, a crop at M = 4 / M = 1, JPEG {side} px", ratio, LOADER_BAR, note))
    good = [bound is None or (value >= bound if bound >= 1 else value <= bound) for _, value, bound, _ in found]
    return [dict(zip(("figure", "measured", "bound", "note", "good"), (*row, fine), strict=True))
            for row, fine in zip(found, good, strict=True)]  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    measured = rows(options.images, options.rounds)
    title = f"soft labels, {CROPS} crops, k = {LABEL.top_k}, 1 thread, {environment.hardware()}"
    return printed(title, measured, (46, 10, 20))


if __name__ == "__main__":
    sys.exit(main())
