r"""GPTQ on the same grids and data: the baseline that corrects column by column.

With H = mean of x x^T plus damping and the upper Cholesky factor U of :math:`H^{-1} = U^\top U`, column j is rounded to
nearest and its error, divided by :math:`U_{jj}`, is taken off the later columns in proportion to row j of U. Columns
are processed in blocks; later blocks are updated once a block.
"""

import torch
from torch import Tensor

from vitq.errors import InputError
from vitq.papers.erq2024.grid import Grid
from vitq.papers.erq2024.moments import Moments

BLOCK = 128


def gptq(weight: Tensor, moments: Moments, grid: Grid, damping: float = 0.01, act_order: bool = False) -> Tensor:
    """Weight on its grid, float64; the bias is left alone.

    Args:
        weight: (groups, rows, I), or (rows, I).
        moments: Of the inputs.
        grid: Fixed grid; scales are not refitted on the way.
        damping: Added to the diagonal of H, as a share of its mean.
        act_order: Go through the columns by falling :math:`H_{jj}` instead of their natural order.
    """
    if not damping > 0:
        raise InputError(f"damping={damping!r}: give a positive share of the mean diagonal")
    grouped = (weight if weight.dim() == 3 else weight.unsqueeze(0)).double()
    rounded = [_one(w, h, _part(grid, g), damping, act_order)
               for g, (w, h) in enumerate(zip(grouped, moments.second_moment, strict=True))]
    return torch.stack(rounded).reshape(weight.shape)


def _part(grid: Grid, group: int) -> Grid:
    return Grid(grid.scale[group], grid.zero_point[group], grid.qmax)


def _one(weight: Tensor, moment: Tensor, grid: Grid, damping: float, act_order: bool) -> Tensor:
    columns = weight.shape[-1]
    order = moment.diagonal().argsort(descending=True, stable=True) if act_order else torch.arange(columns)
    order = order.to(weight.device)
    moment = moment[order][:, order]
    mean = moment.diagonal().mean()
    damped = moment + torch.eye(columns).to(moment) * (damping * mean if mean > 0 else 1.0)
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(damped))
    upper = torch.linalg.cholesky((inverse + inverse.mT) / 2, upper=True)
    open_weight, grid = weight[:, order].clone(), grid.columns(order)
    for begin in range(0, columns, BLOCK):
        end = min(begin + BLOCK, columns)
        errors = torch.empty_like(open_weight[:, begin:end])
        for column in range(begin, end):
            own = open_weight[:, column:column + 1]
            level = grid.columns(slice(column, column + 1)).nearest(own)
            scaled = (own - level) / upper[column, column]
            errors[:, column - begin:column - begin + 1] = scaled
            open_weight[:, column + 1:end] -= scaled * upper[column, column + 1:end]
            open_weight[:, column:column + 1] = level
        open_weight[:, end:] -= errors @ upper[begin:end, end:]
    return open_weight[:, order.argsort()]
