"""Full-precision models by name: micro networks that are shipped, weights from a pip wheel, and timm's own.

Weights are always read as data: safetensors, `torch.load` with `weights_only=True`, or the tensors of an ONNX file.
"""

import hashlib
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

from vitq import provenance
from vitq.errors import InputError, MissingError
from vitq.wheels import WHEELS, find, read_onnx

MICRO = ("mobilenet_micro", "vit_micro", "swin_micro")
NAMES = (*MICRO, *WHEELS)
WEIGHTS = Path(__file__).parent / "weights"


def load(
    name: str,
    pretrained: bool = True,
    num_classes: int | None = None,
    checkpoint: str | Path | None = None,
    image_size: int | None = None,
) -> nn.Module:
    """A float model in evaluation mode; `model.zoo_name` is the name, `preprocessing(model)` what it expects.

    Args:
        name: One of `NAMES`, or "timm:" and a name of timm's.
        pretrained: Load weights; otherwise they are random.
        num_classes: Classes instead of the model's own; where the weights have another number, the head starts anew.
            0: features instead of logits, as `dinov2_vits14` gives anyway.
        checkpoint: File with the weights (safetensors, or a state dict written by `torch.save`) instead of the usual.
        image_size: Side in pixels instead of the model's own, for transformers; the position embedding is resampled
            (bicubic). `dinov2_vits14` takes any multiple of 14 and 224 by default.

    Raises:
        InputError: Unknown name, impossible size; a file that is damaged, of another model or holds NaN or infinity.
        MissingError: The checkpoint, wheel or download is not there.
    """
    for argument, value, low in (("num_classes", num_classes, 0), ("image_size", image_size, 1)):
        if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < low):
            raise InputError(f"{argument} must be a whole number of at least {low}, got {value!r}")
    if checkpoint is not None and not Path(checkpoint).expanduser().is_file():
        raise MissingError(f"checkpoint={str(checkpoint)!r} does not exist")
    if pretrained and checkpoint is None and name.startswith("timm:"):
        model = _download(name, num_classes, image_size)
    else:
        model = _create(name, num_classes, image_size)
    file = Path(checkpoint).expanduser() if checkpoint is not None else None
    if file is None and pretrained and name in NAMES:
        file = _usual_file(name)
        provenance.note_weights(file) if name in MICRO else provenance.note_data(name, WHEELS[name].sha256[:16])
    if file is not None:
        load_weights(model, file, new_head=num_classes is not None, resample=image_size is not None or name in WHEELS)
    model.zoo_name = name
    return model.eval()


def names():
    """A pandas table, one row a model (its index): source, size, and "found" or what is missing in one line."""
    import pandas

    rows = []
    for name in NAMES:
        source = "shipped" if name in MICRO else f"wheel {WHEELS[name].install.split()[-1]}"
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


def load_weights(model: nn.Module, file: Path, new_head: bool = False, resample: bool = False) -> None:
    """Load a checkpoint into a model of timm's; every tensor must fit.

    Args:
        model: The model.
        file: safetensors, a state dict of `torch.save` (bare or under "state_dict" or "model"), or ONNX (DINOv2).
        new_head: Leave out the classifier's tensors where their shapes differ.
        resample: Resample a square position embedding to the model's own grid.

    Raises:
        InputError: The file is damaged, or a tensor is absent, unknown, of another shape, NaN or infinite.
    """
    target, state = model.state_dict(), read_weights(file)
    if set(state) != set(target):
        state = _renamed(state, target, model, file)
    if resample and "pos_embed" in state and state["pos_embed"].shape != target["pos_embed"].shape:
        state["pos_embed"] = _resampled(state["pos_embed"], model)
    heads = model.pretrained_cfg.get("classifier") or ()
    heads = tuple(f"{head}." for head in ((heads,) if isinstance(heads, str) else heads))
    if new_head:
        state = {name: value for name, value in state.items() if name in target or not name.startswith(heads)}
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
        if file.suffix == ".onnx":
            return read_onnx(file)
        state = torch.load(file, map_location="cpu", weights_only=True)
    except (InputError, MissingError):
        raise
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
    if "_conv_stem.weight" in state and len(state) > len(target):  # a model without a head
        state = {name: value for name, value in state.items() if not name.startswith("_fc.")}
    if "_conv_stem.weight" in state and len(state) == len(target):
        return dict(zip(target, state.values(), strict=True))
    rename = getattr(sys.modules[type(model).__module__], "checkpoint_filter_fn", None)
    try:
        return rename(dict(state), model) if rename else state
    except Exception:  # a foreign checkpoint: the comparison that follows names the first tensor
        return state


def _resampled(positions: Tensor, model: nn.Module) -> Tensor:
    """Position embedding (1, tokens, C) on the grid of the model."""
    from timm.layers import resample_abs_pos_embed

    prefix = 0 if getattr(model, "no_embed_class", False) else model.num_prefix_tokens
    return resample_abs_pos_embed(positions, new_size=list(model.patch_embed.grid_size), num_prefix_tokens=prefix)


def _create(name: str, num_classes: int | None, image_size: int | None = None, **options: Any) -> nn.Module:
    import timm

    if num_classes is not None:
        options["num_classes"] = num_classes
    if name in MICRO:
        import vitq.micro  # noqa: F401  registers the architecture
    architecture, overlay = name.removeprefix("timm:"), {}
    if name in WHEELS:
        architecture, overlay = WHEELS[name].architecture, dict(WHEELS[name].preprocessing)
        image_size = image_size or WHEELS[name].image_size
    elif name not in MICRO and (architecture == name or not timm.is_model(architecture)):
        raise InputError(f"name must be one of {', '.join(NAMES)} or timm:NAME with a name of timm's, got {name!r}")
    if image_size is None:
        return timm.create_model(architecture, pretrained_cfg_overlay=overlay, **options)
    overlay["input_size"] = (3, image_size, image_size)
    try:
        model = timm.create_model(architecture, pretrained_cfg_overlay=overlay, img_size=image_size, **options)
    except TypeError:
        raise InputError(f"image_size={image_size}: {name} takes images of any size; leave it out") from None
    patch = model.patch_embed.patch_size[0]
    if image_size % patch:
        raise InputError(f"image_size={image_size}: give a multiple of {patch}, the patch size of {name}")
    return model


def _download(name: str, num_classes: int | None, image_size: int | None) -> nn.Module:
    try:
        with _offline_without_network():
            return _create(name, num_classes, image_size, pretrained=True)
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
    if name in WHEELS:
        return find(name)
    file = WEIGHTS / f"{name}.safetensors"
    if not file.is_file():
        raise MissingError(f"{file} is missing: python -m vitq.micro {name} --out {file}")
    return file


def _megabytes(file: Path) -> str:
    return f"{file.stat().st_size / 1e6:.1f} MB"
