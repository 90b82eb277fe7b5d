"""StatsQ on smooth densities: shares within the boundary range, occupancy of the levels, entropy and error.

A trained network whose weights oscillate has more weights near the thresholds than a smooth density; these functions
give the reference (specification, section 1.4 and 2).
"""

import math

import torch
from torch import Tensor

from vitq.numerics import check_choice
from vitq.oscillation import boundary_range
from vitq.quantizers import Quantizer, StatsQ

DENSITIES = ("gaussian", "laplace", "uniform")


def sample(density: str, rows: int = 256, columns: int = 4096, seed: int = 0) -> Tensor:
    """Independent weights, (rows, columns): standard normal, Laplace of scale 1, or uniform on (-1, 1)."""
    check_choice("density", density, DENSITIES)
    generator = torch.Generator().manual_seed(seed)
    if density == "gaussian":
        return torch.randn(rows, columns, generator=generator)
    centred = 2 * torch.rand(rows, columns, generator=generator, dtype=torch.float64) - 1
    if density == "laplace":
        centred = -centred.sign() * torch.log1p(-centred.abs())
    return centred.float()


def boundary_share(weight: Tensor, quantizer: Quantizer, x: float) -> float:
    """Percentage of the weights within :math:`BR_x`."""
    return 100 * boundary_range(weight, quantizer, x).double().mean().item()


def gaussian_boundary_share(bits: int, x: float) -> float:
    r"""The same for a Gaussian under StatsQ, to first order in x.

    .. math:: 100 \cdot 2x \frac{D}{\sigma} \sum_{|k| < n} \varphi(k D / \sigma), \quad
              D = 2\sqrt{2/\pi}\,\sigma / n, \; n = 2^{b-1}
    """
    n = 2 ** (bits - 1)
    step = 2 * math.sqrt(2 / math.pi) / n
    density = [math.exp(-0.5 * (k * step) ** 2) / math.sqrt(2 * math.pi) for k in range(-(n - 1), n)]
    return 100 * 2 * x * step * sum(density)


def level_statistics(weight: Tensor, bits: int) -> dict[str, float | list[float]]:
    """StatsQ at ``bits`` on a matrix of weights.

    Returns:
        ``occupancy``: share of the weights on each level, lowest first; ``entropy``: its entropy in bits;
        ``relative_error``: mean squared error over mean square; ``clipped``: share beyond the scale s.
    """
    quantizer = StatsQ(bits)
    codes = quantizer.codes(weight).flatten().to(torch.int64) - quantizer.qmin
    share = torch.bincount(codes, minlength=2**bits).double() / codes.numel()
    error = (quantizer(weight) - weight).double().square().mean() / weight.double().square().mean()
    scale = quantizer.step_size(weight) * quantizer.n
    return {"occupancy": share.tolist(), "entropy": -(share * share.clamp_min(1e-30).log2()).sum().item(),
            "relative_error": error.item(), "clipped": (weight.abs() > scale).double().mean().item()}
