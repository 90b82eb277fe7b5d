"""A run that begins where another one ended: its weights, quantizers and optimizer moments, not its schedule."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vitq.errors import InputError, MissingError
from vitq.train import checkpoints, snapshot

Checkpoint = tuple[dict[str, Tensor], dict[str, Any]]


def read(folder: Path | str) -> Checkpoint:
    """The last checkpoint of a finished run.

    Args:
        folder: of the run, or the one with its checkpoints.

    Raises:
        MissingError: there is no such folder.
        InputError: it holds no checkpoint that can be read, or its run is not finished.
    """
    path, name = Path(folder), f"continue_from={str(folder)!r}"
    if not path.is_dir():
        raise MissingError(f"{name}: no such folder; give the folder of a finished run")
    found = checkpoints.latest_checkpoint(path / "checkpoints" if (path / "checkpoints").is_dir() else path)
    if found is None:
        raise InputError(f"{name}: it holds no checkpoint; give the folder of a finished run")
    if not found[1].get("final"):
        raise InputError(f"{name}: the run stopped at step {found[1]['step']} and is not finished; finish it first")
    return found


def load_weights(model: nn.Module, start: Checkpoint, folder: Path | str) -> None:
    """Give `model` the weights and quantizers of another run; no calibration is needed then.

    Raises:
        InputError: the other run trained another network, or quantized it otherwise; names the first difference.
    """
    from vitq.saving import load_state

    try:
        load_state(model, snapshot.below(start[0], "model."), folder)
    except InputError as error:
        what = str(error).partition(": ")[2] or str(error)
        raise InputError(f"continue_from={str(folder)!r}: it is a run of another network or quantization "
                         f"({what or error})") from None


def load_moments(optimizers: list[torch.optim.Optimizer], start: Checkpoint) -> None:
    """Give the optimizers the moments and step counts of another run; rates and decay stay their own.

    Raises:
        InputError: the other run had other optimizers or groups of parameters.
    """
    tensors, meta = start
    if [_shape(described["groups"]) for described in meta["optimizers"]] != [
            _shape(optimizer.state_dict()["param_groups"]) for optimizer in optimizers]:
        raise InputError("continue_from: that run had other optimizers; give the same train.optimizer, decay and "
                         "scale_learning_rate")
    for number, (optimizer, described) in enumerate(zip(optimizers, meta["optimizers"], strict=True)):
        own = described | {"groups": optimizer.state_dict()["param_groups"]}
        snapshot.unpack_optimizer(optimizer, own, tensors, f"optimizers.{number}")


def _shape(groups: list[dict[str, Any]]) -> list[tuple]:
    """What two optimizers of one kind over the same parameters have in common."""
    return [(sorted(group), len(group["params"])) for group in groups]
