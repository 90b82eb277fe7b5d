"""A generated COCO-format set of shapes: four classes, occlusion, an instance mask each, cluttered grounds."""

import json
import math
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from vitq.detection.coco import CocoSet
from vitq.detection.packages import need
from vitq.errors import InputError
from vitq.files import write_text

CLASSES = ("disc", "square", "triangle", "ring")
VISIBLE = 0.4  # an object that is hidden more than this leaves no instance
FINE = 2  # drawn at this multiple of the size
VERSION = 1


def outline(kind: str, centre: np.ndarray, radius: float, angle: float) -> list[tuple[float, float]]:
    """Corners of a shape: a square and a triangle by their corners, a disc and a ring as 48 points."""
    count = {"square": 4, "triangle": 3}.get(kind, 48)
    angles = angle + 2 * math.pi * np.arange(count) / count
    return [tuple(point) for point in centre + radius * np.stack([np.cos(angles), np.sin(angles)], -1)]


def silhouette(kind: str, centre: np.ndarray, radius: float, angle: float, size: int) -> np.ndarray:
    """The whole shape, as if nothing lay before it, bool (size, size)."""
    canvas = Image.new("L", (size * FINE, size * FINE))
    pen = ImageDraw.Draw(canvas)
    pen.polygon(outline(kind, centre * FINE, radius * FINE, angle), fill=255)
    if kind == "ring":
        pen.polygon(outline(kind, centre * FINE, radius * FINE * 0.55, angle), fill=0)
    return np.asarray(canvas.resize((size, size), Image.Resampling.BOX)) >= 128


def _ground(random: np.random.Generator, size: int) -> np.ndarray:
    """A soft pattern of two colours with noise, float (size, size, 3)."""
    coarse = Image.fromarray(random.integers(0, 256, (6, 6), dtype=np.uint8)).resize((size, size),
                                                                                   Image.Resampling.BICUBIC)
    blend = np.asarray(coarse, dtype=float)[..., None] / 255
    low, high = random.uniform(20, 150, (2, 3))
    return low * (1 - blend) + high * blend


def scene(seed: int, size: int = 128) -> tuple[np.ndarray, list[tuple[int, np.ndarray]]]:
    """One image, uint8 (size, size, 3) in red, green, blue, and its instances: class and visible mask.

    Shapes lie over each other; the masks of one image do not overlap.

    Args:
        seed: Of everything in it.
        size: Side in pixels.
    """
    random = np.random.default_rng([VERSION, seed])
    image = _ground(random, size)
    owner, whole, kinds = np.full((size, size), -1), [], []
    for number in range(random.integers(2, 8)):
        radius = size * random.uniform(0.06, 0.2)
        centre = random.uniform(0.6 * radius, size - 0.6 * radius, 2)
        kinds.append(int(random.integers(len(CLASSES))))
        mask = silhouette(CLASSES[kinds[-1]], centre, radius, random.uniform(0, 2 * math.pi), size)
        owner[mask] = number
        whole.append(mask.sum())
        image[mask] = random.uniform(60, 255, 3)
    image += random.normal(0, random.uniform(2, 14), image.shape)
    picture = Image.fromarray(image.clip(0, 255).astype(np.uint8))
    picture = picture.filter(ImageFilter.GaussianBlur(random.uniform(0, 0.8)))
    seen = [(kind, owner == number) for number, kind in enumerate(kinds)]
    return np.asarray(picture), [(kind, mask) for (kind, mask), full in zip(seen, whole, strict=True)
                                 if mask.sum() >= max(VISIBLE * full, 20)]


def make_shapes(folder: str | Path, count: int, seed: int = 0, size: int = 128) -> CocoSet:
    """Write ``count`` images and ``annotations.json`` into a folder, unless they are there, and open the set.

    Args:
        folder: Made if it is absent.
        count: Images.
        seed: Another seed gives other images; no image of two seeds is the same.
        size: Side in pixels.

    Raises:
        InputError: The folder holds a set of another count, seed or size.
    """
    folder = Path(folder)
    info = {"description": "generated shapes", "version": VERSION, "count": count, "seed": seed, "size": size}
    file = folder / "annotations.json"
    if file.exists():
        if json.loads(file.read_text("utf-8"))["info"] != info:
            raise InputError(f"folder={str(folder)!r} holds another set of shapes; give another folder or delete it")
        return CocoSet(file, folder, size, size)
    if not 1 <= count < 10**6:
        raise InputError(f"count={count!r}: give at least 1 and less than a million")
    folder.mkdir(parents=True, exist_ok=True)
    images, instances = [], []
    for number in range(1, count + 1):
        picture, found = scene(seed * 10**6 + number, size)
        name = f"{number:06d}.png"
        Image.fromarray(picture).save(folder / name)
        images.append({"id": number, "file_name": name, "height": size, "width": size})
        for kind, mask in found:
            instances.append({"id": len(instances) + 1, "image_id": number, "category_id": kind + 1, **_coco(mask)})
    categories = [{"id": number, "name": name} for number, name in enumerate(CLASSES, 1)]
    write_text(file, json.dumps({"info": info, "images": images, "annotations": instances, "categories": categories}))
    return CocoSet(file, folder, size, size)


def _coco(mask: np.ndarray) -> dict:
    coder = need("pycocotools.mask")
    runs = coder.encode(np.asfortranarray(mask.astype(np.uint8)))
    rows, columns = mask.any(1).nonzero()[0], mask.any(0).nonzero()[0]
    box = [columns[0], rows[0], columns[-1] + 1 - columns[0], rows[-1] + 1 - rows[0]]
    return {"bbox": [int(v) for v in box], "area": int(mask.sum()), "iscrowd": 0,
            "segmentation": {"size": list(runs["size"]), "counts": runs["counts"].decode("ascii")}}
