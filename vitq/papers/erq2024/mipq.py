r"""MIPQ: the best rounding of one row as a mixed-integer quadratic program (ERQ 2024, specification, section 3.7).

.. math:: \min_{b \in \{0,1\}^n} d\,C\,d^\top , \qquad d_j = b_j d^{hi}_j + (1 - b_j) d^{lo}_j .

PuLP takes linear objectives, so each product :math:`b_i b_j` gets a variable :math:`y_{ij} \in [0, 1]`
with :math:`y \ge b_i + b_j - 1` where its coefficient is positive and :math:`y \le b_i, y \le b_j` where it is
negative. With
:math:`e = d^{hi} - d^{lo}` the objective is

.. math:: d^{lo} C d^{lo\top} + \sum_j (2 (d^{lo} C)_j e_j + C_{jj} e_j^2)\, b_j
          + \sum_{i<j} 2 C_{ij} e_i e_j\, y_{ij} .

The linearization that the paper used is not known. Entries with equal candidates do not enter the model; their b is 0.
"""

import warnings
from dataclasses import dataclass

import torch
from torch import Tensor

from vitq.errors import InputError

LARGEST = 22  # brute force: 2^22 errors


@dataclass(frozen=True)
class Mipq:
    """A solution: ``choice`` b (bool, (n,)), ``error`` d (n,), ``value`` d C d^T, and whether it is proven optimal."""

    choice: Tensor
    error: Tensor
    value: float
    optimal: bool


def _solution(choice: Tensor, low: Tensor, high: Tensor, moment: Tensor, optimal: bool) -> Mipq:
    error = torch.where(choice, high, low)
    return Mipq(choice, error, (error @ moment @ error).item(), optimal)


def _check(low: Tensor, high: Tensor, moment: Tensor) -> None:
    n = low.numel()
    if low.shape != (n,) or high.shape != (n,) or moment.shape != (n, n):
        raise InputError(f"low {tuple(low.shape)}, high {tuple(high.shape)}, moment {tuple(moment.shape)}: give one "
                         "row, (n,), (n,) and (n, n)")


def brute_force(low: Tensor, high: Tensor, moment: Tensor) -> Mipq:
    """The optimum by trying all 2^n roundings; n at most 22.

    Args:
        low: Errors of the lower candidates, (n,).
        high: Errors of the upper candidates, (n,).
        moment: C, (n, n).
    """
    _check(low, high, moment)
    n = low.numel()
    if n > LARGEST:
        raise InputError(f"low has {n} entries: brute force takes at most {LARGEST}; use solve_mipq")
    best, chosen = float("inf"), None
    for part in torch.arange(2**n).split(2**16):
        bits = (part[:, None] >> torch.arange(n)) & 1 == 1  # (choices, n)
        errors = torch.where(bits, high, low)
        values = ((errors @ moment) * errors).sum(1)
        index = values.argmin()
        if values[index] < best:
            best, chosen = values[index].item(), bits[index]
    return _solution(chosen & (low != high), low, high, moment, True)


def solve_mipq(low: Tensor, high: Tensor, moment: Tensor, time_limit: float | None = None) -> Mipq:
    """The best rounding found by PuLP's CBC; optimal unless the time limit ends the search.

    Args:
        low: Errors of the lower candidates, (n,).
        high: Errors of the upper candidates, (n,).
        moment: C, (n, n).
        time_limit: Seconds; None for no limit. Beyond about n = 24 an exact solution takes minutes and more.

    Raises:
        InputError: The time limit passed before any rounding was found.
    """
    _check(low, high, moment)
    low64, moment64 = low.double(), moment.double()
    step = high.double() - low64
    free = step.nonzero().flatten().tolist()
    if not free:
        return _solution(torch.zeros_like(low, dtype=torch.bool), low, high, moment, True)
    linear = (2 * (low64 @ moment64) * step + moment64.diagonal() * step**2).tolist()
    product = (2 * moment64 * step * step[:, None]).tolist()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # PuLP 3 announces the interface of PuLP 4
        values, optimal = _program(free, linear, product, time_limit)
    if any(value is None for value in values.values()):
        raise InputError(f"time_limit={time_limit!r}: no rounding was found in time; allow more")
    choice = torch.tensor([bool(values.get(j) and values[j] > 0.5) for j in range(low.numel())])
    return _solution(choice, low, high, moment, optimal)


def _program(free: list[int], linear: list[float], product: list[list[float]], time_limit: float | None) -> tuple:
    """Solve the linearized program; values of b by entry (None where there is no solution), and whether optimal."""
    import pulp

    size = max(abs(value) for j in free for value in (linear[j], *(product[j][i] for i in free))) or 1.0
    model = pulp.LpProblem("rounding", pulp.LpMinimize)
    choose = {j: pulp.LpVariable(f"b{j}", cat=pulp.LpBinary) for j in free}
    terms = [(choose[j], linear[j] / size) for j in free]
    for position, i in enumerate(free):
        for j in free[position + 1:]:
            if product[i][j] == 0:
                continue
            both = pulp.LpVariable(f"y{i}_{j}", 0, 1)
            terms.append((both, product[i][j] / size))
            if product[i][j] > 0:
                model += both >= choose[i] + choose[j] - 1
            else:
                model += both <= choose[i]
                model += both <= choose[j]
    model += pulp.LpAffineExpression(terms)
    model.solve(pulp.PULP_CBC_CMD(msg=False, timeLimit=time_limit, gapRel=0, gapAbs=0, threads=1))
    return {j: choose[j].value() for j in free}, model.sol_status == pulp.LpSolutionOptimal
