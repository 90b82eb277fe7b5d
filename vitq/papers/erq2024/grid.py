"""The fixed grid that a weight is rounded to, one scale and zero point an entry."""

from dataclasses import dataclass

from torch import Tensor

from vitq.quantizers.affine import Affine


@dataclass(frozen=True)
class Grid:
    """Affine grid of a weight: levels ``scale * (code - zero_point)``, code 0 to ``qmax``.

    Args:
        scale: Broadcastable to the weight, (groups, rows, inputs).
        zero_point: The same.
        qmax: Largest code.
    """

    scale: Tensor
    zero_point: Tensor
    qmax: int

    @classmethod
    def of(cls, quantizer: Affine, weight: Tensor, groups: int = 1) -> "Grid":
        """The grid of a calibrated weight quantizer, in float64.

        Args:
            quantizer: Of the weight.
            weight: In the layer's own shape, (O, ...).
            groups: Groups of a convolution.
        """
        parts = []
        for values in (quantizer.step_size(weight), quantizer.offset(weight)):
            values = values.detach().double().reshape(len(weight), -1)  # (O, 1 or I)
            parts.append(values.reshape(groups, len(weight) // groups, -1))
        return cls(*parts, quantizer.qmax)

    def columns(self, part: slice | Tensor) -> "Grid":
        """The grid of some input columns; those of a dual grid keep the scale of their own group."""
        scale, zero_point = (v if v.shape[-1] == 1 else v[..., part] for v in (self.scale, self.zero_point))
        return Grid(scale, zero_point, self.qmax)

    def rows(self, part: slice) -> "Grid":
        """The grid of some rows."""
        return Grid(self.scale[..., part, :], self.zero_point[..., part, :], self.qmax)

    def value(self, codes: Tensor) -> Tensor:
        """Level of each code, clipped to the grid."""
        return (codes.clamp(0, self.qmax) - self.zero_point) * self.scale

    def nearest(self, weight: Tensor) -> Tensor:
        """Nearest level of each weight, ties to the even multiple of the scale: the round-to-nearest baseline."""
        return self.value((weight / self.scale).round() + self.zero_point)

    def candidates(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """Level below and level above each weight; the same where the weight lies on a level or outside the range."""
        position = weight / self.scale
        return self.value(position.floor() + self.zero_point), self.value(position.ceil() + self.zero_point)

    def off_grid(self, weight: Tensor) -> float:
        """Largest distance of a weight from its nearest level."""
        return (self.nearest(weight) - weight).abs().max().item()
