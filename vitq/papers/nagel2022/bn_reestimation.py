r"""Batch-norm statistics under oscillation: re-estimation, and the divergence that shows why it is needed.

Nagel 2022, section 2.3.1 and Table 1. A weight that flips in the last steps leaves the running averages of batch norm
with statistics of a network that no longer exists; a few batches after training repair that.
"""

import copy
from collections.abc import Iterable
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from vitq.errors import InputError
from vitq.train.callbacks import Callback, TrainState

if TYPE_CHECKING:
    import pandas

BatchNorm = nn.modules.batchnorm._BatchNorm


def batch_norms(model: nn.Module) -> dict[str, nn.Module]:
    """Batch-norm layers with running statistics, by module path."""
    return {n: m for n, m in model.named_modules() if isinstance(m, BatchNorm) and m.track_running_stats}


@torch.no_grad()
def reestimate_batch_norm(model: nn.Module, batches: Iterable[Tensor]) -> nn.Module:
    """Overwrite the running statistics of every batch norm with their average over ``batches``; return ``model``.

    The mean is the average of the batch means and the variance that of the unbiased batch variances, with equal weight
    per batch (as in the released code; the spread of the means between batches does not enter). Everything else
    runs in evaluation mode. A model without batch norm is left alone and no batch is read.

    Args:
        model: Any model.
        batches: Images (B, C, H, W), or (images, labels); the released code takes 50 training batches.

    Raises:
        InputError: ``batches`` is empty.
    """
    norms, was_training = batch_norms(model), model.training
    if not norms:
        return model
    momenta = {n: m.momentum for n, m in norms.items()}
    model.eval()
    for module in norms.values():
        module.reset_running_stats()
        module.momentum = None  # torch's cumulative average: equal weight per batch
        module.train()
    device, count = next(model.parameters()).device, 0
    try:
        for batch in batches:
            model((batch if isinstance(batch, Tensor) else batch[0]).to(device))
            count += 1
    finally:
        for name, module in norms.items():
            module.momentum = momenta[name]
        model.train(was_training)
    if count == 0:
        raise InputError("batches is empty: batch-norm re-estimation needs at least one batch")
    return model


def gaussian_kl(mean_p: Tensor, var_p: Tensor, mean_q: Tensor, var_q: Tensor) -> Tensor:
    r"""KL divergence of two normal distributions, elementwise, in nats.

    .. math:: D(p \Vert q) = \tfrac12 \ln\frac{\sigma_q^2}{\sigma_p^2}
              + \frac{\sigma_p^2 + (\mu_p - \mu_q)^2}{2 \sigma_q^2} - \tfrac12

    (The footnote of the paper is typeset with the logarithm of the variance ratio without the factor 1/2.)
    """
    return 0.5 * (var_q / var_p).log() + (var_p + (mean_p - mean_q) ** 2) / (2 * var_q) - 0.5


@torch.no_grad()
def batch_norm_divergence(model: nn.Module, batches: Iterable[Tensor], eps: float = 1e-12) -> "pandas.DataFrame":
    """Table 1: KL between population statistics and the running ones, over the output channels of each batch norm.

    Args:
        model: Trained model; it is not changed.
        batches: Training batches that stand for the population.
        eps: Added to both variances: a channel that is constant has none.

    Returns:
        One row per batch norm: ``layer`` (the convolution before it), ``kind`` (depthwise, pointwise, conv), ``max_kl``
        and ``mean_kl`` in nats, ``channels``.
    """
    import pandas

    population = batch_norms(reestimate_batch_norm(copy.deepcopy(model), batches))
    rows, layer, kind = [], None, None
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d):
            depthwise = module.groups > 1 and module.groups == module.in_channels
            layer, kind = name, "depthwise" if depthwise else "pointwise" if module.kernel_size == (1, 1) else "conv"
        elif name in population:
            p = population[name]
            kl = gaussian_kl(p.running_mean, p.running_var + eps, module.running_mean, module.running_var + eps)
            rows.append({"layer": layer, "kind": kind, "max_kl": kl.max().item(), "mean_kl": kl.mean().item(),
                         "channels": kl.numel()})
    return pandas.DataFrame(rows)


class BatchNormReestimation(Callback):
    """Training callback: re-estimates batch norm before every evaluation, for good, as the released code does.

    Args:
        batches: Training batches used each time (released code: 50).
    """

    def __init__(self, batches: int = 50) -> None:
        if batches < 1:
            raise InputError(f"batches={batches!r}: give at least 1")
        self.batches = batches

    def before_evaluation(self, state: TrainState) -> None:
        reestimate_batch_norm(state.model, (b for b, _ in zip(state.batches(), range(self.batches), strict=False)))
