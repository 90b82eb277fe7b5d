"""Run notebooks with checked parameters, sweeps in worker processes, and torchrun, so that nothing is left behind.

A notebook runs through papermill in a child process. What papermill leaves open is closed here: a misspelt or
mistyped parameter is refused, missing data or devices are found before any work, a signal ends the kernel and all that
it started (papermill ends the kernel alone), an absent result record is a failure although papermill reports success,
and a failed run never replaces a good notebook.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from . import environment, parameters, provenance
from .errors import InputError, MissingError
from .files import write_text
from .processes import RunFailed, clean_environment, end_marked, end_with_parent, stop_jobs, torchrun
from .workers import SweepError, sweep

__all__ = ["RunFailed", "RunResult", "SweepError", "clean_environment", "run_notebook", "sweep", "torchrun"]

_MARK = "VITQ_RUN"
_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1)
_DATA_VARIABLES = {"imagenet": "VITQ_IMAGENET", "coco": "VITQ_COCO"}


@dataclass(frozen=True)
class RunResult:
    """A finished run: where the executed notebook lies, what it ran with, the record it wrote, wall time."""

    out: Path
    parameters: dict[str, Any]
    record: Path | None
    seconds: float


def run_notebook(
    notebook: str | Path,
    out: str | Path | None = None,
    params_file: str | Path | None = None,
    params: Mapping[str, Any] | None = None,
    *,
    from_text: bool = False,
    show_output: bool = False,
) -> RunResult:
    """Check the parameters, run a notebook in its own folder, and stamp the result with its provenance.

    Args:
        notebook: the notebook to run.
        out: where the executed notebook goes. None runs in place when no parameter differs from its default (a
            failed run leaves the old file as it was), and otherwise writes below the run folder, `runs/notebooks/`.
        params_file: YAML file of parameter values.
        params: more values, which win over the file's.
        from_text: the values in `params` are strings from a command line, read as the declared types.
        show_output: pass what the cells print on to stdout while they run.

    Raises:
        InputError: no such notebook, an unknown parameter (the message lists the valid ones) or a value of the wrong
            type. Nothing has run.
        MissingError: a data folder or device that the parameters ask for is not there. Nothing has run.
        RunFailed: a cell failed, a signal came, or the record that the parameter `record` names was not written. The
            executed part lies where the message says.
    """
    path = Path(notebook)
    content = provenance.read_notebook(path)
    declared = parameters.of_notebook(content, str(path))
    values = parameters.check(parameters.read_file(params_file) if params_file else {}, declared)
    values |= parameters.check(dict(params or {}), declared, from_text=from_text)
    values = {name: _absolute(name, value) for name, value in values.items()}
    resolved = {name: parameter.default for name, parameter in declared.items()} | values
    preflight(resolved, path.parent)
    overridden = {name: value for name, value in values.items() if value != declared[name].default}
    out = Path(out) if out is not None else path if not overridden else _run_folder() / _run_name(path, overridden)
    if out.resolve() == path.resolve() and overridden:
        raise InputError(f"{path} runs in place with its defaults; give an output file for {', '.join(overridden)}")
    if out.suffix != ".ipynb":
        raise InputError(f"output {out} must end in .ipynb")
    working = _run_folder() / _run_name(path, {}) if out.resolve() == path.resolve() else out
    started = time.time()
    before = _record_state(resolved.get("record"), path)
    code, log = _papermill(path, working, overridden, show_output)
    if code != 0:
        raise _failure(path, working, code, log)
    record = _written_record(resolved.get("record"), path, before, working)
    finished = tidy(provenance.read_notebook(working), keep_injected=bool(overridden))
    write_text(working, json.dumps(finished, indent=1, ensure_ascii=False) + "\n")
    provenance.stamp(working)
    if working != out:
        write_text(out, working.read_text(encoding="utf-8"))
        working.unlink()
    return RunResult(out, resolved, record, time.time() - started)


def _run_folder() -> Path:
    return environment.home() / "runs" / "notebooks"


def _run_name(path: Path, overridden: Mapping[str, Any]) -> str:
    suffix = f"-{provenance.digest(dict(overridden))[:8]}" if overridden else ""
    return f"{path.resolve().parent.name}-{path.stem}{suffix}.ipynb"


def _absolute(name: str, value: Any) -> Any:
    """A path that exists seen from here stays valid when the notebook runs in its own folder."""
    is_path = isinstance(value, str) and (name.endswith(("_path", "_file")) or name in ("data", "path", "checkpoint"))
    return str(Path(value).resolve()) if is_path and value and Path(value).exists() and os.sep in value else value


def preflight(values: Mapping[str, Any], folder: Path) -> None:
    """Raise MissingError, in one line, if a data folder or a device that the values name is not there.

    Args:
        values: parameter values; `data_path`, `data` and `device` are looked at.
        folder: where relative paths start.
    """
    data, path = values.get("data"), values.get("data_path")
    if path:
        _needs_folder("data_path", folder / Path(str(path)).expanduser())
    elif isinstance(data, str) and (os.sep in data or data.startswith("~")):
        _needs_folder("data", folder / Path(data).expanduser())
    elif data in _DATA_VARIABLES and "data_path" in values:
        variable = _DATA_VARIABLES[data]
        if not os.environ.get(variable):
            raise MissingError(f"parameter data is {data}: give its folder in data_path or in {variable}")
        _needs_folder(variable, Path(os.environ[variable]).expanduser())
    device = values.get("device")
    if isinstance(device, str) and device.startswith("cuda"):
        import torch

        if not torch.cuda.is_available():
            raise MissingError(f"parameter device is {device}, but torch finds no CUDA device; set device to cpu")
        number = int(device.partition(":")[2] or 0)
        if number >= torch.cuda.device_count():
            raise MissingError(f"parameter device is {device}, but there are {torch.cuda.device_count()} CUDA devices")


def _needs_folder(name: str, folder: Path) -> None:
    if not folder.is_dir():
        raise MissingError(f"parameter {name}: there is no folder {folder}")
    if next(folder.iterdir(), None) is None:
        raise MissingError(f"parameter {name}: the folder {folder} is empty")


def _papermill(path: Path, working: Path, values: Mapping[str, Any], show_output: bool) -> tuple[int, str]:
    """Run papermill in a session of its own and return its exit status and what it logged."""
    import yaml

    working.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        given, printed, log = (Path(scratch) / name for name in ("parameters.yml", "printed", "log"))
        given.write_text(yaml.safe_dump(dict(values)), encoding="utf-8")
        printed.touch()
        command = [sys.executable, "-m", "papermill", str(path.resolve()), str(working.resolve())]
        command += ["--parameters_file", str(given)] if values else []
        command += ["--cwd", str(path.resolve().parent), "--kernel", "python3", "--no-progress-bar"]
        command += ["--autosave-cell-every", "30", "--stdout-file", str(printed)]
        with open(log, "w", encoding="utf-8") as file, open(printed, encoding="utf-8", errors="replace") as tail:
            shown = (lambda: print(tail.read(), end="", flush=True)) if show_output else (lambda: None)
            code = _supervised(command, file, shown)
        return code, log.read_text(encoding="utf-8", errors="replace")


def _supervised(command: Sequence[str], log: Any, tick: Callable[[], None]) -> int:
    """Run a command, calling `tick` now and then; a signal to this process, or its end, ends all that it started."""
    mark = uuid.uuid4().hex
    received: list[int] = []
    before = {number: _handle(number, received) for number in _SIGNALS}
    process = subprocess.Popen(
        command,
        stdout=log,
        stderr=log,
        stdin=subprocess.DEVNULL,
        start_new_session=True,
        env=os.environ | {"PYTHONUNBUFFERED": "1", "PYTHONWARNINGS": _quiet(), _MARK: mark},
        preexec_fn=end_with_parent,
    )
    try:
        while process.poll() is None and not received:
            time.sleep(0.1)
            tick()
    finally:
        if received:
            stop_jobs(_MARK, mark)
        end_marked(_MARK, mark)
        process.wait()
        for number, handler in before.items():
            if handler is not None:
                signal.signal(number, handler)
    tick()
    return 128 + received[0] if received else process.returncode


def _quiet() -> str:
    """Warning filters for notebooks: without tqdm's remark that widgets are missing, which the book does not want."""
    return ",".join(filter(None, [os.environ.get("PYTHONWARNINGS"), "ignore:IProgress not found"]))


