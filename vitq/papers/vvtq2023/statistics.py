r"""How unevenly values are spread over groups: absolute mean, outliers, kurtosis, from sums that can be added up.

With :math:`\mu` and :math:`\sigma` of a group (population standard deviation): max/mean ratio
:math:`\max|x| / \mathrm{mean}|x|`, outlier share: the fraction with :math:`|x - \mu| > 3\sigma` (0.0027 for a normal
distribution), excess kurtosis :math:`E[(x-\mu)^4]/\sigma^4 - 3` (0 for a normal distribution). A constant group has
outlier share 0 and kurtosis NaN.

SDAM is the standard deviation over groups of the groups' mean absolute value
:math:`\mathrm{AM}_g = \mathrm{mean}_{i \in g} |x_i|`. The paper's grouping, and whether it normalises first, are not
known; here it is computed over channels, over heads and over layers, with the population standard deviation, as it is
and divided by the mean of AM ("relative", which does not change when a layer is scaled).
"""

from dataclasses import dataclass

import torch
from torch import Tensor

OUTLIER_SIGMAS = 3


@dataclass
class Sums:
    """Sums over the members of each of G groups, float64: enough for every statistic but the outlier share.

    Args:
        count: Members of each group.
        powers: Sums of x, x^2, x^3, x^4, (4, G).
        absolute: Sum of |x|, (G,).
        largest: Largest |x|, (G,).
    """

    count: int
    powers: Tensor
    absolute: Tensor
    largest: Tensor

    @classmethod
    def of(cls, rows: Tensor) -> "Sums":
        """From values (G, members)."""
        x = rows.detach().double()
        powers = torch.stack([x.sum(1), (x**2).sum(1), (x**3).sum(1), (x**4).sum(1)])
        return cls(rows.shape[1], powers, x.abs().sum(1), x.abs().amax(1))

    def __add__(self, other: "Sums") -> "Sums":
        """The same groups with more members."""
        return Sums(self.count + other.count, self.powers + other.powers, self.absolute + other.absolute,
                    torch.maximum(self.largest, other.largest))

    def merged(self, groups: int) -> "Sums":
        """Consecutive groups put together, so that ``groups`` are left."""
        members = self.count * (len(self.absolute) // groups)
        return Sums(members, self.powers.reshape(4, groups, -1).sum(2), self.absolute.reshape(groups, -1).sum(1),
                    self.largest.reshape(groups, -1).amax(1))

    @property
    def mean(self) -> Tensor:
        return self.powers[0] / self.count

    @property
    def std(self) -> Tensor:
        return (self.powers[1] / self.count - self.mean**2).clamp_min(0).sqrt()

    @property
    def absolute_mean(self) -> Tensor:
        return self.absolute / self.count

    def columns(self) -> dict[str, Tensor]:
        """Statistics by name, (G,) each."""
        m1, m2, m3, m4 = self.powers / self.count
        variance = self.std**2
        central = m4 - 4 * m1 * m3 + 6 * m1**2 * m2 - 3 * m1**4
        return {
            "mean_abs": self.absolute_mean,
            "std": self.std,
            "max_mean": self.largest / self.absolute_mean,
            "kurtosis": torch.where(variance > 0, central / variance**2 - 3, torch.nan),
        }


def outliers(rows: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """Number of members beyond three standard deviations, (G,), from values (G, members) and (G,) moments."""
    limit = OUTLIER_SIGMAS * std.unsqueeze(1)
    return ((rows.detach().double() - mean.unsqueeze(1)).abs() > limit).sum(1)


def sdam(absolute_means: Tensor) -> tuple[float, float]:
    """SDAM and relative SDAM of the groups' mean absolute values (G,)."""
    spread = absolute_means.std(correction=0)
    return spread.item(), (spread / absolute_means.mean()).item()
