"""Images a second that one core reads: JPEG files of ImageNet's size through the transforms of the full runs.

The rate is that of processor time, so that other work on the machine disturbs it little; a reader is one process with
one thread. `--out FILE` writes the table of the book, with the cores that keep a GPU busy.
"""

import argparse
import dataclasses
import io
import itertools
import math
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from bench_report import write_table
from PIL import Image

from vitq import data, environment
from vitq.data import photos
from vitq.data.augmentation import Augmentation

WIDTH, HEIGHT, KILOBYTES = 500, 375, 110  # of a typical training image of ImageNet
FILES, IMAGES = 64, 192
DEMANDS = (500, 1000, 2000, 4000)  # images a second of a GPU
RICH = {"auto_augment": "rand-m9-mstd0.5-inc1", "erasing": 0.25, "interpolation": "random"}
CASES = {
    "random crop, mirrored (Nagel 2022)": (True, None),
    "with RandAugment and erasing (OFQ 2023)": (True, RICH),
    "evaluation: resize, centre crop": (False, None),
}


def draw(root: Path) -> float:
    """An image folder of photographs, each as a JPEG of about `KILOBYTES`; their mean size in kB."""
    sizes, rng = [], np.random.default_rng(0)
    whole = [photos.photograph(Path(file).stem) for _, file in photos.FILES]
    whole = [picture for picture in whole if picture.shape[0] >= HEIGHT and picture.shape[1] >= WIDTH]
    for number, picture in zip(range(FILES), itertools.cycle(whole), strict=False):
        top, left = (rng.integers(0, extent - size + 1) for extent, size in zip(picture.shape, (HEIGHT, WIDTH),
                                                                                strict=False))
        blob = encoded(Image.fromarray(picture[top:top + HEIGHT, left:left + WIDTH]))
        for split in ("train", "val"):
            file = root / split / f"n{number % 2}" / f"{number}.JPEG"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(blob)
        sizes.append(len(blob) / 1000)
    return sum(sizes) / len(sizes)


def encoded(image: Image.Image) -> bytes:
    """At the quality that comes nearest to the size wanted."""
    blobs = []
    for quality in (50, 60, 70, 80, 85, 90, 93, 95, 97, 99):
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=quality)
        blobs.append(buffer.getvalue())
    return min(blobs, key=lambda blob: abs(math.log(len(blob) / 1000 / KILOBYTES)))


def rate(root: Path, train: bool, augmentation: dict | None, rounds: int = 3) -> float:
    """Images a second of processor time; the best of some rounds."""
    dataset = data.load("imagenet", "train" if train else "val", path=root)
    if augmentation:
        dataset = dataclasses.replace(dataset, augmentation=Augmentation.from_dict(augmentation))
    best = 0.0
    for epoch in range(rounds):
        count, began = 0, time.process_time()
        for repeat in range(IMAGES // FILES):
            for images, _ in data.batches(dataset, 32, train=train, epoch=epoch * 10 + repeat, workers=0):
                count += len(images)
        best = max(best, count / (time.process_time() - began))
    return best


def rows() -> list[dict[str, str]]:
    """One line a transform: its rate, and the cores for GPUs that train so many images a second."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        size = draw(Path(folder))
        print(f"{FILES} files of {WIDTH} x {HEIGHT} pixels, {size:.0f} kB on average, one thread, "
              f"{environment.hardware()['cpu']}")
        found = {name: rate(Path(folder), *case) for name, case in CASES.items()}
    return [{"transform": name, "images a second and core": f"{value:.0f}",
             **{f"cores for {demand} a second": str(math.ceil(demand / value)) for demand in DEMANDS}}
            for name, value in found.items()]


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", help="CSV file to write")
    given = parser.parse_args(arguments)
    table = rows()
    for row in table:
        print("  ".join(f"{name}: {value}" if number else f"{value:<40}"
                        for number, (name, value) in enumerate(row.items())))
    if given.out:
        write_table(given.out, table)
    return 0


if __name__ == "__main__":
    sys.exit(main())
