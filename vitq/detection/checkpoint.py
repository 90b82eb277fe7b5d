"""The published checkpoints of Swin-Transformer-Object-Detection, key by key."""

import re
import warnings
from pathlib import Path

import torch
from torch import Tensor, nn

from vitq.detection.config import MICRO, MODELS, DetectorConfig, config_of
from vitq.errors import InputError, MissingError

SHIPPED = Path(__file__).parent / "weights"
INDEX = "relative_position_index"
_CONV = r"(weight|bias)$"
_NORM = r"(weight|bias|running_mean|running_var|num_batches_tracked)$"
RULES: list[tuple[str, str]] = [  # the first pattern that matches a whole published key gives our name
    (r"backbone\.layers\.(\d)\.downsample\.(norm\.weight|norm\.bias|reduction\.weight)$",
     r"backbone.layers.{0+1}.downsample.{1}"),
    (r"backbone\.(patch_embed|layers)\.(.*)", r"backbone.{0}.{1}"),
    (r"backbone\.norm(\d)\.(weight|bias)$", r"backbone.norms.{0}.{1}"),
    (r"neck\.lateral_convs\.(\d)\.conv\." + _CONV, r"neck.inner_blocks.{0}.0.{1}"),
    (r"neck\.fpn_convs\.(\d)\.conv\." + _CONV, r"neck.layer_blocks.{0}.0.{1}"),
    (r"rpn_head\.rpn_conv\." + _CONV, r"rpn.head.conv.0.0.{0}"),
    (r"rpn_head\.rpn_cls\." + _CONV, r"rpn.head.cls_logits.{0}"),
    (r"rpn_head\.rpn_reg\." + _CONV, r"rpn.head.bbox_pred.{0}"),
    (r"roi_head\.bbox_head\.(?:(\d)\.)?fc_cls\." + _CONV, r"roi.box_heads.{0}.logits.{1}"),
    (r"roi_head\.bbox_head\.(?:(\d)\.)?fc_reg\." + _CONV, r"roi.box_heads.{0}.deltas.{1}"),
    (r"roi_head\.bbox_head\.(\d)\.shared_convs\.(\d)\.conv\.weight$", r"roi.box_heads.{0}.trunk.{1}.0.weight"),
    (r"roi_head\.bbox_head\.(\d)\.shared_convs\.(\d)\.bn\." + _NORM, r"roi.box_heads.{0}.trunk.{1}.1.{2}"),
    (r"roi_head\.bbox_head\.(\d)\.shared_fcs\.0\." + _CONV, r"roi.box_heads.{0}.trunk.5.{1}"),
    (r"roi_head\.bbox_head\.shared_fcs\.(\d)\." + _CONV, r"roi.box_heads.0.trunk.fc{0+6}.{1}"),
    (r"roi_head\.mask_head\.(?:(\d)\.)?convs\.(\d)\.conv\." + _CONV, r"roi.mask_heads.{0}.trunk.{1}.0.{2}"),
    (r"roi_head\.mask_head\.(?:(\d)\.)?upsample\." + _CONV, r"roi.mask_heads.{0}.predictor.conv5_mask.{1}"),
    (r"roi_head\.mask_head\.(?:(\d)\.)?conv_logits\." + _CONV, r"roi.mask_heads.{0}.predictor.mask_fcn_logits.{1}"),
]


def our_key(key: str) -> str | None:
    """Our name of a published key, or None if it is none of them.

    Stages of Swin end with their patch merging there and begin with it in timm, hence the stage number + 1.
    """
    for pattern, name in RULES:
        found = re.fullmatch(pattern, key)
        if found:
            return _fill(name, [part or "0" for part in found.groups()])
    return None


def _fill(name: str, parts: list[str]) -> str:
    """``{i}`` is part i of the match, ``{i+n}`` that part plus n."""
    def part(found: re.Match) -> str:
        own = parts[int(found[1])]
        return str(int(own) + int(found[2])) if found[2] else own

    return re.sub(r"\{(\d)(?:\+(\d))?\}", part, name)


