"""What a detector is trained towards, as one object that moves between devices and is cut into parts."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor


@dataclass
class Target:
    """Objects of one image, in the network's pixels.

    Attributes:
        boxes: (n, 4), x1, y1, x2, y2.
        labels: (n,), classes from 0, int64.
        masks: (n, H, W), bool.
        size: Height and width of the image without padding.
    """

    boxes: Tensor
    labels: Tensor
    masks: Tensor
    size: tuple[int, int]

    def to(self, device: torch.device | str | None, non_blocking: bool = False) -> "Target":
        """The same on a device."""
        boxes, labels, masks = (t.to(device, non_blocking=non_blocking) for t in (self.boxes, self.labels, self.masks))
        return replace(self, boxes=boxes, labels=labels, masks=masks)


class Targets:
    """Targets of a batch; what the training loop asks of labels: a length, ``to`` and ``chunk``.

    Args:
        items: One an image.
    """

    def __init__(self, items: list[Target]) -> None:
        self.items = items

    def __len__(self) -> int:
        return len(self.items)

    def __iter__(self) -> Iterator[Target]:
        return iter(self.items)

    def to(self, device: torch.device | str | None, non_blocking: bool = False) -> "Targets":
        """The same on a device."""
        return Targets([item.to(device, non_blocking) for item in self.items])

    def chunk(self, parts: int) -> "list[Targets]":
        """Cut as ``torch.chunk`` cuts the images."""
        return [Targets([self.items[row] for row in rows.tolist()]) for rows in torch.arange(len(self)).chunk(parts)]
