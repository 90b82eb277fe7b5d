"""One run per folder: a lock file with the process that holds it; the lock of a dead process counts for nothing."""

import fcntl
import json
import os
import socket
import time
from pathlib import Path

from vitq.errors import InputError

FOREIGN_SECONDS = 600.0
_held: dict[Path, int] = {}


class RunLock:
    """Context manager that holds `folder/.lock`; within one process it may be entered again.

    A lock left by a process that is dead (or whose number another process has by now) is taken over. One from another
    machine counts as left when it was not refreshed for ten minutes.

    Args:
        folder: output folder of the run; made if it is not there.

    Raises:
        InputError: a living process holds it; raised on entering.
    """

    def __init__(self, folder: Path | str):
        self.path = Path(folder).resolve() / ".lock"

    def __enter__(self) -> "RunLock":
        if not _held.get(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with open(self.path, "a+") as file:
                fcntl.flock(file, fcntl.LOCK_EX)
                file.seek(0)
                owner = _parse(file.read())
                if owner and _alive(owner, self.path):
                    raise InputError(f"out={str(self.path.parent)!r}: process {owner['pid']} on {owner['host']} is "
                                     "running in this folder; wait for it or give another folder")
                file.truncate(0)
                file.write(json.dumps({"pid": os.getpid(), "host": socket.gethostname(), "born": _born(os.getpid())}))
        _held[self.path] = _held.get(self.path, 0) + 1
        return self

    def __exit__(self, *exc) -> None:
        _held[self.path] -= 1
        if not _held[self.path]:
            del _held[self.path]
            with open(self.path, "a+") as file:
                fcntl.flock(file, fcntl.LOCK_EX)
                file.truncate(0)

    def refresh(self) -> None:
        """Show other machines that the run is alive."""
        os.utime(self.path)


def _parse(text: str) -> dict | None:
    try:
        owner = json.loads(text)
    except ValueError:
        return None
    return owner if isinstance(owner, dict) and {"pid", "host", "born"} <= owner.keys() else None


def _alive(owner: dict, path: Path) -> bool:
    if owner["host"] != socket.gethostname():
        return time.time() - path.stat().st_mtime < FOREIGN_SECONDS
    born = _born(owner["pid"])
    return owner["pid"] != os.getpid() and born is not None and abs(born - owner["born"]) < 2  # seconds; clocks drift


def _born(pid: int) -> float | None:
    import psutil
    try:
        return psutil.Process(pid).create_time()
    except psutil.Error:
        return None
