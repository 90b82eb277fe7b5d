"""Generated arrays on disk: one checked .npy file each, written atomically, made again when it is damaged."""

import os
import tempfile
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np

_TAIL = 4  # bytes of CRC-32 after the pixels


def cache_folder() -> Path:
    """The folder for generated data: the environment variable VITQ_CACHE, or ~/.cache/vitq."""
    return Path(os.environ.get("VITQ_CACHE") or "~/.cache/vitq").expanduser()


def cached(key: str, shape: tuple[int, ...], make: Callable[[], np.ndarray]) -> np.ndarray:
    """A uint8 array from the cache, or made and stored there.

    The file is mapped copy-on-write, so several processes share its pages and none can change it. A folder that
    cannot be written (read-only, full) costs a warning, not the run.

    Args:
        key: File name without its ending; it has to name everything that the content depends on.
        shape: Shape that `make` gives; a file of another size counts as damaged.
        make: Computes the array, uint8.
    """
    file = cache_folder() / f"{key}.npy"
    found = _read(file, int(np.prod(shape)))
    if found is not None:
        return found.reshape(shape)
    array = make()
    if array.shape != shape or array.dtype != np.uint8:
        raise ValueError(f"make must give uint8 of shape {shape}, got {array.dtype} {array.shape}")
    try:
        _write(file, array)
    except OSError as error:
        warnings.warn(f"{file} could not be written ({error}); the data will be generated again", stacklevel=2)
    return array


def _read(file: Path, size: int) -> np.ndarray | None:
    try:
        flat = np.load(file, mmap_mode="c", allow_pickle=False)
        if flat.dtype == np.uint8 and flat.shape == (size + _TAIL,) and _crc(flat[:size]) == flat[size:].tobytes():
            return flat[:size]
    except (OSError, ValueError, EOFError):
        pass
    return None


def _write(file: Path, array: np.ndarray) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    flat = array.reshape(-1)
    handle, temporary = tempfile.mkstemp(dir=file.parent, prefix=file.stem, suffix=".tmp")
    try:
        with os.fdopen(handle, "wb") as out:
            np.save(out, np.concatenate([flat, np.frombuffer(_crc(flat), np.uint8)]))
        os.replace(temporary, file)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def _crc(flat: np.ndarray) -> bytes:
    return zlib.crc32(flat).to_bytes(_TAIL, "little")
