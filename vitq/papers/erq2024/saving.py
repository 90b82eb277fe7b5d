"""One file a model quantized by ERQ or a baseline: safetensors, architecture and options in its header."""

import json
from pathlib import Path

from torch import nn

from vitq.errors import InputError
from vitq.saving import ERQ_FORMAT


def save_erq(model: nn.Module, file: str | Path, *, name: str | None = None, **kwargs) -> Path:
    """Write a model atomically, for ``vitq.load``: a failure leaves an older file as it was.

    Args:
        model: ``Quantized.model`` of one of the methods.
        file: Path of the ``.safetensors`` file.
        name: Name for :func:`vitq.zoo.load`; by default the one the model was loaded with.
        kwargs: Further arguments of ``vitq.zoo.load``, e.g. ``num_classes``.

    Raises:
        InputError: The model was not made by one of the methods, or its name is not known.
        MissingError: The file cannot be written.
    """
    from vitq.train.checkpoints import save_tensors

    name = name or getattr(model, "zoo_name", None)
    if not hasattr(model, "erq_options") or name is None:
        raise InputError("model: give one that a method of vitq.papers.erq2024 made from a model of vitq.zoo, or pass "
                         "name=...")
    header = {"format": ERQ_FORMAT, "name": name, "arguments": json.dumps(kwargs),
              "options": json.dumps(model.erq_options.to_dict())}
    save_tensors(file, model.state_dict(), header)
    return Path(file)
