"""All that a run is made of, taken apart into tensors and JSON, and put back bit for bit."""

import random
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from vitq.errors import InputError
from vitq.train.callbacks import Callback


def take(model: nn.Module, optimizers: list[torch.optim.Optimizer], callbacks: Callback,
         rngs: list[dict[str, Any]]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and JSON of a run; `rngs` holds `take_rng()` of each rank."""
    tensors = {f"model.{name}": value for name, value in model.state_dict().items()}
    tensors |= {f"callbacks.{name}": value for name, value in callbacks.state_dict().items()}
    meta: dict[str, Any] = {"optimizers": []}
    for number, optimizer in enumerate(optimizers):
        packed, described = _pack_optimizer(optimizer, f"optimizers.{number}")
        tensors |= packed
        meta["optimizers"].append(described)
    meta["rng"] = []
    for rank, rng in enumerate(rngs):
        tensors |= {f"rng.{rank}.{name}": value for name, value in rng["tensors"].items()}
        meta["rng"].append(rng["meta"])
    return tensors, meta


def restore(tensors: dict[str, Tensor], meta: dict[str, Any], model: nn.Module,
            optimizers: list[torch.optim.Optimizer], callbacks: Callback, rank: int = 0) -> None:
    """Put back what `take` took; the objects must be made alike.

    Raises:
        InputError: the checkpoint belongs to another model or another set of optimizers.
    """
    foreign = InputError(f"checkpoint of step {meta.get('step')}: it belongs to another model; give another output "
                         "folder")
    try:
        model.load_state_dict(below(tensors, "model."))
    except RuntimeError as error:
        raise foreign from error
    if len(meta["optimizers"]) != len(optimizers):
        raise foreign
    for number, (optimizer, described) in enumerate(zip(optimizers, meta["optimizers"], strict=True)):
        unpack_optimizer(optimizer, described, tensors, f"optimizers.{number}")
    callbacks.load_state_dict(below(tensors, "callbacks."))
    if rank < len(meta["rng"]):
        restore_rng(below(tensors, f"rng.{rank}."), meta["rng"][rank])


def take_rng() -> dict[str, Any]:
    """State of the random generators of torch (CPU and current CUDA device), numpy and Python."""
    name, keys, position, has_gauss, gauss = np.random.get_state()
    version, words, following = random.getstate()
    tensors = {"torch": torch.get_rng_state(), "numpy": torch.from_numpy(keys.astype(np.int64)),
               "python": torch.tensor(words, dtype=torch.int64)}
    if torch.cuda.is_available():
        tensors["cuda"] = torch.cuda.get_rng_state()
    return {"tensors": tensors, "meta": {"numpy": [name, position, has_gauss, gauss], "python": [version, following]}}


def restore_rng(tensors: dict[str, Tensor], meta: dict[str, Any]) -> None:
    """Put back what `take_rng` took."""
    torch.set_rng_state(tensors["torch"])
    name, position, has_gauss, gauss = meta["numpy"]
    np.random.set_state((name, tensors["numpy"].numpy().astype(np.uint32), position, has_gauss, gauss))
    version, following = meta["python"]
    random.setstate((version, tuple(tensors["python"].tolist()), following))
    if "cuda" in tensors and torch.cuda.is_available():
        torch.cuda.set_rng_state(tensors["cuda"])


def _pack_optimizer(optimizer: torch.optim.Optimizer, prefix: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    state = optimizer.state_dict()
    tensors, plain = {}, {}
    for index, values in state["state"].items():
        for key, value in values.items():
            if isinstance(value, Tensor):
                tensors[f"{prefix}.{index}.{key}"] = value
            else:
                plain[f"{index}.{key}"] = value
    return tensors, {"groups": state["param_groups"], "plain": plain}


def unpack_optimizer(optimizer: torch.optim.Optimizer, described: dict[str, Any], tensors: dict[str, Tensor],
                     prefix: str) -> None:
    """Put back the moments of one optimizer, from what `take` took under the name `prefix`."""
    state: dict[int, dict[str, Any]] = {}
    for path, value in [*below(tensors, f"{prefix}.").items(), *described["plain"].items()]:
        index, key = path.split(".", 1)
        state.setdefault(int(index), {})[key] = value
    optimizer.load_state_dict({"state": state, "param_groups": described["groups"]})
    for parameter, values in optimizer.state.items():
        for key, value in values.items():
            if isinstance(value, Tensor) and value.shape == parameter.shape:  # fused steps need the parameter's layout
                values[key] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)


def below(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors whose names begin with `prefix`, without it."""
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
