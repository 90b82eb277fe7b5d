"""Task losses: cross-entropy and distillation from a full-precision teacher."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vitq.errors import InputError


class CrossEntropy(nn.Module):
    """Mean cross-entropy of logits (B, classes) against labels (B,), with label smoothing in [0, 1)."""

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
