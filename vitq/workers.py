"""A sweep: one function over many configurations, in a few worker processes of one thread each.

The workers are spawned, never forked: a fork after CUDA or after OpenMP threads have started hangs or crashes.
"""

from __future__ import annotations

import importlib
import multiprocessing
import os
import pickle
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import contextmanager
from multiprocessing.connection import Connection, wait
from typing import Any

from . import provenance
from .errors import InputError
from .processes import end_tree, end_with_parent

_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS")


class SweepError(RuntimeError):
    """Some configurations of a sweep failed; `results` has those of the others (None for the failed)."""

    def __init__(self, message: str, results: list[Any], failures: dict[int, str]) -> None:
        super().__init__(message)
        self.results = results
        self.failures = failures


def sweep(
    function: Callable[[Any], Any] | str, configs: Sequence[Any], workers: int = 2, progress: bool = True
) -> list[Any]:
    """Call a function on each configuration, in spawned processes with one thread each.

    Args:
        function: takes one configuration. It must be importable (defined in a module, not in a notebook or script),
            or be given by name as "package.module:function".
        configs: the configurations; they and the results must pickle.
        workers: processes at a time.
        progress: print one line for each configuration that finishes.

    Returns:
        the results, in the order of the configurations. A result that is a mapping and tells more `seconds` (or
        `job_seconds`) than its call took was finished before; a notebook's time counts the difference too.

    Raises:
        InputError: the function cannot be imported, a configuration does not pickle, or `workers` is not a positive
            integer; nothing has run.
        SweepError: at least one configuration failed. It is raised when all others have finished, names the failed
            ones and has the results of the others.
    """
    name = _importable(function)
    if isinstance(workers, bool) or not isinstance(workers, int) or workers < 1:
        raise InputError(f"workers must be a positive integer, not {workers!r}")
    configs = list(configs)
    for index, config in enumerate(configs):
        try:
            pickle.dumps(config)
        except Exception as error:
            raise InputError(f"config {index} cannot be sent to a worker: {error}") from None
    pool = _Pool(name, configs, min(workers, len(configs)), progress)
    try:
        pool.run()
    finally:
        pool.close()
    if pool.failures:
        failed = "; ".join(f"config {i} ({configs[i]!r}): {why}" for i, why in sorted(pool.failures.items()))
        message = f"{len(pool.failures)} of {len(configs)} configs failed: {failed}"
        raise SweepError(message, pool.results, pool.failures)
    return pool.results


def _importable(function: Callable | str) -> str:
    if isinstance(function, str):
        name = function
    else:
        name = f"{getattr(function, '__module__', None)}:{getattr(function, '__qualname__', repr(function))}"
    module, _, path = name.partition(":")
    if module in ("__main__", "None", "") or not path or "<" in path:
        raise InputError(f"function {name!r} cannot be imported by a worker; define it in a module, at top level")
    try:
        _load(name)
    except (ImportError, AttributeError) as error:
        raise InputError(f"function {name!r} cannot be imported: {error}") from None
    return name


def _load(name: str) -> Callable[[Any], Any]:
    module, _, path = name.partition(":")
    found = importlib.import_module(module)
    for part in path.split("."):
        found = getattr(found, part)
    return found


@contextmanager
def _one_thread():
    """One thread a process: the variables must be set before the libraries load, hence before the spawn."""
    before = {name: os.environ.get(name) for name in _THREADS}
    os.environ.update(dict.fromkeys(_THREADS, "1"))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


