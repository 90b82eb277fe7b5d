"""What made a notebook's outputs, stored in the notebook, so that anyone can see whether they still hold.

The last cell of a notebook calls `footer()`: it shows the environment and leaves in its output the `vitq` modules that
the kernel imported. `stamp` then moves these into the notebook's metadata with hashes of the code cells, the
parameters, the data versions and the modules. A module's hash is over its syntax tree without docstrings and comments,
so that better words never make an output stale while another formula always does. `BOOKKEEPING` modules are left
out: they start and record runs, and compute nothing that a page shows.
"""

from __future__ import annotations

import ast
import atexit
import datetime
import hashlib
import json
import os
import sys
import time
from functools import cache
from pathlib import Path
from typing import Any

from . import environment, parameters
from .errors import InputError
from .files import write_text

PACKAGE = Path(__file__).resolve().parent
_STARTERS = "cli doctor environment errors files launch parameters processes provenance workers".split()
BOOKKEEPING = frozenset(["vitq", *(f"vitq.{name}" for name in _STARTERS)])
MODIFIED = "modified during the run"
REPORT_VARIABLE = "VITQ_MODULES_REPORT"
WEIGHTS_PREFIX = "weights/"  # of the notes on shipped weights among those on data, as child processes hand them on
_reported: set[str] = set()
_data: dict[str, str] = {}
_workers_peak_mb = 0.0
_earlier_seconds = 0.0


def digest(value: Any) -> str:
    """First 16 hexadecimal digits of the SHA-256 of a value's canonical JSON."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def code_hash(source: str) -> str:
    """Hash of Python code that comments, docstrings, layout and the Python version leave unchanged."""
    return hashlib.sha256(_canonical(ast.parse(source)).encode()).hexdigest()[:16]


def _canonical(node: Any) -> str:
    if isinstance(node, ast.Constant):
        return repr(node.value)
    if isinstance(node, ast.AST):  # empty fields are skipped: Python versions differ in which of them exist
        fields = ((name, value) for name, value in ast.iter_fields(node) if value is not None and value != [])
        return f"{type(node).__name__}({','.join(f'{name}={_canonical(value)}' for name, value in fields)})"
    if isinstance(node, list):
        return f"[{','.join(_canonical(item) for item in node if not _is_docstring(item))}]"
    return repr(node)


def _is_docstring(node: Any) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)


def _module_file(module: str, folder: Path | None = None) -> Path | None:
    if module.startswith("./"):
        files = ((folder or Path.cwd()) / module,)
    else:
        stem = PACKAGE.joinpath(*module.split(".")[1:])
        files = (stem.with_suffix(".py"), stem / "__init__.py")
    return next((file for file in files if file.is_file()), None)


def module_hash(module: str, folder: Path | None = None) -> str:
    """Code hash of a module, or "absent" if there is no such module now.

    Args:
        module: dotted name of a `vitq` module, or `./helper.py` for one that lies beside the notebook.
        folder: of the notebook; the working directory if None.
    """
    file = _module_file(module, folder)
    return "absent" if file is None else _hash_of(file)


def _hash_of(file: Path) -> str:
    status = file.stat()
    return _file_hash(file, status.st_mtime_ns, status.st_size)


@cache
def _file_hash(file: Path, modified_ns: int, size: int) -> str:
    content = file.read_bytes()
    return code_hash(content.decode()) if file.suffix == ".py" else hashlib.sha256(content).hexdigest()[:16]


def imported_modules() -> list[str]:
    """The `vitq` modules, and those beside the notebook, that were imported here or in reported child processes."""
    here = os.getcwd()
    names = {name for name in sys.modules if name.startswith("vitq.")}
    files = [getattr(module, "__file__", None) or "" for module in list(sys.modules.values())]
    names |= {f"./{os.path.basename(file)}" for file in files if file.endswith(".py") and os.path.dirname(file) == here}
    return sorted(name for name in (names | _reported) - BOOKKEEPING if _module_file(name))


def source_hash() -> str:
    """One hash over the code of all `vitq` modules that are imported now: a result record's `source_hash`."""
    return digest({module: module_hash(module) for module in imported_modules()})


