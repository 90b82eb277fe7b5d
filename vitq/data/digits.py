"""Scikit-learn's 1,797 handwritten digits, read from its wheel: real, tiny, for runs of seconds."""

import importlib.util
from pathlib import Path

import numpy as np
import torch

from vitq.data.images import ImageSet
from vitq.errors import InputError, MissingError

SIZES = {"train": 1_200, "val": 200, "test": 397}


def load(split: str, size: int | None = None, images: int | None = None, seed: int = 0) -> ImageSet:
    """Handwritten digits of 8 x 8 pixels, enlarged bilinearly, the same in all three channels.

    Args:
        split: "train" (1,200 images), "val" (200) or "test" (397); parts of one permutation.
        size: Side in pixels, 32 by default.
        images: The first so many images instead of all.
        seed: Seed of the permutation.
    """
    size, count = size or 32, images or SIZES[split]
    if count > SIZES[split]:
        raise InputError(f"images must be at most {SIZES[split]} for digits {split}, got {count}")
    table = np.loadtxt(require(), delimiter=",", dtype=np.float32)  # 64 pixels of 0 to 16 and the digit
    names = list(SIZES)
    start = sum(SIZES[name] for name in names[: names.index(split)])
    rows = table[np.random.default_rng(seed).permutation(len(table))[start : start + count]]
    pixels = torch.from_numpy(rows[:, :64] * (255 / 16)).view(-1, 1, 8, 8)
    pixels = torch.nn.functional.interpolate(pixels, size=(size, size), mode="bilinear")
    return ImageSet(
        name="digits",
        split=split,
        images=pixels.round_().to(torch.uint8).expand(-1, 3, -1, -1).contiguous(),
        labels=torch.from_numpy(rows[:, 64].astype(np.int64)),
        num_classes=10,
        mean=(0.305, 0.305, 0.305),
        std=(0.33, 0.33, 0.33),
        version=f"digits-1-{size}px-seed{seed}-{split}-{count}",
        classes=tuple("0123456789"),
        shift=max(1, size // 16),
    )


def require() -> Path:
    """The table of digits, or MissingError."""
    spec = importlib.util.find_spec("sklearn")  # found, not imported: that takes a second
    file = Path(spec.submodule_search_locations[0], "datasets", "data", "digits.csv.gz") if spec else None
    if file is None or not file.is_file():
        raise MissingError("digits are read from the scikit-learn wheel, which is not here: pip install scikit-learn")
    return file
