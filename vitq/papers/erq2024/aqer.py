r"""Aqer, activation quantization error reduction (ERQ 2024, section 2 of the specification).

The weight changes so that the layer's output on quantized inputs returns to its output in full precision:

.. math:: \min_D \; \lVert W x - (W + D)\, x_q \rVert^2 + \lambda_1 \lVert D \rVert^2 , \qquad
          D^* = -W\,E[\delta x\, x_q^\top]\,(E[x_q x_q^\top] + \lambda_1 I)^{-1} .

The released form, used here, has the bias as a column of ones and sums in place of means: with :math:`A = [x_q, 1]` and
the residual :math:`R = Y - A W_c^\top`,

.. math:: B = (A^\top A + L I)^{-1} A^\top R , \qquad W_c \leftarrow W_c + B^\top .

:math:`A^\top R = A^\top Y - A^\top A\,W_c^\top`, so streaming moments are enough. Both forms agree without bias at
:math:`L = N \lambda_1`.
"""

from torch import Tensor

from vitq.errors import InputError
from vitq.numerics import check_choice
from vitq.papers.erq2024.moments import Moments, solve, with_bias

LAMBDA_MODES = ("sum_code", "mean_paper")
VECTOR_STRENGTH = 0.1  # as released


def ridge_strength(coe: float, count: int, mode: str = "sum_code", kind: str = "linear", step: str = "aqer",
                   vector_strength: float | None = VECTOR_STRENGTH) -> float:
    """L, what is added to the diagonal of the sums.

    Args:
        coe: Lambda as the user gives it.
        count: Rows N.
        mode: ``"sum_code"``, the released rule: 0.1 ``coe`` for a linear layer, 0.1 for Aqer on a layer of vectors (the
            classifier), ``coe`` for a convolution. ``"mean_paper"``: N ``coe``, as the paper's formula reads.
        kind: ``"linear"``, ``"vector"`` (a linear layer with 2-D input) or ``"conv"``.
        step: ``"aqer"`` or ``"wqer"``.
        vector_strength: L of Aqer on a layer of vectors, None for the rule of linear layers.
    """
    if not coe >= 0:
        raise InputError(f"coe={coe!r}: the ridge strength must not be negative")
    if check_choice("lambda_mode", mode, LAMBDA_MODES) == "mean_paper":
        return coe * count
    if kind == "vector" and step == "aqer":
        return 0.1 * coe if vector_strength is None else vector_strength
    return coe if kind == "conv" else 0.1 * coe


def aqer(weight: Tensor, bias: Tensor | None, moments: Moments, strength: float) -> tuple[Tensor, Tensor | None]:
    """Corrected weight and bias, float64.

    Args:
        weight: (groups, rows, I), or (rows, I).
        bias: (groups, rows), or (rows,); None for a layer without one, which then gets none.
        moments: Of quantized inputs and full-precision outputs.
        strength: L, see :func:`ridge_strength`.
    """
    grouped = weight if weight.dim() == 3 else weight.unsqueeze(0)
    offset = None if bias is None else bias.reshape(grouped.shape[:2])
    full = with_bias(grouped.double(), None if offset is None else offset.double())  # (groups, rows, I [+ 1])
    size = full.shape[-1]
    gram = moments.gram[:, :size, :size]
    full = full + solve(gram, strength, moments.cross[:, :size] - gram @ full.mT).mT
    inputs = grouped.shape[-1]
    new_bias = None if bias is None else full[..., inputs].reshape(bias.shape)
    return full[..., :inputs].reshape(weight.shape), new_bias