def _handle(number: int, received: list[int]) -> Any:
    try:
        return signal.signal(number, lambda number, frame: received.append(number))
    except ValueError:  # not in the main thread, where the caller has to see to signals
        return None


def tidy(notebook: dict, keep_injected: bool = False) -> dict:
    """A notebook (parsed JSON) without papermill's metadata, with the pieces of one stream of output joined.

    Args:
        notebook: changed in place and returned.
        keep_injected: keep the cell of parameters that papermill has injected.
    """
    notebook["metadata"].pop("papermill", None)
    cells = []
    for cell in notebook["cells"]:
        tags = cell["metadata"].get("tags", [])
        if "papermill-error-cell-tag" in tags or ("injected-parameters" in tags and not keep_injected):
            continue
        for name in ("papermill", "execution"):
            cell["metadata"].pop(name, None)
        if not tags:
            cell["metadata"].pop("tags", None)
        if "outputs" in cell:
            cell["outputs"] = _joined(cell["outputs"])
        cells.append(cell)
    notebook["cells"] = cells
    return notebook


def _joined(outputs: list[dict]) -> list[dict]:
    """Outputs with consecutive pieces of stdout, or of stderr, made one."""
    joined: list[dict] = []
    for output in outputs:
        if output["output_type"] == "stream":
            text = "".join(output["text"])
            if joined and joined[-1].get("name") == output["name"]:
                text = "".join(joined.pop()["text"]) + text
            output = output | {"text": text.splitlines(keepends=True)}
        joined.append(output)
    return joined


