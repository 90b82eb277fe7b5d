"""Compact soft labels: the largest probabilities of a teacher, and the full distribution recovered from them."""

from dataclasses import dataclass

import torch
from torch import Tensor

from vitq.errors import InputError

KINDS = ("marginal_smoothing", "marginal_renorm", "smoothing", "hard")


@dataclass(frozen=True)
class LabelFormat:
    r"""What is kept of a distribution p over C classes, and how the rest is filled in.

    With the k most probable classes in K: "marginal_smoothing" keeps their probabilities and gives every other class
    :math:`(1 - \sum_{K} p) / (C - k)`; "marginal_renorm" gives the others 0 and divides by :math:`\sum_{K} p`;
    "smoothing" is marginal smoothing with k = 1; "hard" is the one-hot vector of the most probable class.
    (FKD's formats, which VVTQ 2023 trains with; "marginal_smoothing" with k = 5 is the paper's.)

    Args:
        kind: One of `KINDS`.
        top_k: k; 1 for smoothing and hard.

    Raises:
        InputError: Unknown kind, or a k that does not fit it.
    """

    kind: str = "marginal_smoothing"
    top_k: int = 5

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise InputError(f"format must be one of {', '.join(KINDS)}, got {self.kind!r}")
        if isinstance(self.top_k, bool) or not isinstance(self.top_k, int) or self.top_k < 1:
            raise InputError(f"top_k must be a whole number of at least 1, got {self.top_k!r}")
        if self.kind in ("smoothing", "hard") and self.top_k != 1:
            raise InputError(f"top_k must be 1 for format {self.kind}, got {self.top_k}")

    def check(self, num_classes: int) -> None:
        """InputError if so many classes leave none for the rest, or are more than an index of 16 bits can name."""
        if not self.top_k < num_classes <= 65_536:
            raise InputError(f"top_k must be less than the number of classes, and that at most 65536; got top_k="
                             f"{self.top_k} and {num_classes} classes")  # fmt: skip

    def compress(self, probabilities: Tensor) -> tuple[Tensor, Tensor]:
        """Class indices int64 (..., k) and float16 probabilities (..., k), the most probable first.

        Probabilities are rounded towards 0, so that what is left for the other classes is never negative.

        Args:
            probabilities: (..., C), each a distribution.
        """
        values, indices = probabilities.float().topk(self.top_k, dim=-1)
        rounded = values.half()
        below = (rounded.view(torch.int16) - 1).view(torch.float16)  # the next float16 towards 0
        return indices, torch.where(rounded.float() > values, below, rounded)

    def recover(self, indices: Tensor, probabilities: Tensor | None, num_classes: int) -> Tensor:
        """Full distributions float32 (..., C) that sum to 1 (spec test T10).

        Args:
            indices: Class indices, int64 (..., k).
            probabilities: Of these classes, (..., k); not looked at for "hard".
            num_classes: C.
        """
        if self.kind == "hard":
            probabilities = torch.ones(indices.shape, device=indices.device)
        kept = probabilities.float()
        total = kept.sum(-1, keepdim=True)
        if self.kind == "marginal_renorm":
            kept, rest = kept / total.clamp_min(torch.finfo(torch.float32).tiny), torch.zeros_like(total)
        else:
            rest = (1 - total).clamp_min(0) / (num_classes - self.top_k)
        return rest.expand(*rest.shape[:-1], num_classes).scatter(-1, indices, kept)
