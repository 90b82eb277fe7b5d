"""Training of a detector on a COCO-format set, by the training loop of the whole package."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vitq.detection.coco import CocoSet
from vitq.detection.evaluation import evaluate
from vitq.detection.losses import DetectionLoss
from vitq.detection.packages import need
from vitq.detection.targets import Target, Targets
from vitq.errors import InputError
from vitq.train import TrainConfig, TrainResult, fit
from vitq.train.callbacks import Callback
from vitq.train.ranks import Ranks


class DetectionSource:
    """Shuffled batches of images (B, 3, H, W) and :class:`~vitq.detection.targets.Targets`; half are mirrored.

    What a batch holds depends on seed, epoch and number alone. An incomplete last batch is left out.

    Args:
        data: The set.
        batch_size: Images a batch, over all ranks.
        seed: Of order and mirroring.
        mirror: Share of images that are mirrored.
        device: Where the batches go.
        part: Index and number of the ranks that share each batch.
    """

    def __init__(self, data: CocoSet, batch_size: int, seed: int = 0, mirror: float = 0.5,
                 device: torch.device | str | None = None, part: tuple[int, int] = (0, 1)) -> None:
        if batch_size > len(data):
            raise InputError(f"batch_size={batch_size}: more than the {len(data)} images")
        self.data, self.batch_size, self.seed, self.mirror = data, batch_size, seed, mirror
        self.device, self.part = device, part

    def __len__(self) -> int:
        return len(self.data) // self.batch_size

    def iterate(self, epoch: int = 0, start: int = 0) -> Iterator[tuple[Tensor, Targets]]:
        """The batches of an epoch from number ``start`` on."""
        random = np.random.default_rng([self.seed, epoch])
        order, mirrored = random.permutation(len(self.data)), random.random(len(self.data)) < self.mirror
        for number in range(start, len(self)):
            rows = order[number * self.batch_size:(number + 1) * self.batch_size]
            own = np.array_split(rows, self.part[1])[self.part[0]]
            pairs = [example(self.data, self.data.image_ids[row], bool(mirrored[row])) for row in own]
            yield join([image for image, _ in pairs]).to(self.device), Targets([t for _, t in pairs]).to(self.device)


def example(data: CocoSet, image_id: int, mirrored: bool = False) -> tuple[Tensor, Target]:
    """One normalized, padded image (3, H, W) and its target in the same pixels.

    Args:
        data: The set.
        image_id: Which.
        mirrored: Left and right exchanged.
    """
    cv2, batch, truth = need("cv2"), data.batch(image_id), data.truth(image_id)
    (height, width), image = batch.sizes[0], batch.images[0]
    boxes = torch.from_numpy(truth.boxes) * batch.scales[0]
    boxes[:, 0::2].clamp_(0, width), boxes[:, 1::2].clamp_(0, height)
    masks = [cv2.resize(mask.astype(np.uint8), (width, height), interpolation=cv2.INTER_NEAREST)
             for mask in truth.masks]
    masks = torch.from_numpy(np.array(masks, np.uint8).reshape(-1, height, width)).bool()
    if mirrored:
        image = F.pad(image[..., :width].flip(-1), (0, image.shape[-1] - width))
        boxes = torch.stack([width - boxes[:, 2], boxes[:, 1], width - boxes[:, 0], boxes[:, 3]], 1)
        masks = masks.flip(-1)
    return image, Target(boxes, torch.from_numpy(truth.labels), masks, (height, width))


def join(images: list[Tensor]) -> Tensor:
    """One tensor of images (3, H, W), padded with zeros to the largest."""
    height, width = (max(image.shape[axis] for image in images) for axis in (-2, -1))
    return torch.stack([F.pad(x, (0, width - x.shape[-1], 0, height - x.shape[-2])) for x in images])


def train(model: nn.Module, data: CocoSet, config: TrainConfig, *, held_out: CocoSet | None = None, seed: int = 0,
          out: str | Path | None = None, callbacks: Iterable[Callback] = (), identity: Any = None) -> TrainResult:
    """Train a detector in place, float or quantized; see :func:`vitq.train.fit`.

    Args:
        model: The detector, with as many classes as the set.
        data: Training set.
        config: Settings; AdamW with ``decay="transformer"`` is usual.
        held_out: Evaluated where the settings say, and at the end: ``box_AP``, ``mask_AP`` and their parts.
        seed: Of order, mirroring, sampling.
        out: Folder of the run; called again with the same arguments it goes on.
        callbacks: Remedies.
        identity: Anything JSON that tells this run from others.
    """
    if model.config.classes != len(data.categories):
        raise InputError(f"model has {model.config.classes} classes, the data set {len(data.categories)}")
    ranks = Ranks(config.device)
    source = DetectionSource(data, config.batch_size, seed, device=ranks.device, part=ranks.part)

    def measure(net: nn.Module) -> dict[str, float]:
        return {name: value for name, value in evaluate(net, held_out, progress=False).items() if value is not None}

    identity = {"config": model.config.to_dict(), "data": data.identity(), "identity": identity}
    return fit(model, source, config, callbacks=callbacks, evaluate=None if held_out is None else measure,
               loss=DetectionLoss(model), out=out, seed=seed, identity=identity)
