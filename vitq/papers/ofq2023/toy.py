r"""A toy regression that sets a learned scale against a statistical one (OFQ 2023, Figure 1; specification, T14).

The paper's Figure 1 shows trajectories of weights and scale in a small regression; which one, is not known to us. This
one has many independent rows of a few weights. Each row fits its own target :math:`w_*` from noisy gradients of
:math:`\tfrac12 \mathbb E[(x \cdot (\hat w - w_*))^2]`, x standard normal, in batches of a few samples. All methods see
the same targets, starts and samples, at one learning rate.

Why a learned scale could make oscillation worse: :math:`\hat w = s \lfloor v \rceil` with :math:`v = w/s` has
:math:`\partial \hat w/\partial s = \lfloor v \rceil - v`, which jumps between -1/2 and +1/2 at a threshold, so
the weights that oscillate push s the most, and in turns; and moving s by :math:`\delta` moves the threshold
:math:`k + \tfrac12` of the whole row by :math:`(k + \tfrac12)\,\delta`.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from vitq.errors import InputError
from vitq.numerics import check_choice
from vitq.oscillation import OscillationTracker
from vitq.papers.ofq2023.mechanism import scale_jitter
from vitq.quantizers import LSQ, Quantizer, StatsQ

METHODS = ("lsq", "statsq")


@dataclass(frozen=True)
class ToyRun:
    """Result of :func:`toy_regression`; the first axis is the iteration, entry 0 is the start.

    Attributes:
        latent: Latent weights, (steps + 1, rows, columns).
        codes: Their integer codes, int8, the same shape.
        step_size: Distance of two levels in each row, (steps + 1, rows): s of LSQ, s/n of StatsQ.
        reversals: Share of the weights whose code moved against its last move, (steps,).
        by_scale: Share of the weights whose code would have changed by the move of the step size alone, (steps,).
        error: Mean squared distance of the quantized weights from their targets, (steps + 1,).
    """

    latent: Tensor
    codes: Tensor
    step_size: Tensor
    reversals: Tensor
    by_scale: Tensor
    error: Tensor

    def late(self, share: float = 0.2) -> dict[str, float]:
        """Means over the last ``share`` of the steps.

        Returns:
            ``reversals`` and ``by_scale`` per weight and step; ``variance`` of the step size in units of its squared
            mean, averaged over rows; ``error``.
        """
        if not 0 < share <= 1:
            raise InputError(f"share={share!r}: give a share of the run, in (0, 1]")
        last = max(2, round(share * len(self.reversals)))
        return {"reversals": self.reversals[-last:].mean().item(),
                "by_scale": self.by_scale[-last:].mean().item(),
                "variance": scale_jitter(self.step_size[-last:])["variance"], "error": self.error[-last:].mean().item()}


def scale_derivative(position: Tensor, low: int, high: int) -> Tensor:
    r""":math:`\partial \hat w / \partial s` of LSQ at the position :math:`v = w/s`: :math:`\lfloor v \rceil - v`.

    Outside the grid ``low`` .. ``high`` it is the outermost code.
    """
    inside = (position >= low) & (position <= high)
    return torch.where(inside, position.round() - position, position.clamp(low, high))


def toy_regression(
    method: str,
    *,
    bits: int = 2,
    rows: int = 64,
    columns: int = 8,
    batch: int = 4,
    steps: int = 2000,
    learning_rate: float = 0.01,
    grad_scale: str = "lsq",
    learn_scale_for: int | None = None,
    seed: int = 0,
) -> ToyRun:
    """Stochastic gradient descent on the toy problem; targets and starts are standard normal.

    Args:
        method: ``"lsq"``: one learned scale per row, trained at the learning rate of the weights. ``"statsq"``: the
            scale follows the weights.
        bits: Of the weights.
        rows: Independent problems.
        columns: Weights of each.
        batch: Samples per step; the fewer, the noisier the gradient.
        steps: Of gradient descent.
        learning_rate: Of weights and scales.
        grad_scale: Of the learned scale, see :class:`~vitq.quantizers.LSQ`.
        learn_scale_for: Steps after which LSQ's scale is held where it is; 0 for a fixed one, None for never.
        seed: Of targets, starts and samples.
    """
    check_choice("method", method, METHODS)
    for name, value in (("rows", rows), ("columns", columns), ("batch", batch), ("steps", steps)):
        if value < 1:
            raise InputError(f"{name}={value!r}: give at least 1")
    generator = torch.Generator().manual_seed(seed)
    target, start = torch.randn(2, rows, columns, generator=generator)
    weight = nn.Parameter(start.clone())
    quantizer = _quantizer(method, bits, grad_scale)
    quantizer.initialize(start)
    learned = 0 if method == "statsq" else steps if learn_scale_for is None else learn_scale_for
    tracker, reversals, history = OscillationTracker(1.0), [], [_state(weight, quantizer, target)]
    tracker.update(history[0][1])
    for step in range(steps):
        x = torch.randn(rows, batch, columns, generator=generator)
        quantized = quantizer(weight)
        residual = (x @ (quantized.detach() - target).unsqueeze(2)).squeeze(2)  # (rows, batch)
        upstream = (residual.unsqueeze(1) @ x).squeeze(1) / batch  # (rows, columns)
        trained = [weight, quantizer.scale] if step < learned else [weight]
        gradients = torch.autograd.grad(quantized, trained, upstream)
        with torch.no_grad():
            for value, gradient in zip(trained, gradients, strict=True):
                value -= learning_rate * gradient
        history.append(_state(weight, quantizer, target))
        reversals.append(tracker.update(history[-1][1]).float().mean())
    latent, codes, step_size, error = (torch.stack(part) for part in zip(*history, strict=True))
    shift = quantizer.position(torch.zeros(rows, columns)).detach()
    position = latent[:-1] / step_size[1:].unsqueeze(2) + shift  # the weights of one step on the grid of the next
    by_scale = position.round().clamp(quantizer.qmin, quantizer.qmax) != codes[:-1]
    return ToyRun(latent, codes, step_size, torch.stack(reversals), by_scale.float().mean((1, 2)), error)


def _quantizer(method: str, bits: int, grad_scale: str) -> Quantizer:
    if method == "statsq":
        return StatsQ(bits)
    return LSQ(bits, channel_axis=0, variant="paper", grad_scale=grad_scale, init="lsq")


@torch.no_grad()
def _state(weight: Tensor, quantizer: Quantizer, target: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Latent weight, codes, step size of each row, mean squared error."""
    error = (quantizer(weight) - target).square().mean()
    return weight.detach().clone(), quantizer.codes(weight), quantizer.step_size(weight).flatten().clone(), error
