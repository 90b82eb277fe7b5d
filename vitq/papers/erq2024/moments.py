r"""Streaming second moments of a layer: all that both correction steps need of the data.

With rows :math:`A = [x_q, 1]` (quantized inputs and a column of ones) and targets Y (outputs in full precision) of N
tokens or positions, :class:`Moments` keeps the sums :math:`A^\top A`, :math:`A^\top Y` and :math:`\lVert Y \rVert^2` in
float64. Memory does not grow with the number of images: 8 (I + 1) (I + 1 + O) bytes for each group of a layer.

The released code stores the activations of all layers instead.
"""

import torch
from torch import Tensor

from vitq.errors import InputError

EXACT = 2**24  # float32 adds integers exactly up to here


class Moments:
    """Sums over rows of ``[inputs, 1]`` and targets, batched over the groups of a convolution.

    Args:
        inputs: Columns I of each group, without the ones.
        targets: Columns of Y of each group.
        groups: Groups; 1 for a linear layer.
        device: Where the sums lie.

    Attributes:
        gram: (groups, I + 1, I + 1), float64.
        cross: (groups, I + 1, targets), float64.
        energy: Sum of squared targets, float64 scalar.
        count: Rows so far.
    """

    def __init__(self, inputs: int, targets: int, groups: int = 1, device: torch.device | str = "cpu") -> None:
        like = {"dtype": torch.float64, "device": device}
        self.gram = torch.zeros(groups, inputs + 1, inputs + 1, **like)
        self.cross = torch.zeros(groups, inputs + 1, targets, **like)
        self.energy = torch.zeros((), **like)
        self.count = 0

    def update(self, inputs: Tensor, targets: Tensor, step: float | None = None) -> "Moments":
        """Add rows.

        Args:
            inputs: (groups, N, I) or (N, I), any floating dtype.
            targets: (groups, N, targets) or (N, targets).
            step: If all inputs are integers times this, their products are added up as integers in float32, which is
                exact and about twice as fast.
        """
        x, y = (t if t.dim() == 3 else t.unsqueeze(0) for t in (inputs, targets))
        if x.shape[1] != y.shape[1] or x.shape[2] + 1 != self.gram.shape[1] or y.shape[2] != self.cross.shape[2]:
            raise InputError(f"inputs {tuple(inputs.shape)} and targets {tuple(targets.shape)} do not fit moments of "
                             f"{self.gram.shape[1] - 1} inputs and {self.cross.shape[2]} targets")
        wide, y = x.double(), y.double()
        products = _integer_products(x, step) if step is not None else None
        self.gram[:, :-1, :-1] += wide.mT @ wide if products is None else products
        sums = wide.sum(1)  # (groups, I)
        self.gram[:, -1, :-1] += sums
        self.gram[:, :-1, -1] += sums
        self.gram[:, -1, -1] += x.shape[1]
        self.cross[:, :-1] += wide.mT @ y
        self.cross[:, -1] += y.sum(1)
        self.energy += y.square().sum()
        self.count += x.shape[1]
        return self

    def project(self, weight: Tensor, bias: Tensor | None) -> "Moments":
        """Moments with targets ``weight @ target + bias`` instead; the energy is left undefined (NaN).

        A layer with more outputs than inputs accumulates its inputs as targets and projects them once at the end.

        Args:
            weight: (groups, rows, targets).
            bias: (groups, rows) or None.
        """
        new = object.__new__(Moments)
        new.gram, new.count = self.gram, self.count
        new.cross = self.cross @ weight.double().mT
        if bias is not None:
            new.cross += self.gram[..., -1:] * bias.double().unsqueeze(-2)
        new.energy = self.energy * float("nan")
        return new

    @property
    def second_moment(self) -> Tensor:
        """C = mean of x x^T, (groups, I, I): mean mean^T plus the covariance with divisor N."""
        return self.gram[:, :-1, :-1] / self.count

    @property
    def unbiased_moment(self) -> Tensor:
        """mean mean^T plus the covariance with divisor N - 1, as released."""
        mean = self.gram[:, :-1, -1] / self.count
        outer = mean.unsqueeze(-1) * mean.unsqueeze(-2)
        return outer + (self.second_moment - outer) * (self.count / max(self.count - 1, 1))

    def residual_energy(self, weight: Tensor, bias: Tensor | None = None) -> float:
        """Mean over rows of the squared output error of these weights, summed over outputs.

        Args:
            weight: (groups, rows, I).
            bias: (groups, rows) or None for zero.
        """
        full = with_bias(weight.double(), None if bias is None else bias.double(), keep=True)
        quadratic = ((full @ self.gram) * full).sum()
        value = self.energy - 2 * (full * self.cross.mT).sum() + quadratic
        return max(value.item(), 0.0) / self.count


def with_bias(weight: Tensor, bias: Tensor | None, keep: bool = False) -> Tensor:
    """The weight with the bias as its last column; without one it is returned as it is, or with zeros if ``keep``."""
    if bias is None:
        return torch.nn.functional.pad(weight, (0, 1)) if keep else weight
    return torch.cat([weight, bias.unsqueeze(-1)], dim=-1)


def _integer_products(x: Tensor, step: float) -> Tensor | None:
    """X^T X from integers in float32, exactly; None if they are too large or no integers."""
    codes = (x / step).float()
    rounded = codes.round()
    largest = int(rounded.abs().max().item())
    rows = EXACT // max(largest, 1) ** 2
    if rows < 64 or (codes - rounded).abs().max() > 1e-2:
        return None
    return sum(_upper_products(part) for part in rounded.split(rows, dim=1)) * float(step) ** 2


def _upper_products(x: Tensor, strip: int = 256) -> Tensor:
    """X^T X, float64; only strips of the upper triangle are multiplied."""
    size = x.shape[-1]
    out = torch.empty(len(x), size, size, dtype=torch.float64, device=x.device)
    for begin in range(0, size, strip):
        end = min(begin + strip, size)
        out[:, begin:end, begin:] = x[..., begin:end].mT @ x[..., begin:]
        out[:, end:, begin:end] = out[:, begin:end, end:].mT
    return out


def solve(gram: Tensor, strength: float, right: Tensor) -> Tensor:
    """(gram + strength I)^-1 right by Cholesky in float64, with a growing jitter if that is not positive definite."""
    gram = (gram + gram.mT) / 2
    diagonal = gram.diagonal(dim1=-2, dim2=-1)
    unit = torch.eye(gram.shape[-1], dtype=gram.dtype, device=gram.device)
    jitter = 0.0
    for _ in range(8):
        factor, info = torch.linalg.cholesky_ex(gram + (strength + jitter) * unit)
        if not info.any():
            return torch.cholesky_solve(right, factor)
        jitter = max(jitter * 100, 1e-12 * max(diagonal.mean().item(), 1e-30))
    raise InputError("the inputs of a layer hold NaN or infinity: their moments have no factor")
