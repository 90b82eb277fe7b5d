"""Dual uniform quantizer: columns with outliers have ranges of their own."""

import torch
from torch import Tensor

from vitq.errors import InputError
from vitq.quantizers.affine import Affine
from vitq.quantizers.percentiles import ERQ_WEIGHTS, search_affine

SHARE = 20  # one outlier column for this many rows
TAIL = 0.99


def outlier_columns(weight: Tensor, count: int | None = None) -> Tensor:
    r"""Which input columns hold most of the outliers of a weight (ERQ 2024, journal version; as released); bool (I,).

    In each row an entry is marked that lies above the 99th percentile of the positive weights or below the 1st
    percentile of the negative ones; the columns marked in most rows are taken, the one marked first on a tie. A row
    without positive (negative) weights marks none of that sign.

    Args:
        weight: (O, I).
        count: Number of columns; by default :math:`\lfloor O/20 \rfloor`, at most I - 1.
    """
    rows, columns = weight.shape
    count = min(rows // SHARE if count is None else count, columns - 1)
    upper = _quantile_where(weight, weight > 0, TAIL)
    lower = -_quantile_where(-weight, weight < 0, TAIL)
    marked = (weight > upper) | (weight < lower)
    numbers = torch.arange(columns, device=weight.device)
    first = marked.to(torch.uint8).argmax(0) * columns + numbers  # position of the first mark, row by row
    order = (marked.sum(0) * (rows * columns) - first).argsort(descending=True, stable=True)
    return torch.zeros(columns, dtype=torch.bool, device=weight.device).index_fill(0, order[:count], True)


def _quantile_where(weight: Tensor, kept: Tensor, p: float) -> Tensor:
    """Quantile of the kept entries of each row, (R, 1); infinity where none is kept."""
    ordered = weight.masked_fill(~kept, -torch.inf).sort(dim=1, descending=True).values
    counts = kept.sum(1, keepdim=True)
    position = (counts - 1).clamp_min(0) * (1 - p)  # from the largest down
    low = position.floor().long()
    high = torch.minimum(low + 1, (counts - 1).clamp_min(0))
    value = torch.lerp(ordered.gather(1, low), ordered.gather(1, high), (position - low).to(weight.dtype))
    return torch.where(counts > 0, value, torch.inf)


class DualUniform(Affine):
    """Two affine grids a row: one for the outlier columns, one for the others (ERQ 2024, journal version, section 4.2
    of the specification).

    Reparameterization multiplies columns of the weight by the spread of the LayerNorm's channels; a single scale a row
    would spend its levels on the few large columns. It costs a second scale and zero point for each row. With too few
    rows for an outlier column it is the single-scale quantizer.

    Args:
        bits: 2 to 8.
        percentiles: Candidates of the percentile search.

    Shape:
        Weight (O, I); ``scale`` and ``zero_point`` (2 O,), first the ordinary columns'; ``outlier`` bool (I,).
    """

    SIZED_BY_DATA = (*Affine.SIZED_BY_DATA, "outlier")

    def __init__(self, bits: int, percentiles: tuple[float, ...] = ERQ_WEIGHTS) -> None:
        super().__init__(bits, 0, percentiles)
        self.register_buffer("outlier", torch.zeros(1, dtype=torch.bool))

    def fit_range(self, x: Tensor) -> None:
        if x.dim() != 2:
            raise InputError(f"x has shape {tuple(x.shape)}: dual uniform quantization is for the weight of a linear "
                             "layer, (outputs, inputs)")
        self.outlier = outlier_columns(x).to(self.scale.device)
        groups = [x[:, ~self.outlier], x[:, self.outlier]]
        found = [search_affine(group if group.shape[1] else groups[0], self.bits, self.percentiles) for group in groups]
        self.set_grid(*(torch.cat(pair) for pair in zip(*found, strict=True)))

    def _each(self, values: Tensor, x: Tensor) -> Tensor:
        rows, columns = x.shape
        if len(self.outlier) != columns or values.numel() != 2 * rows:
            raise InputError(f"the input {tuple(x.shape)} does not fit a grid of {values.numel() // 2} rows and "
                             f"{len(self.outlier)} columns")
        ordinary, own = values.view(2, rows, 1)
        return torch.where(self.outlier, own, ordinary)

    def step_size(self, x: Tensor) -> Tensor:
        """Scale of each weight, (O, I)."""
        return self._each(self.scale, x)

    def offset(self, x: Tensor) -> Tensor:
        """Zero point of each weight, (O, I)."""
        return self._each(self.zero_point, x)
