"""A teacher's labels of crops: crops drawn, cut out, resized and classified, a fixed group of images at a time."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from vitq.data.images import ImageSet
from vitq.data.soft_labels.crops import crop_resize, draw_crops
from vitq.data.soft_labels.layout import Header, to_fractions
from vitq.errors import InputError


class Labeller:
    """What a teacher says of the crops of a group of images.

    Batches are composed in the same way whoever makes them, so that the labels do not depend on it.

    Args:
        teacher: Float network giving logits (B, classes).
        header: Crops, preprocessing and label format.
        device: Where the teacher runs.
    """

    def __init__(self, teacher: nn.Module, header: Header, device: torch.device | str):
        self.teacher, self.header, self.device = teacher.to(device).eval(), header, torch.device(device)
        self.mean, self.scale = (torch.tensor(v, device=device).view(3, 1, 1) * 255 for v in (header.mean, header.std))

    @torch.inference_mode()
    def __call__(self, images: list[Tensor] | Tensor, rows: range) -> tuple[np.ndarray, ...]:
        """Boxes (stored shares), flips, indices and probabilities of all crops of these images.

        Args:
            images: uint8 pixels, (B, 3, H, W), or a list of B images (3, H, W) of any size.
            rows: Their numbers in the data set.

        Raises:
            InputError: The teacher gives NaN or infinity; the image is named.
        """
        header = self.header
        drawn = [draw_crops(header.crops, *image.shape[-2:], header.seed, row, header.scale, header.ratio, header.flip)
                 for image, row in zip(images, rows, strict=True)]  # fmt: skip
        boxes, flips = (np.stack(part) for part in zip(*drawn, strict=True))
        logits = torch.cat([self._logits(crops) for crops in self._batches(images, boxes, flips)])  # (B * crops, C)
        if not (finite := logits.isfinite().all(-1)).all():
            row = rows[int(finite.logical_not().nonzero()[0, 0]) // header.crops]
            raise InputError(f"teacher {header.teacher} gives NaN or infinity for image {row}; mend its weights or, "
                             "with precision bf16, use precision no")  # fmt: skip
        indices, probabilities = header.label.compress(logits.softmax(-1))
        stored = np.stack([to_fractions(box, *image.shape[-2:]) for box, image in zip(boxes, images, strict=True)])
        shape = (len(rows), header.crops, -1)
        return stored, flips, indices.cpu().numpy().reshape(shape), probabilities.cpu().numpy().reshape(shape)

    def _batches(self, images: list[Tensor] | Tensor, boxes: np.ndarray, flips: np.ndarray) -> Iterator[Tensor]:
        """Normalised crops, at most `batch_size` at a time; images of one size are cut together."""
        step = self.header.batch_size
        where, mirrored = torch.from_numpy(boxes), torch.from_numpy(flips)
        if len(images) > 1 and isinstance(images, Tensor):
            yield self._cut(images, where, mirrored)
        elif len(images) > 1:
            yield torch.cat([self._cut(image[None], where[[i]], mirrored[[i]]) for i, image in enumerate(images)])
        else:
            for i in range(0, self.header.crops, step):
                yield self._cut(images[0][None], where[:, i : i + step], mirrored[:, i : i + step])

    def _cut(self, images: Tensor, boxes: Tensor, flips: Tensor) -> Tensor:
        pixels = images.to(self.device).float().sub_(self.mean).div_(self.scale)
        return crop_resize(pixels, boxes, flips, self.header.size, self.header.interpolation).flatten(0, 1)

    def _logits(self, crops: Tensor) -> Tensor:
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.header.precision == "bf16"):
            return self.teacher(crops).float()


def read_groups(dataset: Any, groups: list[range], workers: int) -> Iterator[tuple[list[Tensor] | Tensor, range]]:
    """The uint8 pixels of each group of images, with the group; the files of a folder set are read ahead.

    Args:
        dataset: From `vitq.data.load`.
        groups: Numbers of images.
        workers: Reading processes of a folder set.

    Raises:
        InputError: A damaged image, by name.
    """
    if isinstance(dataset, ImageSet):
        for rows in groups:
            yield dataset.images[rows.start : rows.stop], rows
        return
    loader = torch.utils.data.DataLoader(_Pixels(dataset), batch_sampler=[list(rows) for rows in groups],
                                         num_workers=workers, collate_fn=list)  # fmt: skip
    for images, rows in zip(loader, groups, strict=True):
        for image in images:
            if isinstance(image, InputError):
                raise image
        yield images, rows


class _Pixels(torch.utils.data.Dataset):
    """The whole images of a folder set as uint8 (3, H, W); what is wrong with one comes as a value."""

    def __init__(self, dataset: Any):
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, row: int) -> Tensor | InputError:
        try:
            return self.dataset.read(row, lambda image: torch.from_numpy(np.array(image)).permute(2, 0, 1))[0]
        except InputError as error:
            return error
