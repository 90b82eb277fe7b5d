"""Child processes that leave nothing behind: they end with their parent, with their whole family, and start clean."""

from __future__ import annotations

import ctypes
import os
import runpy
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from . import environment, provenance
from .errors import InputError

_PR_SET_PDEATHSIG = 1
_LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None
_RENDEZVOUS = (
    "RANK WORLD_SIZE LOCAL_RANK LOCAL_WORLD_SIZE GROUP_RANK GROUP_WORLD_SIZE ROLE_RANK ROLE_WORLD_SIZE ROLE_NAME "
    "MASTER_ADDR MASTER_PORT MPLBACKEND"
).split()
_PREFIXES = ("SLURM_", "TORCHELASTIC_", "PMI_", "PMIX_", "OMPI_")


class RunFailed(RuntimeError):
    """A notebook or a torchrun job failed or was interrupted; `code` is the exit status to pass on."""

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self.code = code


def end_with_parent(number: int = signal.SIGTERM) -> None:
    """Ask the kernel to send this process a signal when its parent dies, however it dies (Linux; else nothing)."""
    if _LIBC is not None:
        _LIBC.prctl(_PR_SET_PDEATHSIG, number, 0, 0, 0)


def end_tree(pid: int, grace: float = 5.0) -> None:
    """End a process and all its descendants; nothing if it has gone.

    Args:
        pid: process id.
        grace: seconds between the polite signal and the one that cannot be refused.
    """
    import psutil

    try:
        parent = psutil.Process(pid)
        _end([parent, *parent.children(recursive=True)], grace)
    except psutil.NoSuchProcess:
        pass


def end_marked(name: str, value: str, grace: float = 5.0) -> None:
    """End every process whose environment has `name` set to `value`: descendants in any session, orphans too."""
    import psutil

    for _ in range(3):  # one that is being started meanwhile is found in the next round
        found = [process for process in psutil.process_iter() if _environment(process).get(name) == value]
        if not found:
            return
        _end(found, grace)


def stop_jobs(name: str, value: str, grace: float = 40.0) -> None:
    """Ask every torchrun among the processes with `name` set to `value` to end, and wait until it has.

    Its ranks write a checkpoint first. To end all processes at once would take their readers of images away.
    """
    import psutil

    found = [process for process in psutil.process_iter() if _environment(process).get(name) == value]
    jobs = [process for process in found if "torch.distributed.run" in _command(process)]
    for process in jobs:
        _signal(process, signal.SIGTERM)
    psutil.wait_procs(jobs, timeout=grace)


def _command(process: Any) -> list[str]:
    import psutil

    try:
        return process.cmdline()
    except (psutil.Error, OSError):
        return []


def _environment(process: Any) -> dict[str, str]:
    import psutil

    try:
        return process.environ() if process.pid != os.getpid() else {}
    except (psutil.Error, OSError):
        return {}


def _end(processes: list[Any], grace: float) -> None:
    import psutil

    for process in processes:
        _signal(process, signal.SIGTERM)
    _, alive = psutil.wait_procs(processes, timeout=grace)
    for process in alive:
        _signal(process, signal.SIGKILL)
    psutil.wait_procs(alive, timeout=grace)


def _signal(process: Any, number: int) -> None:
    import psutil

    try:
        process.send_signal(number)
    except psutil.Error:
        pass


def clean_environment() -> dict[str, str]:
    """Environment for a child that makes its own process group: without a notebook's or a cluster's leftovers."""
    return {
        name: value for name, value in os.environ.items() if name not in _RENDEZVOUS and not name.startswith(_PREFIXES)
    }


def torchrun(args: Sequence[str], nproc: int = 1, env: Mapping[str, str] | None = None) -> None:
    """Run a command under torchrun on this machine, e.g. `torchrun(["-m", "vitq.train", "--config", file], nproc=8)`.

    The job ends with this process, and its output appears as it comes. It is a new process, so that CUDA may have
    been used here before.

    Args:
        args: the script or `-m module`, and its arguments.
        nproc: processes, one a GPU.
        env: variables to set besides the inherited ones.

    Raises:
        InputError: `nproc` is not a positive integer.
        RunFailed: the job failed; its exit status is in `code`, 143 after a SIGTERM or SIGUSR1 to this process, which
            the job has up to 30 seconds to answer by a checkpoint.
    """
    if isinstance(nproc, bool) or not isinstance(nproc, int) or nproc < 1:
        raise InputError(f"nproc must be a positive integer, not {nproc!r}")
    handle, report = tempfile.mkstemp(suffix=".jsonl")
    os.close(handle)
    threads = {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(max(1, environment.cores() // nproc)))}
    child = clean_environment() | threads | dict(env or {}) | {provenance.REPORT_VARIABLE: report}
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={nproc}"]
    command += ["-m", __name__, *args]
    process = subprocess.Popen(
        command,
        env=child,
        preexec_fn=lambda: end_with_parent(signal.SIGTERM),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        bufsize=1,
    )
    try:
        with _passed_on(process) as received:
            for line in process.stdout:
                if not received or line.startswith(("stopped", "error", "warning")):  # no traceback of torchrun's end
                    print(line, end="", flush=True)
            code = process.wait()
    finally:
        end_tree(process.pid)
        provenance.collect(Path(report))
        os.unlink(report)
    if received and code != 0:
        name = signal.Signals(received[0]).name
        raise RunFailed(f"torchrun {' '.join(args)} was stopped by {name}; the same command goes on",
                        128 + signal.SIGTERM)  # fmt: skip
    if code != 0:
        raise RunFailed(f"torchrun {' '.join(args)} failed with status {code}", code if code > 0 else 128 - code)


@contextmanager
def _passed_on(process: subprocess.Popen) -> Iterator[list[int]]:
    """Pass SIGTERM and SIGUSR1 on, once and as SIGTERM, which torchrun understands; gives those received.

    Outside the main thread, and where somebody else handles SIGTERM, nothing is changed.
    """
    received: list[int] = []

    def note(number: int, frame: Any) -> None:
        if not received:
            process.send_signal(signal.SIGTERM)
        received.append(number)

    mine = threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    before = {number: signal.signal(number, note) for number in (signal.SIGTERM, signal.SIGUSR1)} if mine else {}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _run_reported(args: list[str]) -> None:
    """Run a script or `-m module` as Python would; provenance, imported above, reports at exit what it imported."""
    sys.argv = args[1:] if args[0] == "-m" else args
    if args[0] == "-m":
        runpy.run_module(args[1], run_name="__main__", alter_sys=True)
    else:
        sys.path[0] = str(Path(args[0]).resolve().parent)
        runpy.run_path(args[0], run_name="__main__")


if __name__ == "__main__":
    _run_reported(sys.argv[1:])
