"""Schedules as pure functions of the step: the learning rate's and the one that the remedies anneal with."""

import math

from vitq.errors import InputError


def cosine_schedule(step: float, total: float, start: float, end: float, begin_fraction: float = 0.0) -> float:
    r"""Flat at `start`, then half a cosine down (or up) to `end`.

    With :math:`t_0 = \text{begin\_fraction} \cdot T`,

    .. math:: v(t) = \begin{cases} \text{start} & t < t_0 \\ \text{end} + \tfrac12 (\text{start} - \text{end})
              \left(1 + \cos \pi \frac{t - t_0}{T - t_0}\right) & t \ge t_0 \end{cases}

    Source: Nagel et al. (2022), the annealing of lambda and f_th in the released code (begin_fraction 0.25). A value
    that is switched off before :math:`t_0`, as the freezing threshold is, is for the caller to switch off.

    Args:
        step: t, counted from 1 after the first optimizer step; beyond `total` the value stays at `end`.
        total: T, optimizer steps in the whole run, positive.
        start: value at the beginning.
        end: value at `total`.
        begin_fraction: share of the run before the annealing begins, in [0, 1).

    Raises:
        InputError: `total` is not positive, or `begin_fraction` lies outside [0, 1).
    """
    if not total > 0:
        raise InputError(f"total={total!r}: give the number of optimizer steps of the run, at least 1")
    if not 0 <= begin_fraction < 1:
        raise InputError(f"begin_fraction={begin_fraction!r}: give a share of the run in [0, 1)")
    begin = begin_fraction * total
    if step < begin:
        return start
    progress = min(1.0, (step - begin) / (total - begin))
    return end + 0.5 * (start - end) * (1 + math.cos(math.pi * progress))


def learning_rate(step: int, total: int, peak: float, *, schedule: str = "cosine", warmup: int = 0,
                  steps_per_epoch: int | None = None, floor: float = 0.0, warmup_epochs: int = 0,
                  warmup_from: float = 1e-6, cooldown_epochs: int = 0) -> float:
    """Learning rate that the optimizer step number `step` (counted from 0) uses.

    Linear warm-up over `warmup` steps, then constant, or a cosine from `peak` to `floor` over the rest. With
    `steps_per_epoch` the cosine moves at epoch boundaries only, as in the code released with Nagel et al. (2022). Then
    the first `warmup_epochs` can be replaced by a linear rise, which does not shift the cosine, and the last
    `cooldown_epochs` stay at `floor`, both as in the code released with Liu et al. (2023).

    Args:
        step: optimizer steps completed before this one.
        total: optimizer steps in the whole run.
        peak: highest learning rate.
        schedule: "cosine" or "constant".
        warmup: steps of linear warm-up; the first one uses peak / warmup.
        steps_per_epoch: set it for a cosine that is stepped per epoch.
        floor: rate that the cosine ends at.
        warmup_epochs: epochs of the rise from `warmup_from`; needs `steps_per_epoch`.
        warmup_from: rate of the first of these epochs.
        cooldown_epochs: epochs at `floor` after the cosine; needs `steps_per_epoch`.
    """
    if step < warmup:
        return peak * (step + 1) / warmup
    epoch = 0 if steps_per_epoch is None else step // steps_per_epoch
    if epoch < warmup_epochs:
        return warmup_from + (peak - warmup_from) * epoch / warmup_epochs
    if schedule == "constant":
        return peak
    if steps_per_epoch is not None:
        epochs = math.ceil(total / steps_per_epoch) - cooldown_epochs
        return cosine_schedule(epoch, max(1, epochs), peak, floor)
    return cosine_schedule(step - warmup, max(1, total - warmup), peak, floor)