class _Pool:
    """Persistent workers, each with its own pipe, so that a worker that dies takes only its own configuration along."""

    def __init__(self, name: str, configs: list[Any], size: int, progress: bool) -> None:
        self.name, self.configs, self.size, self.progress = name, configs, size, progress
        self.results: list[Any] = [None] * len(configs)
        self.failures: dict[int, str] = {}
        self.pending = list(range(len(configs)))[::-1]
        self.busy: dict[Connection, tuple[Any, int]] = {}
        self.peaks: dict[int, float] = {}
        self.processes: list[Any] = []
        self.finished, self.started = 0, time.monotonic()

    def run(self) -> None:
        for _ in range(self.size):
            self._assign(*self._start())
        while self.busy:
            for pipe in wait(list(self.busy)):
                process, index = self.busy.pop(pipe)
                try:
                    good, answer, told = pipe.recv()
                except (EOFError, ConnectionResetError):
                    process.join(5)
                    good, answer, told = False, f"the worker died with exit code {process.exitcode}", None
                self._finish(process, index, good, answer, told)
                if told is None and self.pending:
                    process, pipe = self._start()
                if told is not None or self.pending:
                    self._assign(process, pipe)

    def _start(self) -> tuple[Any, Connection]:
        context = multiprocessing.get_context("spawn")
        pipe, theirs = context.Pipe()
        process = context.Process(target=_work, args=(self.name, theirs), daemon=False)
        self.processes.append(process)  # before the start: an interrupt may come at any moment
        with _one_thread():
            process.start()
        theirs.close()
        return process, pipe

    def _assign(self, process: Any, pipe: Connection) -> None:
        """Give a worker its next configuration, or let it go when there is none."""
        index = self.pending.pop() if self.pending else None
        try:
            pipe.send(None if index is None else (self.configs[index],))
        except OSError:  # it died meanwhile; its pipe then reads as ended
            pass
        if index is None:
            process.join()
        else:
            self.busy[pipe] = (process, index)

    def _finish(self, process: Any, index: int, good: bool, answer: Any, told: dict | None) -> None:
        if good:
            self.results[index] = answer
        else:
            self.failures[index] = answer
        if told is not None:
            self.peaks[process.pid] = told["peak_mb"]
            largest = sorted(self.peaks.values())[-self.size :]
            provenance.report(told["modules"], told["data"], sum(largest), told.get("earlier_seconds", 0.0) / self.size)
        self.finished += 1
        if self.progress:
            elapsed = time.monotonic() - self.started
            left = elapsed / self.finished * (len(self.configs) - self.finished)
            outcome = "" if good else f", config {index} failed: {answer}"
            done = f"{self.finished}/{len(self.configs)} done"
            print(f"{done}, {_clock(elapsed)} so far, about {_clock(left)} left{outcome}", flush=True)

    def close(self) -> None:
        """End the workers that still run: after an interrupt those in mid-configuration, otherwise none."""
        for process in self.processes:
            if process.is_alive():
                end_tree(process.pid, grace=1.0)


def _clock(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"


def _work(name: str, pipe: Connection) -> None:
    """What a worker does: answer each configuration with (good, result or reason, report) until told None."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # an interrupt reaches the whole group; the parent ends the workers
    end_with_parent(signal.SIGKILL)
    threading.Thread(target=_watch_parent, daemon=True).start()
    while (message := pipe.recv()) is not None:
        begun, earlier = time.monotonic(), 0.0
        try:
            function = _load(name)
            if "torch" in sys.modules:
                sys.modules["torch"].set_num_threads(1)
            answer = (True, function(message[0]))
            earlier = _earlier(answer[1], time.monotonic() - begun)
        except Exception as error:
            traceback.print_exc()
            answer = (False, f"{type(error).__name__}: {error}")
        try:
            pipe.send((*answer, provenance.own_report() | {"earlier_seconds": earlier}))
        except Exception as error:  # a result that does not pickle
            pipe.send((False, f"{type(error).__name__}: {error}", provenance.own_report()))


def _earlier(answer: Any, took: float) -> float:
    """Seconds of a result that tells more than its call took: it was finished before, and read back."""
    told = (answer.get("job_seconds") or answer.get("seconds") or 0.0) if isinstance(answer, Mapping) else 0.0
    return told - took if isinstance(told, int | float) and told > took else 0.0


def _watch_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
