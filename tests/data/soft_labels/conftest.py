import pytest
import torch
from torch import nn

from vitq.data.images import ImageSet

SIZE, CLASSES = 16, 12


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("VITQ_CACHE", str(tmp_path / "cache"))


class Teacher(nn.Module):
    """Logits that depend on every pixel of a crop and on where it lies in it."""

    pretrained_cfg = {"input_size": (3, SIZE, SIZE), "mean": (0.5,) * 3, "std": (0.25,) * 3, "crop_pct": 1.0,
                      "interpolation": "bilinear"}  # fmt: skip
    num_classes, zoo_name = CLASSES, "teacher"

    def __init__(self, seed: int = 0):
        super().__init__()
        torch.manual_seed(seed)
        self.head = nn.Linear(3 * SIZE * SIZE, CLASSES)

    def forward(self, images):
        return 3 * self.head(images.flatten(1))


@pytest.fixture
def teacher():
    return Teacher()


@pytest.fixture
def dataset():
    """Red tells the column, green the row, blue the image."""
    count, across = 37, torch.arange(SIZE) * 255 // (SIZE - 1)
    images = torch.zeros(count, 3, SIZE, SIZE, dtype=torch.uint8)
    images[:, 0], images[:, 1] = across.byte(), across.byte()[:, None]
    images[:, 2] = (torch.arange(count) * 6).byte()[:, None, None]
    return ImageSet("squares", "train", images, torch.arange(count) % CLASSES, CLASSES, (0.5,) * 3, (0.25,) * 3,
                    "squares-1")  # fmt: skip
