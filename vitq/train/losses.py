"""Task losses: cross-entropy and distillation from a full-precision teacher.

A two-headed network in training gives a pair of logits, those of its class head and of its distillation head. Labels
are classes (B,) or, of mixed images, distributions over the classes (B, classes).
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vitq.errors import InputError


class CrossEntropy(nn.Module):
    """Mean cross-entropy of logits (B, classes) against labels, with label smoothing in [0, 1)."""

    def __init__(self, label_smoothing: float = 0.0):
        super().__init__()
        self.label_smoothing = label_smoothing

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(logits, labels, label_smoothing=self.label_smoothing)


def kl_divergence(student: Tensor, teacher: Tensor, temperature: float = 1.0) -> Tensor:
    r"""Mean over the batch of :math:`T^2\, KL(\mathrm{softmax}(t/T) \,\|\, \mathrm{softmax}(z/T))`.

    Args:
        student: logits z, (B, classes).
        teacher: logits t, (B, classes).
        temperature: T; the factor T^2 keeps the gradient's size independent of it (Hinton et al. 2015, section 2).
    """
    target = F.log_softmax(teacher / temperature, dim=-1)
    logits = F.log_softmax(student / temperature, dim=-1)
    return F.kl_div(logits, target, reduction="batchmean", log_target=True) * temperature ** 2


class Distillation(nn.Module):
    """weight * KL to the teacher + (1 - weight) * cross-entropy with the labels.

    With `weight` 1 labels are not looked at. The teacher runs in evaluation mode without gradients.

    Args:
        teacher: full-precision network giving logits (B, classes).
        temperature: of the softmaxes, positive.
        weight: share of the distillation term, in [0, 1].
        label_smoothing: of the cross-entropy.

    Raises:
        InputError: naming the argument.
    """

    needs_images = True

    def __init__(self, teacher: nn.Module, temperature: float = 1.0, weight: float = 1.0,
                 label_smoothing: float = 0.0):
        super().__init__()
        if not temperature > 0:
            raise InputError(f"temperature={temperature!r}: give a positive number")
        if not 0 <= weight <= 1:
            raise InputError(f"weight={weight!r}: give a share in [0, 1]")
        self.teacher = teacher.eval().requires_grad_(False)
        self.temperature, self.weight = temperature, weight
        self.cross_entropy = CrossEntropy(label_smoothing)

    def train(self, mode: bool = True) -> "Distillation":
        super().train(mode)
        self.teacher.eval()
        return self

    def forward(self, logits: Tensor, labels: Tensor, images: Tensor) -> Tensor:
        with torch.no_grad():
            target = self.teacher(images).float()
        loss = self.weight * kl_divergence(logits, target, self.temperature)
        if self.weight < 1:
            loss = loss + (1 - self.weight) * self.cross_entropy(logits, labels)
        return loss


class HardAndSoftDistillation(nn.Module):
    r"""Cross-entropy with the labels plus cross-entropy with the teacher, weights 1 : 1 (OFQ).

    .. math:: L = CE(z_{cls}, y) - \frac1B \sum_b \sum_k \mathrm{softmax}(t_b)_k \log \mathrm{softmax}(z_{dist,b})_k

    with the teacher's class-head logits t and temperature 1. A network with one head has z_cls = z_dist. The second
    term differs from :func:`kl_divergence` by the entropy of the teacher, which has no gradient.

    Source: Liu et al. (2023), released code. There the teacher is left in training mode, which for its networks,
    without dropout, means only that a two-headed teacher gives both logits, of which the class head's are used; here it
    runs in evaluation mode and gives the same.

    Args:
        teacher: full-precision network; of a two-headed one the class head alone is used.
        label_smoothing: of the first term; with mixed images it comes on top of theirs.
    """

    needs_images = True

    def __init__(self, teacher: nn.Module, label_smoothing: float = 0.0):
        super().__init__()
        self.teacher = teacher.eval().requires_grad_(False)
        self.cross_entropy = CrossEntropy(label_smoothing)

    def train(self, mode: bool = True) -> "HardAndSoftDistillation":
        super().train(mode)
        self.teacher.eval()
        return self

    def forward(self, logits: Tensor | tuple[Tensor, Tensor], labels: Tensor, images: Tensor) -> Tensor:
        hard, soft = logits if isinstance(logits, tuple) else (logits, logits)
        with torch.no_grad():
            target = class_logits(self.teacher, images).float().softmax(-1)
        return self.cross_entropy(hard, labels) + F.cross_entropy(soft, target)


def class_logits(model: nn.Module, images: Tensor) -> Tensor:
    """Logits (B, classes) of the class head alone, also where a distillation head would be averaged with it."""
    if not two_headed(model):
        return model(images)
    return model.head(model.forward_features(images)[:, 0])


def two_headed(model: nn.Module) -> bool:
    """Whether a network has a distillation head beside its class head, as timm's distilled DeiT."""
    return hasattr(model, "set_distilled_training")
