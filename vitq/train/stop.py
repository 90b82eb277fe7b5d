"""SIGTERM and SIGUSR1 ask a run to stop: the present step ends, a checkpoint is written, all ranks end together."""

import contextlib
import signal
from collections.abc import Iterator
from typing import Any

import torch

from vitq.train.ranks import Ranks

SIGNALS = (signal.SIGTERM, signal.SIGUSR1)
STATUS = 128 + signal.SIGTERM
_state: dict[str, Any] = {"received": None, "patient": False}


class Stopped(RuntimeError):
    """A signal ended the run; `code` is the exit status. The same command goes on from the last checkpoint."""

    code = STATUS


@contextlib.contextmanager
def listening() -> Iterator[None]:
    """In here the two signals raise `Stopped`, within `patience` only when the step under way is done.

    For the main thread of a process that does nothing but one run.
    """
    before = {number: signal.signal(number, _note) for number in SIGNALS}
    try:
        yield
    finally:
        _state["received"] = None
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def patience(patient: bool = True) -> Iterator[None]:
    """In here a signal is kept for `Vote`, or is not, where `patient` is False."""
    before, _state["patient"] = _state["patient"], patient
    try:
        if not patient:
            _raise_if_received()
        yield
    finally:
        _state["patient"] = before
    if not before:
        _raise_if_received()  # it came after the last vote


class Vote:
    """Whether any rank was asked to stop, the same answer on all ranks after the same step.

    A rank's vote travels while the next step is computed and is counted after it, through the processors: nothing
    waits for a GPU.
    """

    def __init__(self, ranks: Ranks):
        self.group = torch.distributed.new_group(backend="gloo") if ranks.count > 1 else None
        self.pending = None

    def stop(self, last: bool = False) -> bool:
        """To be called once after each step; with `last`, nothing is left to travel and no other call may follow."""
        mine = _state["received"] is not None
        if self.group is None:
            return mine
        stop = self._counted()
        votes = torch.tensor([int(mine)])
        self.pending = votes, torch.distributed.all_reduce(votes, group=self.group, async_op=True)
        if stop or last:
            stop = self._counted() or stop
            torch.distributed.destroy_process_group(self.group)
        return stop

    def _counted(self) -> bool:
        if self.pending is None:
            return False
        votes, work = self.pending
        self.pending = None
        work.wait()
        return bool(votes.item())


def stopped(saved: str | None) -> Stopped:
    """The one line that a stopped run ends with."""
    received = _state["received"]
    name = "another rank's signal" if received is None else signal.Signals(received).name
    kept = f"{saved} is written" if saved else "no checkpoint was written"
    return Stopped(f"stopped by {name}: {kept}; the same command goes on from there")


def _note(number: int, frame: Any) -> None:
    _state["received"] = number
    if not _state["patient"]:
        _raise_if_received()


def _raise_if_received() -> None:
    if _state["received"] is not None:
        name = signal.Signals(_state["received"]).name
        raise Stopped(f"stopped by {name}: the same command goes on from the last checkpoint, if there is one")