def _failure(path: Path, working: Path, code: int, log: str) -> RunFailed:
    where = f"; the executed part is in {working}" if working.is_file() else ""
    if code - 128 in _SIGNALS:
        name = signal.Signals(code - 128).name
        return RunFailed(f"{path} was interrupted by {name}{where}", 143 if name == "SIGUSR1" else code)
    name, value, place = _cell_error(working)
    if name:
        known = {"InputError": 2, "MissingError": 3}
        return RunFailed(f"{path}, cell {place}: {name}: {value}{where}", known.get(name, code))
    last = [line for line in log.splitlines() if line.strip()]
    return RunFailed(f"{path} failed with status {code}: {last[-1].strip() if last else 'no message'}{where}", code)


def _cell_error(working: Path) -> tuple[str, str, int]:
    try:
        cells = provenance.read_notebook(working)["cells"]
    except InputError:
        return "", "", 0
    cells = [cell for cell in cells if "papermill-error-cell-tag" not in cell["metadata"].get("tags", [])]
    for place, cell in enumerate(cells, start=1):
        for output in cell.get("outputs", []):
            if output["output_type"] == "error" and "raises-exception" not in cell["metadata"].get("tags", []):
                return output["ename"], " ".join(str(output["evalue"]).split()), place
    return "", "", 0


def _record_state(record: Any, path: Path) -> dict[Path, int | None]:
    """Where the parameter `record` may point, from the notebook's folder or the checkout, and when it was written."""
    places = [path.resolve().parent / record, environment.home() / record] if record else []
    return {place: place.stat().st_mtime_ns if place.is_file() else None for place in places}


def _written_record(record: Any, path: Path, before: dict[Path, int | None], working: Path) -> Path | None:
    now = _record_state(record, path)
    fresh = [place for place, written in now.items() if written is not None and written != before[place]]
    if not record or fresh:
        return fresh[0] if fresh else None
    state = "was not written again" if any(now.values()) else "is absent"
    raise RunFailed(f"{path} ran through, but its result record {record} {state}; the executed part is in {working}", 1)
