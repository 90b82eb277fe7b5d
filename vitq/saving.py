"""One file a quantized model: safetensors, with the architecture and what was quantized in its header."""

import json
from pathlib import Path

import torch
from torch import nn

from vitq.errors import InputError, MissingError

FORMAT, ERQ_FORMAT = "vitq-1", "vitq-erq-1"  # of quantization-aware training, of post-training quantization


def save(model: nn.Module, file: str | Path, *, name: str | None = None, **kwargs) -> Path:
    """Write a quantized model atomically: a failure (a full disk, say) leaves an older file as it was.

    Args:
        model: Made by :func:`vitq.quantize`.
        file: Path of the ``.safetensors`` file.
        name: Name for :func:`vitq.zoo.load`; by default the one the model was loaded with (``model.zoo_name``).
        kwargs: Further arguments of ``vitq.zoo.load``, e.g. ``num_classes``.

    Raises:
        InputError: The model is not one of ``vitq.quantize``, or its name is not known.
        MissingError: The file cannot be written.
    """
    from vitq.train.checkpoints import save_tensors

    name = name or getattr(model, "zoo_name", None)
    if not hasattr(model, "quant_spec") or name is None:
        raise InputError("model: give one that vitq.quantize made from a model of vitq.zoo, or pass name=...")
    spec = json.dumps(model.quant_spec.to_dict())
    header = {"format": FORMAT, "name": name, "arguments": json.dumps(kwargs), "spec": spec}
    save_tensors(file, model.state_dict(), header)
    return Path(file)


def load(file: str | Path) -> nn.Module:
    """Rebuild a model written by :func:`save` or by ``vitq.papers.erq2024.save_erq``, in evaluation mode, bit for bit.

    Raises:
        MissingError: No such file.
        InputError: The file is truncated, of another program, or does not fit the architecture that it names.
    """
    from vitq.convert import QuantSpec, quantize

    header, state = read(file)
    if header["format"] == ERQ_FORMAT:
        from vitq.papers.erq2024.options import ErqOptions
        from vitq.papers.erq2024.prepare import rebuild

        model = rebuild(_network(header), ErqOptions.from_dict(json.loads(header["options"])))
    else:
        model = quantize(_network(header), QuantSpec.from_dict(json.loads(header["spec"])))
    load_state(model, state, file)
    return model.eval()


def read(file: str | Path, formats: tuple[str, ...] = (FORMAT, ERQ_FORMAT),
         writer: str = "vitq.save") -> tuple[dict[str, str], dict[str, torch.Tensor]]:
    """Header and tensors of a saved model; errors as in :func:`load`.

    Args:
        file: Path of the file.
        formats: Those that are read.
        writer: The function that writes them, for the message.
    """
    from safetensors import SafetensorError, safe_open

    if not Path(file).is_file():
        raise MissingError(f"file={str(file)!r} does not exist")
    try:
        with safe_open(str(file), "pt") as stream:
            header = stream.metadata() or {}
            state = {key: stream.get_tensor(key) for key in stream.keys()}
    except (SafetensorError, OSError) as error:
        raise InputError(f"file={str(file)!r} is no complete safetensors file ({error}); save it again") from None
    if header.get("format") not in formats:
        raise InputError(f"file={str(file)!r} was not written by {writer} (format {header.get('format')!r})")
    return header, state


def _network(header: dict[str, str]) -> nn.Module:
    from vitq import zoo

    return zoo.load(header["name"], pretrained=False, **json.loads(header["arguments"]))


def load_state(model: nn.Module, state: dict[str, torch.Tensor], file: str | Path) -> None:
    """Load strictly; the first key that does not fit, or that holds NaN, is named in one line."""
    for key, value in state.items():
        if value.is_floating_point() and not torch.isfinite(value).all():
            raise InputError(f"file={str(file)!r}: {key} holds NaN or infinity")
    try:
        model.load_state_dict(state, strict=True)
    except RuntimeError as error:
        first = str(error).split("\n")[1:2] or [str(error)]
        raise InputError(f"file={str(file)!r} does not fit the model: {first[0].strip()}") from None
