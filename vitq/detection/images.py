"""Images as MMDetection's test pipeline makes them: read and resized by OpenCV, normalized, padded to 32."""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from vitq.detection.packages import need
from vitq.errors import InputError, MissingError

MEAN = (123.675, 116.28, 103.53)  # of red, green, blue, 0 to 255
STD = (58.395, 57.12, 57.375)
LONG, SHORT = 1333, 800
DIVISOR = 32


@dataclass
class ImageBatch:
    """Normalized images of one padded size, with what is needed to come back to the originals.

    Attributes:
        images: (B, 3, H, W); zeros at the bottom and the right of the smaller ones.
        sizes: Height and width of each image without padding.
        originals: Height and width of each image as it was read.
        scales: (B, 4), width, height, width, height after over before resizing, float32.
    """

    images: Tensor
    sizes: list[tuple[int, int]]
    originals: list[tuple[int, int]]
    scales: Tensor

    def __len__(self) -> int:
        return len(self.images)

    def to(self, device: torch.device | str) -> "ImageBatch":
        """The batch on a device."""
        return replace(self, images=self.images.to(device), scales=self.scales.to(device))

    @classmethod
    def of(cls, images: Tensor) -> "ImageBatch":
        """Normalized images (B, 3, H, W) that fill their frame and were not resized."""
        size = tuple(images.shape[-2:])
        return cls(images, [size] * len(images), [size] * len(images), images.new_ones(len(images), 4))

    @classmethod
    def join(cls, batches: "list[ImageBatch]") -> "ImageBatch":
        """One batch of several, padded to the largest."""
        height, width = (max(batch.images.shape[axis] for batch in batches) for axis in (-2, -1))
        padded = [F.pad(b.images, (0, width - b.images.shape[-1], 0, height - b.images.shape[-2])) for b in batches]
        return cls(torch.cat(padded), [size for b in batches for size in b.sizes],
                   [size for b in batches for size in b.originals], torch.cat([b.scales for b in batches]))


def read_image(file: str | Path) -> np.ndarray:
    """Blue, green and red, uint8 (H, W, 3), turned as EXIF says; a grey image gets three equal channels.

    Raises:
        MissingError: No such file, or OpenCV is not installed.
        InputError: The file is no image that OpenCV reads.
    """
    cv2 = need("cv2")
    if not Path(file).is_file():
        raise MissingError(f"image={str(file)!r} does not exist")
    image = cv2.imread(str(file), cv2.IMREAD_COLOR)
    if image is None:
        raise InputError(f"image={str(file)!r} cannot be read as an image; give a JPEG, PNG, BMP or WebP file")
    return image


def resized_size(height: int, width: int, long: int = LONG, short: int = SHORT) -> tuple[int, int]:
    """Height and width of an image whose sides fit into (long, short) at its aspect ratio, rounded half up."""
    scale = min(long / max(height, width), short / min(height, width))
    return max(int(height * scale + 0.5), 1), max(int(width * scale + 0.5), 1)


def prepare_image(image: np.ndarray, long: int = LONG, short: int = SHORT, divisor: int = DIVISOR) -> ImageBatch:
    """A batch of one from an image.

    The bilinear resize works on bytes and gives bytes, before normalization.

    Args:
        image: Blue, green, red, uint8 (H, W, 3), as :func:`read_image` gives it.
        long: Largest long side, pixels.
        short: Largest short side, pixels.
        divisor: Both sides are padded to a multiple of this.
    """
    cv2 = need("cv2")
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
        raise InputError(f"image has shape {image.shape} and type {image.dtype}: give uint8 (H, W, 3)")
    original = image.shape[:2]
    height, width = resized_size(*original, long, short)
    image = cv2.resize(image, (width, height), interpolation=cv2.INTER_LINEAR)
    values = np.ascontiguousarray(image[..., ::-1], dtype=np.float32)
    mean, std = (np.float64(np.float32([own])) for own in (MEAN, STD))
    values = cv2.multiply(cv2.subtract(values, mean), 1 / std)
    tensor = torch.from_numpy(np.ascontiguousarray(values.transpose(2, 0, 1)))[None]  # (1, 3, h, w)
    tensor = F.pad(tensor, (0, -width % divisor, 0, -height % divisor))
    down, right = np.float32(height / original[0]), np.float32(width / original[1])
    return ImageBatch(tensor, [(height, width)], [tuple(original)], torch.tensor([[right, down, right, down]]))


def load_image(file: str | Path, long: int = LONG, short: int = SHORT) -> ImageBatch:
    """Read and prepare a file; see :func:`read_image` and :func:`prepare_image`."""
    return prepare_image(read_image(file), long, short)
