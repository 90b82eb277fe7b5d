"""One head at few bits in a network at many (VVTQ 2023): the other way round from leaving a head in floating point.

In the authors' older code this probe stands commented out, for the first block: its heads at 8 bits, one of them at 2,
without training.
"""

import copy
from dataclasses import replace
from typing import TYPE_CHECKING

from torch import Tensor, nn

from vitq.convert import QuantSpec, calibrate, quantize
from vitq.errors import InputError
from vitq.papers.vvtq2023.parts import parts
from vitq.papers.vvtq2023.sensitivity import change_head, compared, groups_of, inside, leave_one_out, outputs
from vitq.quantizers import Quantizer

if TYPE_CHECKING:
    import pandas


def one_head_at(model: nn.Module, spec: QuantSpec, head: int, bits: int = 2, block: str | None = None) -> nn.Module:
    """A quantized copy of a network with one head at fewer bits; activation ranges are still to be set.

    What a head has is its rows of query, key and value, its columns of the projection, their input, and its share of
    the operands; what it has at fewer bits has scales of its own.

    Args:
        model: The float network, with timm's attention.
        spec: What is quantized otherwise; its ``query_key`` becomes ``"separate"``.
        head: Its number in each layer.
        bits: Of this head.
        block: Only in this part of the network, e.g. ``"blocks.0"``.

    Raises:
        InputError: No such head in some layer, or no layer in ``block``.
    """
    quantized = quantize(model, replace(spec, query_key="separate"))
    attentions = {part.name.rpartition(".")[0]: part.heads for part in inside(parts(quantized), block) if part.heads}
    for name, heads in attentions.items():
        if not 0 <= head < heads:
            raise InputError(f"head={head}: {name} has the heads 0 to {heads - 1}")
        change_head(quantized.get_submodule(name), head, heads, lambda q, part: _give_bits(q, part, bits))
    return quantized


def _give_bits(quantizer: nn.Module | None, part: tuple, bits: int) -> None:
    """Quantize an indexed part of what a quantizer is given by a copy of it with other bits and scales of its own."""
    if not isinstance(quantizer, Quantizer):
        return
    coarse = copy.deepcopy(quantizer)
    coarse.bits, coarse.initialized = bits, False  # its first input sets its range
    if getattr(coarse, "heads", None) is not None:
        coarse.set_heads(None)

    def requantize(_, args: tuple, output: Tensor) -> Tensor:
        output = output.clone()
        output[part] = coarse(args[0][part])
        return output

    quantizer.register_forward_hook(requantize)


def one_head_sensitivity(model: nn.Module, images: Tensor, spec: QuantSpec, bits: int = 2,
                         calibration: Tensor | None = None, block: str | None = None,
                         batch_size: int = 32) -> "pandas.DataFrame":
    """Give one head at a time a few bits in a network quantized to many, without training, and compare the outputs.

    Args:
        model: A float transformer of timm's.
        images: Normalised images (N, 3, H, W).
        spec: What is quantized, at many bits: 8.
        bits: Of the one head.
        calibration: Images that set the activation ranges; by default the first ``batch_size`` of ``images``.
        block: Change the head in this part of the network only, e.g. ``"blocks.0"``.
        batch_size: Images at a time.

    Returns:
        One row a network, the first ("none") without such a head: head; sqnr_db and agreement as in
        :func:`leave_one_out_sensitivity`; loss_db, how far the first is below the first row.
    """
    import pandas

    calibration = images[:batch_size] if calibration is None else calibration
    features = not any(part.kind == "classifier" for part in parts(model))
    expected, rows = outputs(model, images, batch_size), []
    heads = [group for group in groups_of(model) if group.startswith("head")]
    for head in (None, *range(len(heads))):
        quantized = leave_one_out(model, spec, None) if head is None else one_head_at(model, spec, head, bits, block)
        now = outputs(calibrate(quantized, [calibration]), images, batch_size)
        rows.append({"head": "none" if head is None else str(head)} | compared(now, expected, features))
        rows[-1]["loss_db"] = rows[0]["sqnr_db"] - rows[-1]["sqnr_db"]
    return pandas.DataFrame(rows)
