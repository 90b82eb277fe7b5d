r"""Wqer, weight quantization error reduction (ERQ 2024, section 3 of the specification; Algorithm 1).

The input columns are quantized half by half. With the columns S of this round and the open columns R, bias included:

1. :math:`W_S` is rounded to its fixed grid, :math:`D_S = Q(W_S) - W_S`, to nearest at first;
2. rounding refinement chooses floor or ceiling of each weight to shrink :math:`E (D_S x_S)^2`;
3. ridge regression lets the open columns absorb the rest,

.. math:: W_R \leftarrow W_R - D_S\,G_{SR}\,(G_{RR} + L I)^{-1}, \qquad G = A^\top A,\; A = [x_q, 1] ;

4. go on with R until only the bias is open. The rounding candidates of a round come from the corrected weights.
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from vitq.numerics import check_choice
from vitq.papers.erq2024.grid import Grid
from vitq.papers.erq2024.moments import Moments, solve, with_bias
from vitq.papers.erq2024.refinement import refine_rounding
from vitq.papers.erq2024.schedule import half_sizes


@dataclass
class WqerResult:
    """Quantized weight (on its grid) and corrected bias, float64, and what the search did in each round.

    Attributes:
        weight: Shape of the input.
        bias: Shape of the input, or None.
        flips: Rounding choices that differ from nearest by refinement, by round.
        stuck: Share of rows that ended on an entry that cannot move, by round.
        rounds: Refinement rounds used, by round.
    """

    weight: Tensor
    bias: Tensor | None
    flips: list[int] = field(default_factory=list)
    stuck: list[float] = field(default_factory=list)
    rounds: list[int] = field(default_factory=list)


def wqer(weight: Tensor, bias: Tensor | None, moments: Moments, grid: Grid, strength: float, *, refine: bool = True,
         correct: bool = True, rule: str = "exact_gain", k: int = 1, rounds: int = 100,
         covariance: str = "biased") -> WqerResult:
    """Round a weight to its grid by refinement and ridge correction, half by half.

    Args:
        weight: (groups, rows, I), or (rows, I).
        bias: (groups, rows), or (rows,), or None.
        moments: Of the quantized inputs; only the Gram matrix is used.
        grid: Fixed grid, see :class:`~vitq.papers.erq2024.grid.Grid`.
        strength: L, see :func:`~vitq.papers.erq2024.aqer.ridge_strength`.
        refine: Refine the rounding; otherwise round to nearest.
        correct: Correct the open columns; otherwise they stay.
        rule: Flip rule of :func:`~vitq.papers.erq2024.refinement.refine_rounding`.
        k: Entries flipped at a time.
        rounds: Largest number of refinement rounds T.
        covariance: ``"biased"`` (an identity) or ``"unbiased"`` (as released).
    """
    check_choice("covariance", covariance, ("biased", "unbiased"))
    grouped = weight if weight.dim() == 3 else weight.unsqueeze(0)
    inputs = grouped.shape[-1]
    offset = None if bias is None else bias.reshape(grouped.shape[:2]).double()
    full = with_bias(grouped.double(), offset).clone()  # (groups, rows, I [+ 1])
    size = full.shape[-1]
    gram = moments.gram[:, :size, :size]
    moment = moments.second_moment if covariance == "biased" else moments.unbiased_moment
    result, begin = WqerResult(full, None), 0
    for number in half_sizes(inputs, bias is not None):
        now, later = slice(begin, begin + number), slice(begin + number, size)
        own, values = grid.columns(now), full[..., now]
        error = own.nearest(values) - values
        if refine:
            low, high = own.candidates(values)
            found = refine_rounding(error, low - values, high - values, moment[:, now, now], rule, k, rounds)
            error = found.error
            result.flips.append(found.flips), result.stuck.append(found.stuck), result.rounds.append(found.rounds)
        full[..., now] = own.nearest(values + error)  # removes the rounding of the addition
        if correct and later.start < size:
            full[..., later] -= error @ solve(gram[:, later, later], strength, gram[:, later, now]).mT
        begin += number
    result.weight = full[..., :inputs].reshape(weight.shape)
    result.bias = None if bias is None else full[..., inputs].reshape(bias.shape)
    return result


def output_error(weight: Tensor, rounded: Tensor, moments: Moments) -> float:
    """Mean squared output change per row of data when ``weight`` is replaced by ``rounded``, bias unchanged.

    Args:
        weight: (groups, rows, I) or (rows, I).
        rounded: The same shape.
        moments: Of the inputs.
    """
    difference = (rounded - weight).double().reshape(len(moments.gram), -1, weight.shape[-1])
    return torch.clamp(((difference @ moments.second_moment) * difference).sum(), min=0).item()
