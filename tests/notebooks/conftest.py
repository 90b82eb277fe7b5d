"""An ImageNet-shaped folder of drawn pictures: enough to run the code of the full notebook."""

import numpy as np
import pytest
from PIL import Image


@pytest.fixture(scope="session")
def imagenet_folder(tmp_path_factory):
    """`train/` and `val/` with 2 classes of 8 and 4 JPEG files each."""
    root = tmp_path_factory.mktemp("imagenet")
    random = np.random.default_rng(0)
    for split, count in (("train", 8), ("val", 4)):
        for name, level in (("n01440764", 60), ("n01443537", 190)):
            folder = root / split / name
            folder.mkdir(parents=True)
            for i in range(count):
                pixels = np.clip(random.normal(level, 40, (72, 96, 3)), 0, 255).astype("uint8")
                Image.fromarray(pixels).save(folder / f"{name}_{i}.JPEG")
    return root
