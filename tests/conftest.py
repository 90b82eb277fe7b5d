"""Image folders drawn for the tests."""

import numpy as np
import pytest
from PIL import Image


@pytest.fixture(scope="session")
def draw_folder():
    """A function that draws `train/CLASS/` and `val/CLASS/`, a brightness for each class, and returns the folder."""

    def draw(root, train, val, size=(71, 97), grow=1, suffix="JPEG"):
        """Number of files of each class in both splits; each file is `grow` pixels higher than the one before."""
        random = np.random.default_rng(0)
        for split, counts in (("train", train), ("val", val)):
            for number, count in enumerate(counts):
                folder = root / split / f"n0144076{number}"
                folder.mkdir(parents=True)
                for i in range(count):
                    shape = (size[0] + grow * i, size[1], 3)
                    pixels = np.clip(random.normal(60 + 70 * number, 40, shape), 0, 255).astype("uint8")
                    Image.fromarray(pixels).save(folder / f"{i}.{suffix}")
        return root

    return draw
