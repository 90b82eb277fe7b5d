"""One file a model quantized by ERQ or a baseline: safetensors, architecture and options in its header."""

import json
from pathlib import Path

from torch import nn

from vitq.errors import InputError, MissingError
from vitq.papers.erq2024.options import ErqOptions
from vitq.papers.erq2024.prepare import rebuild

FORMAT = "vitq-erq-1"


def save_erq(model: nn.Module, file: str | Path, *, name: str | None = None, **kwargs) -> Path:
    """Write a model atomically: a failure leaves an older file as it was.

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
    header = {"format": FORMAT, "name": name, "arguments": json.dumps(kwargs),
              "options": json.dumps(model.erq_options.to_dict())}
    save_tensors(file, model.state_dict(), header)
    return Path(file)


def load_erq(file: str | Path) -> nn.Module:
    """Rebuild a model written by :func:`save_erq`, in evaluation mode, bit for bit.

    Raises:
        MissingError: No such file.
        InputError: The file is truncated, of another program, or does not fit the architecture that it names.
    """
    from safetensors import SafetensorError, safe_open

    from vitq import zoo
    from vitq.saving import load_state

    if not Path(file).is_file():
        raise MissingError(f"file={str(file)!r} does not exist")
    try:
        with safe_open(str(file), "pt") as stream:
            header = stream.metadata() or {}
            state = {key: stream.get_tensor(key) for key in stream.keys()}
    except (SafetensorError, OSError) as error:
        raise InputError(f"file={str(file)!r} is no complete safetensors file ({error}); save it again") from None
    if header.get("format") != FORMAT:
        raise InputError(f"file={str(file)!r} was not written by save_erq (format {header.get('format')!r})")
    model = zoo.load(header["name"], pretrained=False, **json.loads(header["arguments"]))
    model = rebuild(model, ErqOptions.from_dict(json.loads(header["options"])))
    load_state(model, state, file)
    return model.eval()
