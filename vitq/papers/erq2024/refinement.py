r"""Rounding refinement: choose floor or ceiling of each weight by the quadratic proxy of the output error.

The error of one row with rounding errors :math:`d` is :math:`E (d x)^2 = d C d^\top` with
:math:`C = \mu \mu^\top + \Sigma`, the second moment of the inputs (an identity, ERQ 2024, section 3.3 of the
specification). With :math:`g = 2 d C`, moving entry j to its other candidate changes the proxy by

.. math:: \delta_j = (d'_j - d_j)\, g_j + (d'_j - d_j)^2\, C_{jj} .

Three rules choose what to move (sections 3.4 and 9.3):

- ``"hard_paper"``: of the entries with :math:`d_j g_j > 0` flip the k of largest :math:`|g_j|`; a row whose proxy grows
  undoes the flip and stops.
- ``"snap_code"``: the same choice, but an entry moves to the candidate nearer to :math:`d_j - g_j`, so a gradient
  smaller than half a step moves nothing. As released.
- ``"exact_gain"``: flip the k most negative :math:`\delta_j`; a row stops when none is negative. Ours.

Under the first two rules a row may choose an entry that cannot move; it would do so in every round, and is *stuck*.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from vitq.errors import InputError
from vitq.numerics import check_choice

FLIP_RULES = ("exact_gain", "hard_paper", "snap_code")
STATE = 2**17  # entries searched together: their state stays in the processor's cache


@dataclass
class Refined:
    """Result of :func:`refine_rounding`.

    Attributes:
        error: Rounding errors d, shape of the input.
        proxy: d C d^T of each row, (groups, rows).
        flips: Accepted moves, summed over rows.
        rounds: Largest number of rounds that a group of rows took.
        stuck: Share of the rows that ended on an entry that cannot move.
        trace: Proxy after each round, (rounds + 1, groups, rows), if asked for.
    """

    error: Tensor
    proxy: Tensor
    flips: int = 0
    rounds: int = 0
    stuck: float = 0.0
    trace: Tensor | None = None


def refine_rounding(error: Tensor, low: Tensor, high: Tensor, moment: Tensor, rule: str = "exact_gain", k: int = 1,
                    rounds: int = 100, row_batch: int | None = None, trace: bool = False) -> Refined:
    """Lower ``d C d^T`` of each row by moving entries between their two candidates.

    Args:
        error: Errors d of the rounding to start from, usually to nearest, (groups, rows, n) or (rows, n).
        low: Errors of the lower candidates, same shape.
        high: Errors of the upper candidates, same shape.
        moment: C, (groups, n, n) or (n, n).
        rule: One of ``FLIP_RULES``.
        k: Entries moved at a time (paper: 1).
        rounds: Largest number of rounds T (paper: 100).
        row_batch: Rows searched together, None for a number that suits the cache; the result does not depend on it.
        trace: Keep the proxy of each round.
    """
    check_choice("flip_rule", rule, FLIP_RULES)
    row_batch = max(STATE // error.shape[-1], 32) if row_batch is None else row_batch
    for name, value, least in (("k", k, 1), ("rounds", rounds, 0), ("row_batch", row_batch, 1)):
        if value < least:
            raise InputError(f"{name}={value!r}: give a number of at least {least}")
    shape, n = error.shape, error.shape[-1]
    moment = moment.reshape(-1, n, n)
    grouped = (len(moment), -1, n)
    error, low, high = (t.reshape(grouped).clone() for t in (error, low, high))
    gradient = 2 * (error @ moment)
    proxy = 0.5 * (gradient * error).sum(-1)
    groups, rows = error.shape[:2]
    group = torch.arange(groups, device=error.device).repeat_interleave(rows)
    flat = [t.reshape(groups * rows, n) for t in (error, low, high, gradient)]
    result = Refined(error.reshape(shape), proxy)
    history = proxy.reshape(1, -1).repeat(rounds + 1, 1) if trace else None  # (rounds + 1, groups * rows)
    stuck = 0
    for part in torch.arange(groups * rows, device=error.device).split(row_batch):
        piece = slice(int(part[0]), int(part[-1]) + 1)
        search = _Search([t[piece] for t in flat], proxy.view(-1)[piece], moment, group[piece], rule, min(k, n))
        done = 0
        while done < rounds and search.step():
            done += 1
            if trace:
                search.finish()
                history[done:, piece] = search.whole_proxy
        search.finish()
        flat[0][piece], proxy.view(-1)[piece] = search.whole_error, search.whole_proxy
        result.flips, result.rounds, stuck = result.flips + search.flips, max(result.rounds, done), stuck + search.stuck
    result.error, result.stuck = flat[0].reshape(shape), stuck / (groups * rows)
    result.trace = history.reshape(rounds + 1, groups, rows) if trace else None
    return result


class _Search:
    """State of some rows: (rows, n) each; rows that have stopped are dropped from the working set now and then."""

    def __init__(self, state: list[Tensor], proxy: Tensor, moment: Tensor, group: Tensor, rule: str, k: int) -> None:
        self.error, low, high, self.gradient = state
        self.total = low + high  # the other candidate is total - error
        self.low, self.high = low, high
        self.proxy, self.moment, self.group = proxy.clone(), moment, group
        self.diagonal = moment.diagonal(dim1=-2, dim2=-1)[group]
        self.rule, self.k, self.flips, self.stuck = rule, k, 0, 0
        self.active = torch.ones_like(proxy, dtype=torch.bool)
        self.index = torch.arange(len(proxy), device=proxy.device)
        self.whole_error, self.whole_proxy = self.error.clone(), self.proxy.clone()

    def step(self) -> bool:
        """One round; False if no row has anything left to do."""
        if not len(self.index):
            return False
        change, columns = self._moves()  # (rows, k) each; a change of 0 is no move
        delta = self._delta(change, columns)
        if self.k > 1 and self.rule == "exact_gain":
            worse = delta >= 0  # moved together they lose: take the best alone, whose own gain is certain
            change = torch.where(worse[:, None] & (torch.arange(self.k, device=change.device) > 0), 0, change)
            delta = torch.where(worse, self._delta(change, columns), delta)
        moved = (change != 0).any(1)
        accepted = moved & (delta < 0 if self.rule == "exact_gain" else delta <= 0)
        accepted &= self.active  # a stopped row would only repeat itself
        self.stuck += int((~moved & self.wanted & self.active).sum())
        self._apply(torch.where(accepted[:, None], change, 0), columns)
        self.proxy += torch.where(accepted, delta, 0)
        self.flips += int(((change != 0) & accepted[:, None]).sum())
        self._keep(accepted)
        return True

    def _moves(self) -> tuple[Tensor, Tensor]:
        if self.rule == "exact_gain":
            other = self.total - self.error - self.error  # d' - d
            gain = torch.addcmul(self.gradient, other, self.diagonal).mul_(other)
            values, columns = gain.topk(self.k, dim=1, largest=False) if self.k > 1 else gain.min(1, keepdim=True)
            self.wanted = torch.zeros_like(self.proxy, dtype=torch.bool)
            return torch.where(values < 0, other.gather(1, columns), 0), columns
        score = torch.where(self.error * self.gradient > 0, self.gradient.abs(), -1)
        values, columns = score.topk(self.k, dim=1) if self.k > 1 else score.max(1, keepdim=True)
        self.wanted = (values >= 0).any(1)
        own, g = self.error.gather(1, columns), self.gradient.gather(1, columns)
        low, high = self.low.gather(1, columns), self.high.gather(1, columns)
        if self.rule == "hard_paper":
            target = torch.where(own == low, high, low)
        else:
            target = torch.where((own - g - low).abs() < (high - own + g).abs(), low, high)
        return torch.where(values >= 0, target - own, 0), columns

    def _delta(self, change: Tensor, columns: Tensor) -> Tensor:
        g = self.gradient.gather(1, columns)
        if self.k == 1:
            return (change * (g + change * self.diagonal.gather(1, columns))).squeeze(1)
        block = self.moment[self.group[:, None, None], columns[:, :, None], columns[:, None, :]]  # (rows, k, k)
        return (change * g).sum(1) + torch.einsum("rk,rkl,rl->r", change, block, change)

    def _apply(self, change: Tensor, columns: Tensor) -> None:
        self.error.scatter_add_(1, columns, change)
        for position in range(self.k):
            own = change[:, position, None]
            self.gradient.addcmul_(self.moment[self.group, columns[:, position]], own, value=2)
        low, high = self.low.gather(1, columns), self.high.gather(1, columns)  # land exactly on a candidate
        near = self.error.gather(1, columns)
        self.error.scatter_(1, columns, torch.where((near - low).abs() <= (high - near).abs(), low, high))

    def _keep(self, going: Tensor) -> None:
        """Note which rows go on; drop the others once they are a fifth of the working set."""
        self.active &= going
        if self.active.sum() > 0.8 * len(self.active):
            return
        self.finish()
        for name in ("error", "gradient", "total", "low", "high", "proxy", "diagonal", "index", "group"):
            setattr(self, name, getattr(self, name)[self.active])
        self.active = torch.ones_like(self.proxy, dtype=torch.bool)

    def finish(self) -> None:
        """Write the state of the working set back."""
        self.whole_error[self.index], self.whole_proxy[self.index] = self.error, self.proxy
