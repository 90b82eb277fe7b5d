"""Checkpoints that are whole or not there: safetensors and JSON, written aside and renamed into place."""

import errno
import hashlib
import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from vitq.errors import InputError, MissingError

FORMAT = "vitq checkpoint 1"
TENSORS, META = "state.safetensors", "state.json"


def save_checkpoint(folder: Path | str, step: int, tensors: dict[str, Tensor], meta: dict[str, Any],
                    keep: int = 2) -> Path:
    """Write `folder/step-<step>` atomically, then delete all but the newest `keep`.

    Args:
        folder: where the checkpoints of the run lie.
        step: optimizer steps completed.
        tensors: what goes into safetensors; tensors sharing memory are written one by one.
        meta: what goes into JSON.
        keep: checkpoints to leave.

    Raises:
        MissingError: the disk is full or cannot be written; older checkpoints are left as they were.
    """
    folder = Path(folder)
    target, aside = folder / f"step-{step:010d}", folder / f".tmp-{step:010d}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for rest in folder.glob(".tmp-*"):
            shutil.rmtree(rest)
        aside.mkdir()
        blob = _serialize(tensors)
        meta = {"format": FORMAT, "step": step, "sha256": hashlib.sha256(blob).hexdigest(), **meta}
        _write(aside / TENSORS, blob)
        _write(aside / META, json.dumps(meta, indent=1).encode())
        _sync_folder(aside)
        if target.exists():
            target.rename(folder / f".tmp-old-{step:010d}")
        aside.rename(target)
        _sync_folder(folder)
    except OSError as error:
        shutil.rmtree(aside, ignore_errors=True)
        older = list_checkpoints(folder)
        what = "no space left on the device" if error.errno == errno.ENOSPC else error.strerror or str(error)
        left = f"{older[-1]} is still good" if older else "there is no older one"
        raise MissingError(f"checkpoint {target}: {what}; {left}; free space and run the same command again") from error
    for old in [*list_checkpoints(folder)[:-keep], *folder.glob(".tmp-*")]:
        shutil.rmtree(old, ignore_errors=True)
    return target


def load_checkpoint(path: Path | str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read one checkpoint folder.

    Raises:
        InputError: a file is missing, truncated, changed, or not of this format; the message names it.
    """
    path = Path(path)
    try:
        meta = json.loads((path / META).read_text())
    except (OSError, ValueError) as error:
        raise InputError(f"checkpoint {path / META}: unreadable ({error}); delete {path} to do without it") from None
    if not isinstance(meta, dict) or meta.get("format") != FORMAT:
        raise InputError(f"checkpoint {path / META}: not a {FORMAT!r}; give a folder that vitq.train wrote")
    try:
        blob = (path / TENSORS).read_bytes()
    except OSError as error:
        raise InputError(f"checkpoint {path / TENSORS}: {error.strerror}; delete {path} to do without it") from None
    if hashlib.sha256(blob).hexdigest() != meta["sha256"]:
        raise InputError(f"checkpoint {path / TENSORS}: truncated or changed since it was written; "
                         f"delete {path} to do without it")
    return safetensors.torch.load(blob), meta


def latest_checkpoint(folder: Path | str) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
    """The newest checkpoint that can be read, or None if there is none at all; a broken one costs a warning line.

    Raises:
        InputError: there are checkpoints and none can be read; names the newest.
    """
    first = None
    for path in reversed(list_checkpoints(folder)):
        try:
            return load_checkpoint(path)
        except InputError as error:
            first = first or error
            print(f"warning: {error}; trying the one before", file=sys.stderr)
    if first is not None:
        raise first
    return None


def list_checkpoints(folder: Path | str) -> list[Path]:
    """Checkpoint folders, oldest first."""
    return sorted(path for path in Path(folder).glob("step-*") if path.is_dir())


def save_tensors(path: Path | str, tensors: dict[str, Tensor], metadata: dict[str, str] | None = None) -> None:
    """Write a safetensors file atomically, with `metadata` in its header.

    Raises:
        MissingError: it cannot be written; an older file stays as it was.
    """
    path = Path(path)
    aside = path.with_name(f".tmp-{path.name}")
    try:
        _write(aside, _serialize(tensors, metadata))
        aside.replace(path)
        _sync_folder(path.parent)
    except OSError as error:
        aside.unlink(missing_ok=True)
        raise MissingError(f"{path}: {error.strerror or error}; free space and run the same command again") from error


def _serialize(tensors: dict[str, Tensor], metadata: dict[str, str] | None = None) -> bytes:
    copies = {name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
              for name, tensor in tensors.items()}
    return safetensors.torch.save(copies, metadata)


def _write(path: Path, blob: bytes) -> None:
    with open(path, "wb") as file:
        file.write(blob)
        file.flush()
        os.fsync(file.fileno())


def _sync_folder(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