def note_data(name: str, version: str) -> None:
    """Note that this process used a data set or weights in a given version; `footer` hands the notes on."""
    _data[name] = str(version)


def note_weights(file: Path) -> None:
    """Note that this process loaded a file of weights; a notebook is stale when a shipped one has changed since."""
    file = Path(file).resolve()
    if file.parent == PACKAGE / "weights":
        note_data(WEIGHTS_PREFIX + file.name, _hash_of(file))


def report(modules: list[str], data: dict[str, str] | None = None, workers_peak_mb: float = 0.0,
           earlier_seconds: float = 0.0) -> None:
    """Note what child processes imported and read, their peak memories in MB, wall time of work found finished."""
    global _workers_peak_mb, _earlier_seconds
    _earlier_seconds += earlier_seconds
    _reported.update(modules)
    _data.update(data or {})
    _workers_peak_mb = max(_workers_peak_mb, workers_peak_mb)


def seconds() -> float:
    """Wall time of this process and, before it, of the finished work that it read back."""
    return environment.seconds_since_start() + _earlier_seconds


def collect(path: Path) -> None:
    """Take in the reports that the child processes of a torchrun job left in a file, one JSON object a line."""
    reports = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    peak = sum(child["peak_mb"] for child in reports)
    for child in reports:
        report(child["modules"], child["data"], peak)


def own_report() -> dict[str, Any]:
    """What a child process hands to its parent's `report`."""
    return {"modules": imported_modules(), "data": dict(_data), "peak_mb": environment.peak_memory_mb()}


def _write_own_report() -> None:
    with open(os.environ[REPORT_VARIABLE], "a", encoding="utf-8") as file:
        file.write(json.dumps(own_report()) + "\n")


if REPORT_VARIABLE in os.environ:  # set by launch.torchrun, whose children cannot answer otherwise
    atexit.register(_write_own_report)


def footer(seconds: float | None = None) -> None:
    """Show versions, hardware, wall time and peak memory; call it in the last cell of a notebook.

    The output carries, in its metadata, what `stamp` needs.

    Args:
        seconds: wall time to show instead of the time since the kernel started and that of work read back.
    """
    started = time.time() - environment.seconds_since_start()
    earlier = _earlier_seconds if seconds is None else 0.0
    seconds = environment.seconds_since_start() + earlier if seconds is None else seconds
    versions, hardware = environment.versions(), environment.hardware()
    memory = environment.peak_memory_mb() + _workers_peak_mb
    gpu_memory = environment.peak_gpu_memory_mb()
    modules = {}
    for module in imported_modules():
        file = _module_file(module)
        modules[module] = MODIFIED if file is not None and file.stat().st_mtime > started else module_hash(module)
    noted, weights = sorted(_data), {name for name in _data if name.startswith(WEIGHTS_PREFIX)}
    facts = {
        "modules": modules,
        "weights": {name.removeprefix(WEIGHTS_PREFIX): _data[name] for name in noted if name in weights},
        "data": {name: _data[name] for name in noted if name not in weights},
        "seconds": round(seconds, 1),
        "peak_memory_mb": round(memory),
        "hardware": hardware,
        "versions": versions,
    }
    if gpu_memory is not None:
        facts["peak_gpu_memory_mb"] = round(gpu_memory)
    processors = [f"{hardware['cpu']}, {hardware['cores']} cores", *hardware.get("gpus", ["no GPU"])]
    if "threads" in hardware:
        processors.insert(1, f"{hardware['threads']} torch thread{'s' if hardware['threads'] != 1 else ''}")
    lines = [
        ", ".join(f"{name} {version}" for name, version in versions.items()),
        "; ".join(processors),
        f"wall time {seconds:.0f} s"
        + (f" (of it {earlier:.0f} s in runs that an earlier start had finished)" if earlier >= 1 else "")
        + f", peak memory {memory:.0f} MB"
        + (f", GPU memory {gpu_memory:.0f} MB" if gpu_memory is not None else ""),
    ]
    _show("\n".join(lines), facts)


