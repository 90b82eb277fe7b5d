"""Exact accuracy and loss on a test set, on one rank or many."""

import contextlib
import copy
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrize

from vitq.errors import InputError
from vitq.train.sources import as_source


@contextlib.contextmanager
def evaluation_mode(model: nn.Module):
    """Evaluation mode, no gradients, quantized weights computed once; each module's own mode comes back after."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.no_grad(), parametrize.cached():
            yield model
    finally:
        for module, mode in modes:
            module.training = mode


def evaluate(model: nn.Module, data: Any, *, batch_size: int = 256, device: torch.device | str | None = None,
             limit: int | None = None, teacher: nn.Module | None = None, ranks: Any = None) -> dict[str, float]:
    """Top-1 and top-5 accuracy in percent and mean cross-entropy over all images, each counted once.

    Args:
        model: gives logits (B, classes); its mode and parameters are left as they were.
        data: a data set from `vitq.data.load`, tensors (images, labels), or a source of batches.
        batch_size: images per forward pass; it does not change the result but by rounding.
        device: where to run; by default the one of the model.
        limit: evaluate only so many batches.
        teacher: adds `agreement`, the percentage of images on which both networks predict the same class.
        ranks: the `Ranks` of a run on several processes, which share each batch.

    Returns:
        top1, top5, loss, images and, with a teacher, agreement. A label below 0 means no label: such an image counts
        for the agreement alone, and a set without any label has no accuracy.

    Raises:
        InputError: the data gave no images.
    """
    device = torch.device(device) if device is not None else next(model.parameters()).device
    part = (0, 1) if ranks is None else ranks.part
    source = as_source(data, batch_size, device=device, limit=limit, part=part)
    totals = torch.zeros(6, dtype=torch.float64, device=device)
    with evaluation_mode(model):
        for images, labels in source.iterate():
            if len(labels):
                images, labels = images.to(device), labels.to(device)
                logits = model(images).float()
                totals += _counts(logits, labels, None if teacher is None else teacher(images))
    if ranks is not None:
        totals = ranks.sum(totals)
    top1, top5, loss, labelled, images, agree = totals.tolist()
    if not images:
        raise InputError("data: no images to evaluate; give a set with at least one")
    result = {"images": int(images)}
    if labelled:
        result |= {"top1": 100 * top1 / labelled, "top5": 100 * top5 / labelled, "loss": loss / labelled}
    if teacher is not None:
        result["agreement"] = 100 * agree / images
    return result


def _counts(logits: Tensor, labels: Tensor, teacher: Tensor | None) -> Tensor:
    """Sums over a batch: hits at 1, hits at 5, loss, labelled images, images, agreements."""
    known = labels >= 0
    ranking = logits.topk(min(5, logits.shape[-1]), dim=-1).indices  # (B, 5)
    hits = (ranking == labels[:, None]) & known[:, None]
    loss = F.cross_entropy(logits.double(), labels.clamp(min=0), reduction="none") * known
    agree = torch.zeros(()) if teacher is None else (ranking[:, 0] == teacher.argmax(-1)).sum()
    return torch.stack([value.double().to(logits.device) for value in (
        hits[:, 0].sum(), hits.any(-1).sum(), loss.sum(), known.sum(), torch.tensor(len(labels)), agree)])


def reestimated(model: nn.Module, batches: Any) -> nn.Module:
    """A copy of the model whose batch-norm statistics are re-estimated; the model itself is left as it was."""
    from vitq.papers.nagel2022.bn_reestimation import reestimate_batch_norm
    twin = copy.deepcopy(model)
    reestimate_batch_norm(twin, batches)
    return twin


def has_batch_norm(model: nn.Module) -> bool:
    """Whether any module keeps running batch statistics."""
    return any(getattr(module, "running_mean", None) is not None for module in model.modules())
