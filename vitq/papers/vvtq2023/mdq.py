"""Module-dependent quantization (VVTQ 2023) of whole networks: three ways to share and to learn scales.

- ``"layer"``, as released: one scale a tensor, gradient scale by the L1 norm.
- ``"head"``, as the paper describes it: one scale a head for query, key, value, projection and the operands of
  attention. Heads are output rows of query, key and value, (H, d, in), input columns of the projection, (out, H, d),
  and axis 1 of the operands, (B, H, N, d). The released option for this does not work: heads share one table of scales,
  the weight is split along the wrong axis, and the activation scales are never set.
- ``"lsq"``, the baseline: one scale a tensor, LSQ's gradient scale.
"""

from torch import nn

from vitq.convert import QuantSpec, quantize
from vitq.numerics import check_choice
from vitq.papers.vvtq2023.parts import parts

MODES = ("layer", "head", "lsq")


def mdq_spec(model: nn.Module, weight_bits: int, act_bits: int | None, mode: str = "layer",
             gelu_offset: bool = True) -> QuantSpec:
    """The recipe: separate query, key and value, 8 bits at both ends, GELU's output without sign.

    A Swin transformer keeps its image and the inputs of its patch merging in floating point, and its merging weights
    have 8 bits; a ViT's image has 8 bits.

    Args:
        model: The float network.
        weight_bits: 2 to 8.
        act_bits: 2 to 8 or None.
        mode: One of ``MODES``.
        gelu_offset: Learn an offset for the outputs of GELU.
    """
    check_choice("mode", mode, MODES)
    merging = [part.name for part in parts(model) if part.name.endswith("downsample.reduction")]
    image = None if merging or act_bits is None else 8
    rule = {"grad_scale": "lsq"} if mode == "lsq" else {}
    return QuantSpec(
        weight_bits, act_bits, weight="mdq", act="mdq_activation", weight_options=rule, act_options=rule,
        first_last_bits=8, image_bits=image, unsigned_gelu=True, query_key="separate",
        weight_scales="head" if mode == "head" else "layer", activation_scales="head" if mode == "head" else "tensor",
        gelu_offset=gelu_offset and act_bits is not None,
        overrides={name: {"weight_bits": 8, "act_bits": None} for name in merging},
    )  # fmt: skip


def quantize_mdq(model: nn.Module, weight_bits: int, act_bits: int | None, mode: str = "layer",
                 gelu_offset: bool = True) -> nn.Module:
    """A quantized copy of a transformer; activation ranges are still to be set by ``vitq.calibrate``.

    Args:
        model: The float network, with timm's attention.
        weight_bits: 2 to 8.
        act_bits: 2 to 8 or None.
        mode: One of ``MODES``.
        gelu_offset: Learn an offset for the outputs of GELU.
    """
    return quantize(model, mdq_spec(model, weight_bits, act_bits, mode, gelu_offset))
