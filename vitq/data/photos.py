"""Random crops of the natural photographs inside the scikit-image and scikit-learn wheels.

Splits take disjoint regions of every photograph: along its longer side the first half is for training, the next 15 %
for validation, the last 35 % for the test. The label is the index of the photograph.
"""

import hashlib
import importlib.util
from functools import cache
from pathlib import Path

import numpy as np
import torch

from vitq.data.cache import cached
from vitq.data.images import ImageSet
from vitq.errors import InputError, MissingError

# Only files that the wheels themselves hold. The second photograph of the stereo pair shows the same scene: left out.
FILES = (
    ("skimage", "data/astronaut.png"),
    ("skimage", "data/brick.png"),
    ("skimage", "data/camera.png"),
    ("skimage", "data/chelsea.png"),
    ("skimage", "data/clock_motion.png"),
    ("skimage", "data/coffee.png"),
    ("skimage", "data/coins.png"),
    ("skimage", "data/grass.png"),
    ("skimage", "data/gravel.png"),
    ("skimage", "data/moon.png"),
    ("skimage", "data/motorcycle_left.png"),
    ("skimage", "data/rocket.jpg"),
    ("sklearn", "datasets/images/china.jpg"),
    ("sklearn", "datasets/images/flower.jpg"),
)
REVISION = 1  # raise it with every change of this file that changes a pixel
SIZES = {"train": 1_024, "val": 128, "test": 512}
REGIONS = {"train": (0.0, 0.5), "val": (0.5, 0.65), "test": (0.65, 1.0)}


def load(split: str, size: int | None = None, images: int | None = None, seed: int = 0) -> ImageSet:
    """Random resized crops: 25 to 100 % of a region's area, aspect 3/4 to 4/3, mirrored half of the time.

    The normalisation maps pixels to [-1, 1] as EfficientNet-lite expects; `ImageSet.normalized_for` changes it.

    Args:
        split: "train" (1,024 crops), "val" (128) or "test" (512); disjoint regions of the same photographs.
        size: Side in pixels, 224 by default.
        images: Number of crops instead of the split's own; the first of more.
        seed: Seed of the crops.
    """
    size, images = size or 224, images or SIZES[split]
    if not 16 <= size <= 1024:
        raise InputError(f"size must lie between 16 and 1024 for photos, got {size}")
    key = f"photos-{REVISION}-{_files_hash()}-{size}px-seed{seed}-{split}-{images}"
    pixels = cached(key, (images, 3, size, size), lambda: _crops(split, size, images, seed))
    return ImageSet(
        name="photos",
        split=split,
        images=torch.from_numpy(pixels),
        labels=torch.arange(images) % len(FILES),
        num_classes=len(FILES),
        mean=(127 / 255,) * 3,
        std=(128 / 255,) * 3,
        version=key,
        classes=tuple(Path(file).stem for _, file in FILES),
    )


def photograph(name: str) -> np.ndarray:
    """A whole photograph by its class name, uint8 (H, W, 3).

    Args:
        name: For example "chelsea" or "coffee".
    """
    found = [entry for entry in FILES if Path(entry[1]).stem == name]
    if not found:
        raise InputError(f"name must be one of {', '.join(Path(f).stem for _, f in FILES)}, got {name!r}")
    from PIL import Image

    return np.asarray(Image.open(_path(*found[0])).convert("RGB"))


def region(shape: tuple[int, int], split: str) -> tuple[int, int, int, int]:
    """The part of a photograph that belongs to a split, as left, top, right, bottom in pixels.

    Args:
        shape: Height and width.
        split: "train", "val" or "test".
    """
    height, width = shape
    begin, end = REGIONS[split]
    if width >= height:
        return round(width * begin), 0, round(width * end), height
    return 0, round(height * begin), width, round(height * end)


def _crops(split: str, size: int, images: int, seed: int) -> np.ndarray:
    from PIL import Image

    names = [Path(file).stem for _, file in FILES]
    pixels = np.empty((images, 3, size, size), np.uint8)
    for index, name in enumerate(names):
        whole = photograph(name)
        left, top, right, bottom = region(whole.shape[:2], split)
        part = Image.fromarray(whole[top:bottom, left:right])  # pixels of other splits are not even in reach
        stream = np.random.SeedSequence(seed, spawn_key=(list(SIZES).index(split), index))
        rng = np.random.default_rng(stream)
        for position in range(index, images, len(names)):
            crop = part.resize((size, size), Image.Resampling.BICUBIC, box=_box(part.size, rng))
            crop = np.asarray(crop)[:, ::-1] if rng.random() < 0.5 else np.asarray(crop)
            pixels[position] = crop.transpose(2, 0, 1)
    return pixels


def _box(extent: tuple[int, int], rng: np.random.Generator) -> tuple[float, float, float, float]:
    """A crop that fits: an area of 25 to 100 % of the extent if its aspect permits, otherwise cut to the extent."""
    width, height = extent
    area, aspect = width * height * rng.uniform(0.25, 1), np.exp(rng.uniform(-1, 1) * np.log(4 / 3))
    box_width, box_height = min(width, np.sqrt(area * aspect)), min(height, np.sqrt(area / aspect))
    box_width, box_height = min(box_width, box_height * 4 / 3), min(box_height, box_width * 4 / 3)
    left, top = rng.uniform(0, width - box_width), rng.uniform(0, height - box_height)
    return left, top, left + box_width, top + box_height


@cache
def _files_hash() -> str:
    digest = hashlib.sha256()
    for package, file in FILES:
        digest.update(_path(package, file).read_bytes())
    return digest.hexdigest()[:8]


def require() -> None:
    """MissingError if a photograph is not there."""
    _files_hash()


def _path(package: str, file: str) -> Path:
    spec = importlib.util.find_spec(package)
    path = Path(spec.submodule_search_locations[0], file) if spec else None
    if path is None or not path.is_file():
        wheel = {"skimage": "scikit-image", "sklearn": "scikit-learn"}[package]
        raise MissingError(f"photos are read from the {wheel} wheel; {file} is not there: pip install {wheel}")
    return path
