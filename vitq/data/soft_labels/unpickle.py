"""Reading a pickled file of arrays without running anything that it asks for."""

import io
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import torch

from vitq.errors import InputError

_LEGACY = 0x1950A86A20F9469CFC6C.to_bytes(10, "little")  # a file of torch.save before version 1.6 begins with it
_NUMPY = {
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
    **{(f"numpy.{core}.multiarray", "_reconstruct"): np._core.multiarray._reconstruct for core in ("core", "_core")},
    **{(f"numpy.{core}.multiarray", "scalar"): np._core.multiarray.scalar for core in ("core", "_core")},
}
_DTYPES = [type(np.dtype(code)) for code in "?bBhHiIlLefd"]


def load_arrays(path: Path) -> Any:
    """Lists, tuples, dicts, numbers, torch tensors and NumPy arrays from a file of `torch.save` or `pickle.dump`.

    Args:
        path: The file.

    Raises:
        InputError: It is damaged, or asks for anything else; the file is named and so is what it asks for.
    """
    try:
        with open(path, "rb") as file:
            start = file.read(16)
            file.seek(0)
            by_torch = start.startswith(b"PK") or _LEGACY in start
            return _torch_load(file) if by_torch else _Unpickler(file).load()
    except OSError:
        raise
    except Exception as error:  # damaged pickles raise a dozen types
        reason = _asked(error) or f"is damaged or no file of arrays ({type(error).__name__})"
        raise InputError(f"{path} {reason}") from None


def _torch_load(file: Any) -> Any:
    allowed = [np.ndarray, np.dtype, np._core.multiarray._reconstruct, np._core.multiarray.scalar, *_DTYPES]
    allowed += [(found, f"{module}.{name}") for (module, name), found in _NUMPY.items() if ".core." in module]
    with torch.serialization.safe_globals(allowed):
        return torch.load(file, map_location="cpu", weights_only=True)


class _Unpickler(pickle.Unpickler):
    """Knows what rebuilds a tensor or an array and no other name."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in _NUMPY:
            return _NUMPY[module, name]
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return torch._utils._rebuild_tensor_v2
        if (module, name) == ("torch.storage", "_load_from_bytes"):
            return lambda data: _torch_load(io.BytesIO(data))  # the original would unpickle anything
        if (module, name) == ("collections", "OrderedDict"):
            return dict
        if (module, name) == ("_codecs", "encode"):
            return _encode
        raise pickle.UnpicklingError(f"asks for {module}.{name}")

    def persistent_load(self, identity: Any) -> Any:
        raise pickle.UnpicklingError("asks for a persistent object")


def _encode(text: str, encoding: str) -> bytes:
    """The one use that pickled arrays make of `_codecs.encode`: bytes written as text in protocol 2."""
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"asks for the encoding {encoding!r}")
    return text.encode("latin1")


def _asked(error: Exception) -> str | None:
    text = " ".join(str(error).split())
    for mark in ("asks for ", "GLOBAL "):
        if isinstance(error, pickle.UnpicklingError) and mark in text:
            name = text.split(mark, 1)[1].split(" was ")[0].split(" ")[0].rstrip(".,;")
            return f"asks for {name}: it holds more than arrays and is not opened"
    return None
