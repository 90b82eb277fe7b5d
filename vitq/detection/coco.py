"""A data set in COCO's format: a JSON file of annotations and a folder of images."""

import contextlib
import hashlib
import io
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vitq.detection.images import LONG, SHORT, ImageBatch, prepare_image, read_image
from vitq.detection.packages import need
from vitq.errors import InputError, MissingError


@dataclass
class Truth:
    """What is marked in one image; crowds and empty boxes are left out.

    Attributes:
        boxes: (n, 4), x1, y1, x2, y2 in pixels, float32.
        labels: (n,), classes from 0, int64.
        masks: (n, H, W), bool.
    """

    boxes: np.ndarray
    labels: np.ndarray
    masks: np.ndarray


class CocoSet:
    """Images and instances; classes are numbered from 0 in the order of their category ids.

    Args:
        annotations: The JSON file.
        folder: Where the images are.
        long: Largest long side that the network sees, pixels.
        short: Largest short side.

    Raises:
        MissingError: No such file or folder, or pycocotools is not installed.
        InputError: The file is not in COCO's format.
    """

    def __init__(self, annotations: str | Path, folder: str | Path, long: int = LONG, short: int = SHORT) -> None:
        for what, path in (("annotations", Path(annotations)), ("folder", Path(folder))):
            if not path.exists():
                raise MissingError(f"{what}={str(path)!r} does not exist")
        coco = need("pycocotools.coco")
        self.file, self.folder, self.long, self.short = Path(annotations), Path(folder), long, short
        try:
            with contextlib.redirect_stdout(io.StringIO()):
                self.coco = coco.COCO(str(annotations))
            self.categories = sorted(self.coco.getCatIds())
            self.image_ids = sorted(self.coco.getImgIds())
        except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError, AssertionError) as error:
            raise InputError(f"annotations={str(annotations)!r} is not in COCO's format ({error!r})") from None
        if not self.categories or not self.image_ids:
            raise InputError(f"annotations={str(annotations)!r} has {len(self.image_ids)} images and "
                             f"{len(self.categories)} categories; give at least one of each")
        self.classes = [self.coco.cats[number].get("name", str(number)) for number in self.categories]

    def __len__(self) -> int:
        return len(self.image_ids)

    def path(self, image_id: int) -> Path:
        """The file of an image."""
        return self.folder / self.coco.imgs[image_id]["file_name"]

    def image(self, image_id: int) -> np.ndarray:
        """Blue, green, red, uint8 (H, W, 3)."""
        return read_image(self.path(image_id))

    def batch(self, image_id: int) -> ImageBatch:
        """One image as the network sees it."""
        return prepare_image(self.image(image_id), self.long, self.short)

    def truth(self, image_id: int) -> Truth:
        """The marked instances of one image."""
        entry = self.coco.imgs[image_id]
        boxes, labels, masks = [], [], []
        for own in self.coco.imgToAnns[image_id]:
            x, y, width, height = own["bbox"]
            if own.get("iscrowd") or width < 1 or height < 1 or own["category_id"] not in self.categories:
                continue
            boxes.append([x, y, x + width, y + height])
            labels.append(self.categories.index(own["category_id"]))
            masks.append(self.coco.annToMask(own).astype(bool))
        return Truth(np.array(boxes, np.float32).reshape(-1, 4), np.array(labels, np.int64),
                     np.array(masks, bool).reshape(-1, entry["height"], entry["width"]))

    def identity(self) -> dict[str, Any]:
        """What tells this set from others: the annotations' hash and the sizes."""
        return {"annotations": hashlib.sha256(self.file.read_bytes()).hexdigest(), "long": self.long,
                "short": self.short}


def coco_names() -> tuple[list[str], list[int]]:
    """Names and category ids of COCO's 80 classes, in the order of the published models' outputs."""
    from torchvision.models.detection import MaskRCNN_ResNet50_FPN_Weights

    names = MaskRCNN_ResNet50_FPN_Weights.DEFAULT.meta["categories"]  # the place in this list is the category id
    found = [(name, number) for number, name in enumerate(names) if name not in ("__background__", "N/A")]
    return [name for name, _ in found], [number for _, number in found]