def read_checkpoint(file: str | Path) -> dict[str, Tensor]:
    """The published state dict of a file, unwrapped; nothing but tensors and plain data is unpickled.

    Raises:
        MissingError: No such file.
        InputError: It is no PyTorch file, holds code, or no state dict of tensors.
    """
    if not Path(file).is_file():
        raise MissingError(f"checkpoint={str(file)!r} does not exist")
    source = f"checkpoint={str(file)!r}"
    try:
        with warnings.catch_warnings(action="ignore"):
            state = torch.load(file, map_location="cpu", weights_only=True)
    except MemoryError:
        raise
    except Exception as error:  # a broken file ends in any of a dozen kinds
        foreign = re.search(r"GLOBAL (\S+) was not an allowed global", str(error))
        why = (f"it holds {foreign[1]}; save its 'state_dict' alone" if foreign else
               "it is truncated or no PyTorch file; fetch it again")
        raise InputError(f"{source} cannot be loaded as tensors and plain data: {why}") from None
    state = state.get("state_dict", state) if isinstance(state, dict) else state
    if not isinstance(state, dict) or not state:
        raise InputError(f"{source} holds no state dict")
    for key, value in state.items():
        if not isinstance(value, Tensor):
            raise InputError(f"{source} is no checkpoint of a detector: there is no 'state_dict', and {key!r} is no "
                             f"tensor, but {type(value).__name__}")
    return {key.removeprefix("module."): value for key, value in state.items()}


def translate(state: dict[str, Tensor], model: nn.Module, file: str | Path = "") -> dict[str, Tensor]:
    """Published tensors under our names; the first key that does not fit is named.

    The relative position index is computed, not loaded, and must be equal; batch counts may be absent, else 0.

    Args:
        state: From :func:`read_checkpoint`.
        model: The detector that the tensors are for.
        file: For the message.
    """
    own, found, source = model.state_dict(), {}, f"checkpoint={str(file)!r}"
    for key, value in state.items():
        name = our_key(key)
        if name is not None and name.endswith(INDEX):
            _check_index(model, name, key, value, source)
            continue
        if name not in own:
            raise InputError(f"{source}: the key {key!r} is not one of this model's{_guess(state)}")
        if value.shape != own[name].shape:
            raise InputError(f"{source}: {key!r} has shape {tuple(value.shape)}, this model needs "
                             f"{tuple(own[name].shape)}{_guess(state)}")
        if value.is_floating_point() and not torch.isfinite(value).all():
            raise InputError(f"{source}: {key!r} holds NaN or infinity")
        found[name] = value
    for name, value in own.items():
        if name not in found and name.endswith("num_batches_tracked"):
            found[name] = torch.zeros_like(value)
        if name not in found:
            raise InputError(f"{source}: nothing in it gives {name!r}{_guess(state) or '; is it complete?'}")
    return found


def _guess(state: dict[str, Tensor]) -> str:
    """Which published model the keys are those of, as the end of a message."""
    depth = sum(bool(re.fullmatch(r"backbone\.layers\.2\.blocks\.\d+\.norm1\.weight", key)) for key in state)
    cascade = any(key.startswith("roi_head.bbox_head.0.") for key in state)
    for name, config in MODELS.items():
        if config.cascade == cascade and config.depths[2] == depth and our_key(next(iter(state))) is not None:
            return f"; the file looks like {name}"
    return ""


def _check_index(model: nn.Module, name: str, key: str, value: Tensor, source: str) -> None:
    try:
        own = model.get_buffer(name)
    except AttributeError:
        raise InputError(f"{source}: the key {key!r} is not one of this model's") from None
    if value.shape != own.shape or (not own.is_meta and not torch.equal(value, own)):
        raise InputError(f"{source}: {key!r} numbers the positions of a window otherwise than this model")


def load(name: str | DetectorConfig, checkpoint: str | Path | None = None) -> nn.Module:
    """A detector in evaluation mode.

    Args:
        name: ``"mask_rcnn_swin_tiny"``, ``"mask_rcnn_swin_small"``, ``"cascade_mask_rcnn_swin_tiny"``,
            ``"cascade_mask_rcnn_swin_small"``, a configuration, or one of the small detectors trained on generated
            shapes, ``"mask_rcnn_swin_micro"`` and ``"cascade_mask_rcnn_swin_micro"``.
        checkpoint: A published ``.pth`` file, or a ``.safetensors`` file of :func:`vitq.detection.save`; None for
            the weights that the small detectors are shipped with, and for random weights of all others.

    Raises:
        InputError: An unknown name, or a file that does not fit.
        MissingError: No such file.
    """
    from vitq.detection.model import Detector

    if checkpoint is None and name in MICRO:
        checkpoint = SHIPPED / f"{name}.safetensors"
    model = Detector(config_of(name)).eval()
    if checkpoint is not None:
        if str(checkpoint).endswith(".safetensors"):
            from vitq.detection.saving import load_into

            load_into(model, checkpoint)
        else:
            model.load_state_dict(translate(read_checkpoint(checkpoint), model, checkpoint), strict=True)
    return model
