"""Letters and digits rendered from the fonts that matplotlib ships: a data set of any size that needs no download.

An image is one light glyph on a dark ground: font, rotation, shear, size, position, colours, a gradient, parts of
two more glyphs at the border and noise are drawn from a seeded generator. Grounds are always darker than glyphs,
because with free polarity a small transformer stays at chance for many epochs.
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

CLASSES = "23456789ABCDEFGHJKLMNPQRSTUVWXYZabdefhnrt"  # no pair that differs by size alone (0 O o, 1 I l, 9 q g, C c)
FONTS = (
    *(f"DejaVuSans{style}" for style in ("", "-Bold", "-Oblique", "-BoldOblique")),
    *(f"DejaVuSansMono{style}" for style in ("", "-Bold", "-Oblique", "-BoldOblique")),
    *(f"DejaVuSerif{style}" for style in ("", "-Bold", "-Italic", "-BoldItalic")),
    *(f"STIXGeneral{style}" for style in ("", "Bol", "Italic", "BolIta")),
    *("cmr10", "cmss10", "cmtt10"),
)
REVISION = 1  # raise it with every change of this file that changes a pixel
SIZES = {"train": 20_000, "val": 4_000, "test": 10_000}
MEAN, STD = (0.25, 0.25, 0.25), (0.2, 0.2, 0.2)

_TILE, _INK = 1.5, 1.25  # side of a mask and of the glyph in it, in image sides


def load(split: str, size: int | None = None, images: int | None = None, seed: int = 0) -> ImageSet:
    """Rendered glyphs of 41 classes in 19 fonts.

    Splits come from disjoint random streams. Fewer images are the first of more images (same split, size and seed).

    Args:
        split: "train" (20,000 images), "val" (4,000) or "test" (10,000).
        size: Side in pixels, 32 by default.
        images: Number of images instead of the split's own.
        seed: Seed of the data, not of a training run.
    """
    size, images = size or 32, images or SIZES[split]
    if not 16 <= size <= 512:
        raise InputError(f"size must lie between 16 and 512 for glyphs, got {size}")
    key = f"glyphs-{REVISION}-{_fonts_hash()}-{size}px-seed{seed}-{split}-{images}"
    pixels = cached(key, (images, 3, size, size), lambda: render(split, size, images, seed))
    labels = np.concatenate([_labels(split, b, seed) for b in range(-(-images // len(CLASSES)))])[:images]
    return ImageSet(
        name="glyphs",
        split=split,
        images=torch.from_numpy(pixels),
        labels=torch.from_numpy(labels),
        num_classes=len(CLASSES),
        mean=MEAN,
        std=STD,
        version=key,
        classes=tuple(CLASSES),
        shift=max(1, size // 16),
    )


def render(split: str, size: int, images: int, seed: int) -> np.ndarray:
    """The pixels, uint8 (images, 3, size, size), in blocks of one image a class."""
    pixels = np.empty((images, 3, size, size), np.uint8)
    for block in range(-(-images // len(CLASSES))):
        start = block * len(CLASSES)
        pixels[start : start + len(CLASSES)] = _block(split, block, size, seed)[: images - start]
    return pixels


def _generator(split: str, block: int, seed: int, use: int) -> np.random.Generator:
    stream = np.random.SeedSequence(seed, spawn_key=(tuple(SIZES).index(split), block, use))
    return np.random.Generator(np.random.SFC64(stream))


def _labels(split: str, block: int, seed: int) -> np.ndarray:
    return _generator(split, block, seed, 0).permutation(len(CLASSES))


def _block(split: str, block: int, size: int, seed: int) -> np.ndarray:
    labels, rng = _labels(split, block, seed), _generator(split, block, seed, 1)
    count = len(labels)
    glyph = _masks(labels, rng.uniform(-0.12, 0.12, (count, 2)), rng, size)
    clutter = [_masks(rng.permutation(labels), _border(count, rng), rng, size) for _ in range(2)]
    return _paint(glyph, clutter, rng, size)


def _border(count: int, rng: np.random.Generator) -> np.ndarray:
    """Offsets from the middle, in image sides, that leave only a part of a glyph inside the image, (n, 2)."""
    turn = rng.uniform(0, 2 * np.pi, count)
    return rng.uniform(0.45, 0.65, (count, 1)) * np.stack([np.cos(turn), np.sin(turn)], 1)


def _masks(labels: np.ndarray, shift: np.ndarray, rng: np.random.Generator, size: int) -> np.ndarray:
    """Coverage of affinely placed glyphs in random fonts, float32 (n, 1, size, size) from 0 to 1."""
    from PIL import Image

    count = len(labels)
    angle, shear, aspect = (rng.uniform(-limit, limit, count) for limit in (0.5, 0.35, 0.35))
    scale = rng.uniform(0.35, 0.75, count)
    cos, sin = np.cos(angle), np.sin(angle)
    rotation = np.stack([cos, -sin, sin, cos], 1).reshape(count, 2, 2)
    stretch = np.zeros((count, 2, 2))
    stretch[:, 0, 0], stretch[:, 1, 1] = scale / _INK * np.exp(aspect / 2), scale / _INK * np.exp(-aspect / 2)
    stretch[:, 0, 1] = shear * scale / _INK
    back = np.linalg.inv(rotation @ stretch)  # from image to mask coordinates
    origin = round(size * _TILE) / 2 - (back @ ((0.5 + shift) * size)[:, :, None])[:, :, 0]
    rows = np.concatenate([back, origin[:, :, None]], 2).reshape(count, 6).tolist()
    tiles, fonts = _tiles(size), rng.integers(0, len(FONTS), count).tolist()
    masks = np.empty((count, 1, size, size), np.float32)
    for i, (label, font, row) in enumerate(zip(labels.tolist(), fonts, rows, strict=True)):
        masks[i, 0] = tiles[font][label].transform((size, size), Image.Transform.AFFINE, row, Image.Resampling.BILINEAR)
    return masks / 255


def _paint(glyph: np.ndarray, clutter: list[np.ndarray], rng: np.random.Generator, size: int) -> np.ndarray:
    """Coloured, cluttered and noisy images, uint8 (n, 3, size, size)."""

    def draw(low: float, high: float, *shape: int) -> np.ndarray:
        return rng.uniform(low, high, (*shape, len(glyph), 3, 1, 1)).astype(np.float32)

    ramp = np.linspace(-1, 1, size, dtype=np.float32)
    slope = draw(-35, 35, 2)
    image = draw(0, 90) + slope[0] * ramp + slope[1] * ramp[:, None]
    for mask in clutter:
        image += mask * (draw(40, 160) - image)
    image += glyph * (draw(100, 240) - image)
    sigma = rng.uniform(5, 40, (len(glyph), 1, 1, 1)).astype(np.float32)
    image += sigma * rng.standard_normal(image.shape, dtype=np.float32)
    return np.clip(np.rint(image), 0, 255).astype(np.uint8)


@cache
def _tiles(size: int) -> list[list]:
    """One mask for each font and class: the glyph's ink, longest side `_INK * size`, in the middle of a square."""
    from PIL import Image, ImageFont

    side, ink = round(size * _TILE), size * _INK
    tiles = []
    for name in FONTS:
        file, tiles_of_font = str(require() / f"{name}.ttf"), []
        probe = ImageFont.truetype(file, 100, layout_engine=ImageFont.Layout.BASIC)
        for character in CLASSES:
            left, top, right, bottom = probe.getbbox(character)
            fitted = probe.font_variant(size=ink * 100 / max(right - left, bottom - top))
            tiles_of_font.append(_centred(character, fitted, Image.new("L", (side, side))))
        tiles.append(tiles_of_font)
    return tiles


def _centred(character: str, font, image):
    from PIL import ImageDraw

    left, top, right, bottom = font.getbbox(character)
    corner = ((image.width - left - right) // 2, (image.height - top - bottom) // 2)
    ImageDraw.Draw(image).text(corner, character, font=font, fill=255)
    return image


@cache
def _fonts_hash() -> str:
    from PIL import features

    digest = hashlib.sha256(str(features.version("freetype2")).encode())
    for name in FONTS:
        digest.update((require() / f"{name}.ttf").read_bytes())
    return digest.hexdigest()[:8]


@cache
def require() -> Path:
    """The folder of the fonts, or MissingError."""
    spec = importlib.util.find_spec("matplotlib")
    folder = Path(spec.submodule_search_locations[0]) / "mpl-data" / "fonts" / "ttf" if spec else Path()
    missing = [name for name in FONTS if not (folder / f"{name}.ttf").is_file()]
    if missing:
        raise MissingError(f"glyphs need the fonts of the matplotlib wheel; not in {folder}: {', '.join(missing)}")
    return folder
