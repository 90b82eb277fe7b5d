"""LSQ: learned step size quantization."""

import torch
from torch import Tensor, nn

from vitq.numerics import EPSILON, VARIANTS, check_choice, fake_quantize, grad_scale, integer_codes
from vitq.quantizers.base import Quantizer
from vitq.quantizers.ranges import RULES, estimate_scale


class LSQ(Quantizer):
    r"""Uniform symmetric quantizer whose scale is a trained parameter (LSQ; Nagel 2022, section 5.1).

    .. math:: q(x) = s \cdot \mathrm{clip}(\lfloor x / s \rceil, n, p), \qquad s = \max(\texttt{scale}, 10^{-8})

    The straight-through mask has two variants, see :func:`vitq.numerics.fake_quantize`. The default is the released
    one, because the published numbers were made with it.

    Args:
        bits: 2 to 8.
        signed: ``None`` chooses at calibration: unsigned when the data has no negative value.
        channel_axis: One scale per index of this axis (0 for the output channels of a weight), or per combination of
            indices of several axes; ``None``: per tensor.
        variant: ``"released"`` or ``"paper"`` straight-through mask.
        grad_scale: ``"none"`` (as Nagel 2022 was run) or ``"lsq"``: the scale's gradient times
            :math:`1/\sqrt{pN}`, N = values that share the scale, batch included.
        init: ``"mse"`` (grid search), ``"lsq"`` (:math:`2\,\mathrm{mean}|x|/\sqrt p`), ``"ofq"`` (the same, doubled on
            an unsigned grid with several scales) or ``"max"``.

    Shape:
        Input and output: any; ``scale``: (1,) or (scales,).
    """

    def __init__(
        self,
        bits: int,
        signed: bool | None = True,
        channel_axis: int | tuple[int, ...] | None = None,
        variant: str = "released",
        grad_scale: str = "none",
        init: str = "mse",
    ) -> None:
        super().__init__(bits, signed, channel_axis)
        self.variant = check_choice("variant", variant, VARIANTS)
        self.grad_scale = check_choice("grad_scale", grad_scale, ("none", "lsq"))
        self.init = check_choice("init", init, RULES)
        self.scale = nn.Parameter(torch.ones(1))

    def fit_range(self, x: Tensor) -> None:
        scale = estimate_scale(x, self.qmin, self.qmax, self.channel_axis, self.init)
        self.scale.data = scale.to(device=self.scale.device, dtype=self.scale.dtype)

    def step_size(self, x: Tensor) -> Tensor:
        """Effective scale, shaped to broadcast against ``x``; carries the gradient scale of LSQ if it is on."""
        scale = self.scale.clamp_min(EPSILON)
        if self.grad_scale == "lsq":
            scale = grad_scale(scale, (self.qmax * x.numel() / scale.numel()) ** -0.5)
        return self._spread(scale, x)

    def fake_quantize(self, x: Tensor) -> Tensor:
        return fake_quantize(x, self.step_size(x), self.qmin, self.qmax, self.variant)

    def fake_quantize_frozen(self, x: Tensor) -> Tensor:
        frozen = self.frozen, self.frozen_codes
        return fake_quantize(x, self.step_size(x), self.qmin, self.qmax, self.variant, frozen)

    def position(self, x: Tensor) -> Tensor:
        """``x / s``: its nearest integer is the code, its half-integers are the rounding thresholds."""
        return x / self.step_size(x)

    def codes_of(self, x: Tensor) -> Tensor:
        return integer_codes(x, self.step_size(x), self.qmin, self.qmax)

    def dequantize(self, codes: Tensor, x: Tensor | None = None) -> Tensor:
        """``s * codes``, differentiable in the scale."""
        return codes * self.step_size(codes)
