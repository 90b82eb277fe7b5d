"""What all quantizers share: the integer grid, calibration, integer codes, and freezing in the integer domain."""

import math

import torch
from torch import Tensor, nn

from vitq.errors import InputError
from vitq.numerics import blend, check_bits, integer_range


class Quantizer(nn.Module):
    """Base class of the quantizers.

    A subclass implements ``fit_range(x)``, ``step_size(x)`` (broadcastable to x), ``fake_quantize(x)``,
    ``codes_of(x)``, ``position(x)`` and ``dequantize(codes, x)``. Used on a weight it is a
    ``torch.nn.utils.parametrize`` parametrization: the latent weight stays the parameter.

    Weights can be frozen *in the integer domain* (Nagel 2022, section 4.3): where ``frozen`` is set the output is
    ``dequantize(frozen_codes)``, so a later change of the scale still moves the value, the gradient to the latent
    weight is exactly 0, and the gradient to the scale is the stored integer. Mask and codes are buffers.

    Args:
        bits: Number of bits, from the class's ``MIN_BITS`` to 8.
        signed: Signed grid or not; ``None`` decides at calibration: signed if the data has a negative value.
        channel_axis: Axis with one scale an index, several axes with one scale for each combination of their indices,
            or ``None`` for one scale per tensor. Negative axes count from the end.

    Attributes:
        SCALE_FROM_DATA: The scale is a statistic of the tensor itself, recomputed in each call, not a state.
    """

    MIN_BITS = 2
    SCALE_FROM_DATA = False
    SIZED_BY_DATA = ("scale", "zero_point", "pre_offset", "post_offset")  # state whose length calibration decides

    def __init__(
        self, bits: int, signed: bool | None = True, channel_axis: int | tuple[int, ...] | None = None
    ) -> None:
        super().__init__()
        self.bits = check_bits("bits", bits, self.MIN_BITS)
        self.signed = signed
        self.chooses_sign = signed is None
        self.channel_axis = tuple(channel_axis) if isinstance(channel_axis, list) else channel_axis
        self.initialized = False
        self.register_buffer("frozen", None)
        self.register_buffer("frozen_codes", None)

    @property
    def qmin(self) -> int:
        return integer_range(self.bits, self.signed is not False)[0]

    @property
    def qmax(self) -> int:
        return integer_range(self.bits, self.signed is not False)[1]

    def forward(self, x: Tensor) -> Tensor:
        """Fake-quantize ``x`` (any shape); the first call on an uncalibrated quantizer calibrates it."""
        if not self.initialized:
            self.initialize(x)
        return self.fake_quantize(x) if self.frozen is None else self.fake_quantize_frozen(x)

    def fake_quantize_frozen(self, x: Tensor) -> Tensor:
        """``fake_quantize(x)``, but the stored integer times the scale where ``frozen`` is set."""
        return blend(self.frozen, self.dequantize(self.frozen_codes, x), self.fake_quantize(x))

    def right_inverse(self, value: Tensor) -> Tensor:
        """Assigning to a quantized weight sets the latent weight (needed by parametrize)."""
        return value

    @torch.no_grad()
    def initialize(self, x: Tensor) -> None:
        """Set signedness (if left open) and range from ``x``. NaN or infinity raises InputError."""
        x = x.detach().float() if x.dtype in (torch.float16, torch.bfloat16) else x.detach()
        if not torch.isfinite(x).all():
            raise InputError("x holds NaN or infinity: a range can be set from finite values only")
        if self.chooses_sign:
            self.signed = bool(x.min() < 0)
        self.fit_range(x)
        self.initialized = True

    @torch.no_grad()
    def codes(self, x: Tensor) -> Tensor:
        """Integer codes of ``x``, same shape; frozen entries give their stored integer."""
        codes = self.codes_of(x)
        return codes if self.frozen is None else blend(self.frozen, self.frozen_codes, codes)

    @torch.no_grad()
    def limits(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Lowest and highest level of the grid of ``x``, broadcastable to it."""
        step = self.step_size(x)
        return self.qmin * step, self.qmax * step

    @torch.no_grad()
    def freeze(self, mask: Tensor, codes: Tensor) -> None:
        """Hold the entries where ``mask`` is set at the integer ``codes``. Replaces an earlier freeze.

        Args:
            mask: bool, shape of the weight.
            codes: Integers of the same shape; values where ``mask`` is not set do not matter.
        """
        if mask.shape != codes.shape:
            raise InputError(f"codes has shape {tuple(codes.shape)}, but mask has {tuple(mask.shape)}")
        dtype = torch.int8 if self.qmax <= 127 else torch.int16
        if self.frozen is None:
            self.frozen = torch.zeros_like(mask, dtype=torch.bool)
            self.frozen_codes = torch.zeros_like(codes, dtype=dtype)
        self.frozen.copy_(mask)
        self.frozen_codes.copy_(codes)

    def unfreeze(self) -> None:
        """Let every entry follow its latent weight again."""
        self.frozen = self.frozen_codes = None

    # Bits and signedness are plain Python values (so that compiled code sees constants) yet part of the state.
    def get_extra_state(self) -> Tensor:
        return torch.tensor([self.bits, -1 if self.signed is None else int(self.signed), int(self.initialized)])

    def set_extra_state(self, state: Tensor) -> None:
        bits, signed, initialized = (int(v) for v in state)
        if bits != self.bits:
            raise InputError(f"bits={self.bits}, but the checkpoint holds a quantizer of {bits} bits")
        self.signed, self.initialized = None if signed < 0 else bool(signed), bool(initialized)

    @property
    def _device(self) -> torch.device:
        return self.scale.device

    def _load_from_state_dict(self, state_dict, prefix, *args) -> None:
        for name in ("frozen", "frozen_codes"):  # these exist in the checkpoint only if something was frozen
            saved = state_dict.get(prefix + name)
            if saved is None:
                setattr(self, name, None)
            elif getattr(self, name) is None or getattr(self, name).shape != saved.shape:
                setattr(self, name, torch.empty_like(saved, device=self._device))
        for name in self.SIZED_BY_DATA:
            saved, own = state_dict.get(prefix + name), getattr(self, name, None)
            if saved is not None and own is not None and own.shape != saved.shape:
                own.data = torch.empty_like(saved, device=own.device)
        super()._load_from_state_dict(state_dict, prefix, *args)

    def extra_repr(self) -> str:
        kind = {True: "signed", False: "unsigned", None: "sign open"}[self.signed]
        where = "per tensor" if self.channel_axis is None else f"per channel (axis {self.channel_axis})"
        return f"bits={self.bits}, {kind}, {where}"

    def _spread(self, scale: Tensor, x: Tensor) -> Tensor:
        """A scale, shaped to broadcast against ``x``."""
        return spread(scale, x, self.channel_axis, "scale")


def spread(values: Tensor, x: Tensor, axes: int | tuple[int, ...] | None, name: str) -> Tensor:
    """A vector with one entry for each combination of indices of ``axes``, shaped to broadcast against ``x``.

    Raises:
        InputError: ``x`` has another size along these axes.
    """
    if axes is None:
        return values
    kept = {axis % x.dim() for axis in ((axes,) if isinstance(axes, int) else axes)}
    shape = [size if axis in kept else 1 for axis, size in enumerate(x.shape)]
    if math.prod(shape) != values.numel():
        raise InputError(f"{name} has {values.numel()} entries but the input {tuple(x.shape)} asks for "
                         f"{math.prod(shape)}: scales per position tie a model to the image size it was calibrated at")
    return values.reshape(shape)
