"""A table of tensors applied to a released state dict, strictly: every key on both sides is accounted for."""

import argparse
import difflib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from vitq import saving, zoo
from vitq.errors import InputError, MissingError

ASSUMED = "the names are assumed, see vitq import --list-names and --names FILE"
STATE = "._extra_state"
# What training scripts put beside the weights: options and a best accuracy. Data, none of it runs code.
PLAIN = [argparse.Namespace, np.dtype, np.dtypes.Float64DType, np.dtypes.Float32DType,
         (np._core.multiarray.scalar, "numpy.core.multiarray.scalar"), np._core.multiarray.scalar]


@dataclass(frozen=True)
class Entry:
    """One tensor of a released state dict.

    Args:
        key: Its name there.
        shape: Its shape there.
        target: Its name here, or "" if it is left out.
        reason: Why it is left out.
        take: Makes our tensor of it, or checks one that is left out, raising InputError (without the name).
        parameter: Counts among the parameters there, trained or not; False for a buffer.
    """

    key: str
    shape: tuple[int, ...]
    target: str = ""
    reason: str = ""
    take: Callable[[Tensor], Tensor] | None = None
    parameter: bool = True


@dataclass(frozen=True)
class Imported:
    """Tensors mapped, those left out, their keys by reason, and parameters that the released network had."""

    mapped: int
    left_out: dict[str, Tensor]
    reasons: dict[str, list[str]]
    parameters: int

    def lines(self) -> list[str]:
        """What was done, one line each."""
        many = [f"{len(keys)} left out: {reason}" for reason, keys in self.reasons.items()]
        return [f"{self.mapped} tensors mapped, {self.parameters:,} parameters in the file", *many]


def read(file: str | Path) -> dict[str, Tensor]:
    """The tensors of a released file, without running code of its own.

    Raises:
        MissingError: There is no such file.
        InputError: It is damaged, or holds other things than tensors and plain options.
    """
    path = Path(file).expanduser()
    if not path.is_file():
        raise MissingError(f"there is no file {file}")
    with torch.serialization.safe_globals(PLAIN):
        return zoo.read_weights(path)


def renamed(key: str, names: dict[str, str]) -> str:
    """Our key under their names: the longest entry that it ends in, and before it the longest that it begins with."""
    end = max((end for end in names if f".{key}".endswith(end if end[0] == "." else f".{end}")), key=len, default="")
    head = key[: len(key) - len(end)]
    start = max((start for start in names if f"{head}.".startswith(f"{start}.")), key=len, default="")
    return (names[start] + head[len(start):] if start else head) + (names[end] if end else "")


def constant(value: float, what: str) -> Callable[[Tensor], Tensor]:
    """A check that a tensor holds nothing but one value."""
    def take(given: Tensor) -> Tensor:
        if not bool((given == value).all()):
            raise InputError(f"holds {given.flatten()[0].item():g}, not {value:g}: {what}")
        return given
    return take


def equal(own: Tensor, what: str) -> Callable[[Tensor], Tensor]:
    """A check that a tensor holds the values of `own`, in whatever shape."""
    def take(given: Tensor) -> Tensor:
        if not torch.equal(given.flatten().to(own.dtype), own.flatten()):
            raise InputError(f"is not that of this network: {what}")
        return given
    return take


def fill(model: nn.Module, entries: list[Entry], state: dict[str, Tensor], file: str) -> Imported:
    """Load a released state dict into the network that the entries describe.

    Args:
        model: Changed in place.
        entries: All tensors that the file must hold.
        state: What it holds.
        file: Its name, for errors.

    Raises:
        InputError: A key is absent, unknown, of another shape, not finite or of a value that cannot be; it is named.
    """
    known = {entry.key for entry in entries}
    unknown = [key for key in state if key not in known]
    for entry in entries:
        if entry.key not in state:
            near = difflib.get_close_matches(entry.key, unknown, n=1, cutoff=0.7)
            raise InputError(f"{file}: {entry.key} is absent{f' (there is {near[0]})' if near else ''}; {ASSUMED}")
    if unknown:
        raise InputError(f"{file}: {unknown[0]} is unknown, {len(unknown)} in all; {ASSUMED}")
    own, left_out, reasons = model.state_dict(), {}, {}
    for entry in entries:
        value = _taken(entry, state[entry.key], file)
        if entry.target:
            own[entry.target] = value.to(own[entry.target].dtype)
        else:
            left_out[entry.key] = value
            reasons.setdefault(entry.reason, []).append(entry.key)
    saving.load_state(model, own, file)
    count = sum(state[entry.key].numel() for entry in entries if entry.parameter)
    return Imported(len(entries) - len(left_out), left_out, reasons, count)


def _taken(entry: Entry, value: Tensor, file: str) -> Tensor:
    if tuple(value.shape) != entry.shape:
        raise InputError(f"{file}: {entry.key} is {tuple(value.shape)}, not {entry.shape}")
    if value.is_floating_point() and not torch.isfinite(value).all():
        raise InputError(f"{file}: {entry.key} holds NaN or infinity")
    try:
        return value if entry.take is None else entry.take(value)
    except InputError as error:
        raise InputError(f"{file}: {entry.key} {error}") from None
