"""One file a detector, float or quantized: safetensors, with the configuration in its header."""

import json
from pathlib import Path

from torch import nn

from vitq.errors import InputError

FORMAT = "vitq-detector-1"


def save(model: nn.Module, file: str | Path, **notes: str) -> Path:
    """Write a detector atomically.

    Args:
        model: The detector.
        file: Path of the ``.safetensors`` file.
        notes: Further text for the header, e.g. ``classes``.

    Raises:
        MissingError: The file cannot be written; an older one stays as it was.
    """
    from vitq.train.checkpoints import save_tensors

    header = {"format": FORMAT, "config": json.dumps(model.config.to_dict()), **notes}
    if hasattr(model, "quantization"):
        header["quantization"] = json.dumps(model.quantization)
    save_tensors(file, model.state_dict(), header)
    return Path(file)


def read_header(file: str | Path) -> dict[str, str]:
    """Configuration and notes of a file, as text.

    Raises:
        MissingError: No such file.
        InputError: It is of another program.
    """
    return _read(file)[0]


def load_into(model: nn.Module, file: str | Path) -> None:
    """Load the tensors of a file of :func:`save` into a detector of the same structure.

    Raises:
        MissingError: No such file.
        InputError: It is of another program, truncated, or of another structure.
    """
    from vitq.saving import load_state

    header, state = _read(file)
    if "quantization" in header and not hasattr(model, "quantization"):
        raise InputError(f"file={str(file)!r} holds a quantized detector; open it with vitq.detection.open_saved")
    if json.loads(header["config"]) != json.loads(json.dumps(model.config.to_dict())):
        raise InputError(f"file={str(file)!r} holds a detector of another configuration, {header['config']}")
    load_state(model, state, file)


def open_saved(file: str | Path) -> nn.Module:
    """Rebuild a detector written by :func:`save`, in evaluation mode."""
    from vitq.detection.config import DetectorConfig
    from vitq.detection.model import Detector

    header = read_header(file)
    model = Detector(DetectorConfig.from_dict(json.loads(header["config"]))).eval()
    if "quantization" in header:
        from vitq.detection.quantization import rebuild

        model = rebuild(model, json.loads(header["quantization"]))
    load_into(model, file)
    return model.eval()


def _read(file: str | Path) -> tuple[dict[str, str], dict]:
    from vitq.saving import read

    return read(file, (FORMAT,), "vitq.detection.save")
