r"""The one-dimensional regression in which a quantized weight oscillates (Nagel 2022, section 2.2 and appendix A).

The loss :math:`L(w) = \mathbb E_x [\tfrac12 (x w_* - x q(w))^2]` has, by the straight-through estimator, the gradient
:math:`g = \sigma^2 (q(w) - w_*)` with :math:`\sigma^2 = \mathbb E[x^2]`: one constant on either side of the rounding
threshold. The latent weight walks to the threshold and saw-tooths around it. With
:math:`d = |w_* - q(w_*)|` it spends the share d/s of the time at the far level, whatever the learning rate.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from vitq.errors import InputError
from vitq.numerics import check_choice

ESTIMATORS = ("ste", "ewgs", "psg", "dsq", "dampening")


@dataclass(frozen=True)
class Trajectory:
    """Result of :func:`toy_regression`; the last axis is the iteration, entry 0 is the start.

    Attributes:
        latent: w.
        quantized: q(w).
        gradient: The update direction G that left this state.
        target: w_opt, broadcast to the leading shape.
        scale: s.
    """

    latent: Tensor
    quantized: Tensor
    gradient: Tensor
    target: Tensor
    scale: float

    def far_share(self, skip: int) -> Tensor:
        """Share of the iterations after ``skip`` spent at the level farther from the target: d/s when it oscillates."""
        near = (self.target / self.scale).round() * self.scale
        return (self.quantized[..., skip:] - near.unsqueeze(-1)).abs().gt(self.scale / 2).double().mean(-1)

    def switch_rate(self, skip: int) -> Tensor:
        """Changes of the quantized value per iteration after ``skip``: 2 d/s when it oscillates."""
        return self.quantized[..., skip:].diff(dim=-1).abs().gt(self.scale / 2).double().mean(-1)

    def amplitude(self, skip: int) -> Tensor:
        """Peak to peak of the latent weight after ``skip``: tends to learning rate * sigma^2 * s."""
        late = self.latent[..., skip:]
        return late.amax(-1) - late.amin(-1)


def estimator_gradient(
    w: Tensor, target: Tensor, scale: float, *, estimator: str = "ste", sigma2: float | Tensor = 1.0,
    strength: float | Tensor = 0.0
) -> tuple[Tensor, Tensor]:
    r"""Quantized value and update direction G of one step (paper, appendix A.1).

    With :math:`g = \sigma^2(q(w) - w_*)`, :math:`u = (w - q(w))/s` and :math:`r = (w - \bar w)/s` the distance to the
    rounding threshold of the bin pair that w lies in:

    - ``ste``: :math:`G = g`
    - ``ewgs``: :math:`G = g\,(1 + \delta\,\mathrm{sign}(g)\,u)`, strength = :math:`\delta`
    - ``psg``: :math:`G = g\,(|u| + \varepsilon)`, strength = :math:`\varepsilon`
    - ``dsq``: :math:`G = g\,a\,\mathrm{sech}^2(a r)/(2 \tanh(a/2))`, strength = a
    - ``dampening``: :math:`G = g + 2 \lambda (w - q(w))`, strength = :math:`\lambda`

    The middle three only multiply g by a positive factor, so they cannot change its sign; the last one adds to it.
    Distances are in units of one step, as the released code's EWGS has them. The form of ``dsq`` is not in the
    paper's appendix; it is the derivative of a stack of hyperbolic tangents, normalized over one step.
    """
    check_choice("estimator", estimator, ESTIMATORS)
    code = (w / scale).round()
    q = code * scale
    g = sigma2 * (q - target)
    u = w / scale - code
    if estimator == "ewgs":
        g = g * (1 + strength * g.sign() * u)
    elif estimator == "psg":
        g = g * (u.abs() + strength)
    elif estimator == "dsq":
        a = torch.as_tensor(strength, dtype=w.dtype)
        r = 0.5 - u.abs()  # distance to the nearest threshold; sech is even
        g = g * a / (torch.cosh(a * r) ** 2 * 2 * torch.tanh(a / 2))
    elif estimator == "dampening":
        g = g + 2 * strength * (w - q)
    return q, g


def toy_regression(
    target: float | Tensor = 0.7107,
    start: float | Tensor = 0.7364,
    *,
    scale: float = 1 / 15,
    learning_rate: float | Tensor = 0.149,
    sigma2: float | Tensor = 1.0,
    estimator: str = "ste",
    strength: float | Tensor = 0.0,
    iterations: int = 60,
) -> Trajectory:
    """Gradient descent on the toy problem, in float64; every argument but ``scale`` broadcasts.

    The defaults are the instance that the animation in the authors' repository shows, as measured from its frames
    (the paper prints no numbers for its toy figures).

    Args:
        target: w_opt.
        start: Initial latent weight.
        scale: s.
        learning_rate: Step of gradient descent; only its product with ``sigma2`` matters without dampening.
        sigma2: Second moment of x.
        estimator: One of :data:`ESTIMATORS`.
        strength: delta, epsilon, a or lambda of the estimator.
        iterations: Steps.

    Returns:
        Tensors of shape (*broadcast, iterations + 1).

    Raises:
        InputError: Unknown estimator, or a scale that is not positive.
    """
    if not scale > 0:
        raise InputError(f"scale={scale!r}: give a positive number")
    values = [torch.as_tensor(v, dtype=torch.float64) for v in (target, start, learning_rate, sigma2, strength)]
    target, w, learning_rate, sigma2, strength = torch.broadcast_tensors(*values)
    latent, quantized, gradient = [], [], []
    for _ in range(iterations + 1):
        q, g = estimator_gradient(w, target, scale, estimator=estimator, sigma2=sigma2, strength=strength)
        latent.append(w), quantized.append(q), gradient.append(g)
        w = w - learning_rate * g
    return Trajectory(*(torch.stack(x, -1) for x in (latent, quantized, gradient)), target, scale)