def _show(text: str, facts: dict[str, Any]) -> None:
    if "IPython" in sys.modules and sys.modules["IPython"].get_ipython() is not None:
        from IPython.display import display

        display({"text/plain": text}, raw=True, metadata={"vitq": facts})
    else:
        print(text)


def read_notebook(path: Path) -> dict:
    """A notebook file as parsed JSON; InputError, in one line, if it is absent or no notebook."""
    try:
        notebook = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"notebook {path}: {error.strerror}") from None
    except ValueError as error:
        raise InputError(f"notebook {path} is not valid JSON: {error}") from None
    if not isinstance(notebook, dict) or not isinstance(notebook.get("cells"), list):
        raise InputError(f"{path} is not a notebook: it has no list of cells")
    return notebook


def _cells_hash(notebook: dict) -> str:
    injected = parameters.tagged(notebook, "injected-parameters")
    cells = [cell for cell in notebook["cells"] if cell.get("cell_type") == "code" and cell not in injected]
    return digest([parameters.source(cell) for cell in cells])


def stamp(path: str | Path) -> dict[str, Any]:
    """Move the footer's facts of a notebook that has just run into its metadata, under `vitq`, with the hashes.

    Returns:
        the stored entry: hash, cells, modules, weights, parameters, data, scale, seconds, peak_memory_mb, hardware,
        date, versions.

    Raises:
        InputError: the file is no notebook, or no cell shows the output of `footer()`.
    """
    path = Path(path)
    notebook = read_notebook(path)
    outputs = [output for cell in notebook["cells"] for output in cell.get("outputs", [])]
    found = [output for output in outputs if "vitq" in output.get("metadata", {})]
    if not found:
        raise InputError(f"{path} has no output of vitq.provenance.footer(): end it with that call and run it again")
    for output in found:
        facts = output["metadata"].pop("vitq")
    values = _plain(parameters.resolved(notebook))
    entry = {
        **facts,
        "cells": _cells_hash(notebook),
        "parameters": values,
        "scale": values.get("scale", "small"),
        "date": datetime.date.today().isoformat(),
    }
    entry["hash"] = _total_hash(entry)
    notebook.setdefault("metadata", {})["vitq"] = entry
    write_text(path, json.dumps(notebook, indent=1, ensure_ascii=False) + "\n")
    return entry


def _plain(values: dict[str, Any]) -> dict[str, Any]:
    return json.loads(json.dumps(values, default=str))


def _total_hash(entry: dict[str, Any]) -> str:
    return digest({key: entry.get(key) for key in ("cells", "modules", "weights", "parameters", "data")})


def is_stale(path: str | Path, data: dict[str, str] | None = None) -> tuple[bool, str]:
    """Whether a notebook's outputs come from other code, parameters or data than those that are there now.

    Args:
        path: the notebook file.
        data: versions of data sets now, where the caller knows them; the code that makes the data counts anyway.

    Returns:
        stale or not, and the reason: what has changed, or "" where nothing has.
    """
    notebook, folder = read_notebook(Path(path)), Path(path).parent
    entry = notebook.get("metadata", {}).get("vitq")
    if not isinstance(entry, dict) or "hash" not in entry:
        return True, "it has not been run yet: it stores no provenance"
    if entry["hash"] != _total_hash(entry):
        return True, "its stored provenance was edited"
    changed = []
    if entry["cells"] != _cells_hash(notebook):
        changed.append("its code cells")
    now, then = _plain(parameters.resolved(notebook)), entry["parameters"]
    changed += [f"parameter {name}" for name in sorted({*now, *then}) if now.get(name) != then.get(name)]
    changed += [f"module {name}" for name, value in entry["modules"].items() if value != module_hash(name, folder)]
    for name, value in entry.get("weights", {}).items():
        file = PACKAGE / "weights" / name
        if not file.is_file() or _hash_of(file) != value:
            changed.append(f"weights {name}")
    changed += [f"data {name}" for name, value in (data or {}).items() if entry["data"].get(name, value) != value]
    return bool(changed), "changed: " + ", ".join(changed) if changed else ""
