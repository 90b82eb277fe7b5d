"""The quantizers of VVTQ 2023: LSQ's forward pass, a gradient scale by the L1 norm, scales a layer or a head."""

import torch
from torch import Tensor, nn

from vitq.errors import InputError
from vitq.numerics import check_choice, integer_codes, integer_range
from vitq.quantizers.base import Quantizer
from vitq.quantizers.ranges import _rows

FLOOR = 1e-4  # smallest effective scale, as released
STEPS, TOLERANCE = 500, 1e-5


class _Round(torch.autograd.Function):
    """Straight-through rounding to levels; a ratio exactly on the border passes half of the gradient."""

    @staticmethod
    def forward(ctx, x: Tensor, scale: Tensor, offset: Tensor | None, qmin: int, qmax: int) -> Tensor:
        ratio = (x if offset is None else x - offset) / scale
        inside = ((ratio >= qmin) & (ratio <= qmax)).to(torch.int8).add_((ratio > qmin) & (ratio < qmax))  # twice M
        codes = ratio.round().clamp_(qmin, qmax)
        residual = codes - ratio.mul_(inside).mul_(0.5)
        ctx.save_for_backward(inside, residual, scale, offset)
        out = codes.mul_(scale)
        return out if offset is None else out.add_(offset)

    @staticmethod
    def backward(ctx, grad: Tensor):
        inside, residual, scale, offset = ctx.saved_tensors
        passed = grad * inside * 0.5
        grad_scale = (grad * residual).sum_to_size(scale.shape) if scale.numel() > 1 else (
            torch.dot(grad.flatten(), residual.flatten()).reshape(scale.shape))
        grad_offset = None if offset is None else (grad - passed).sum().reshape(offset.shape)
        return passed, grad_scale, grad_offset, None, None


class _Scaled(Quantizer):
    """What the weight and the activation quantizer share."""

    def __init__(self, bits: int, signed: bool | None, channel_axis: int | tuple[int, ...] | None) -> None:
        super().__init__(bits, signed, channel_axis)
        self.scale = nn.Parameter(torch.ones(1))
        self.offset = None

    def factor(self, x: Tensor) -> Tensor | float:
        """Multiplier g of the scale's gradient, one or one for each scale."""
        raise NotImplementedError

    def _shape(self, scale: Tensor, x: Tensor) -> Tensor:
        return self._spread(scale, x)

    def step_size(self, x: Tensor) -> Tensor:
        """Effective scale, shaped to broadcast against ``x``; its gradient is multiplied by g."""
        value = self.scale.detach()
        return self._shape(value.clamp_min(FLOOR) + (self.scale - value) * self.factor(x), x)

    def fake_quantize(self, x: Tensor) -> Tensor:
        values = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
        return _Round.apply(values, self.step_size(values), self.offset, self.qmin, self.qmax).to(x.dtype)

    @torch.no_grad()
    def position(self, x: Tensor) -> Tensor:
        """``(x - offset) / s``."""
        return (x if self.offset is None else x - self.offset) / self.step_size(x)

    @torch.no_grad()
    def codes_of(self, x: Tensor) -> Tensor:
        return integer_codes(x if self.offset is None else x - self.offset, self.step_size(x), self.qmin, self.qmax)

    def dequantize(self, codes: Tensor, x: Tensor | None = None) -> Tensor:
        """``s * codes + offset``."""
        values = codes * self.step_size(codes if x is None else x)
        return values if self.offset is None else values + self.offset


class MDQ(_Scaled):
    r"""Weight quantizer of VVTQ 2023 (module-dependent quantization).

    .. math:: \hat w = \alpha \cdot \lfloor \mathrm{clip}(w/\alpha, n, p) \rceil

    Straight-through inside :math:`n \le w/\alpha \le p`, half of the gradient exactly on the border. The gradient of
    the scale is multiplied by :math:`g = 1/\sqrt{\lVert w \rVert_1\, p}` with the present L1 norm of the values that
    share it. The scale is fitted by alternating least squares, see :func:`least_squares_scale`. It is at least
    :math:`10^{-4}`, with an identity gradient there (the released code raises the parameter itself).

    Args:
        bits: 2 to 8.
        signed: Signed grid.
        channel_axis: As in :class:`~vitq.quantizers.base.Quantizer`.
        grad_scale: ``"l1"``, ``"lsq"`` (:math:`1/\sqrt{N p}`) or ``"none"``.
        heads: One scale a head of attention instead; the paper's granularity, which the released code gets wrong.
        head_axis: Axis that the heads divide: 0 for query, key and value, 1 for the projection.

    Shape:
        Input and output: any; ``scale``: (1,), (heads,) or (scales,).
    """

    def __init__(self, bits: int, signed: bool | None = True, channel_axis: int | tuple[int, ...] | None = None,
                 grad_scale: str = "l1", heads: int | None = None, head_axis: int = 0) -> None:
        super().__init__(bits, signed, channel_axis)
        self.grad_scale = check_choice("grad_scale", grad_scale, ("l1", "lsq", "none"))
        self.set_heads(heads, head_axis)

    def set_heads(self, heads: int | None, head_axis: int = 0) -> None:
        """Have one scale a head from now on; set the range anew afterwards with ``initialize``."""
        if heads is not None and self.channel_axis is not None:
            raise InputError(f"heads={heads}: channel_axis={self.channel_axis} asks for other scales; give one of them")
        self.heads, self.head_axis = heads, check_choice("head_axis", head_axis, (0, 1))

    def _groups(self, x: Tensor) -> Tensor:
        """Values that share a scale, one row each."""
        if self.heads is None:
            return _rows(x, self.channel_axis)
        if x.shape[self.head_axis] % self.heads:
            raise InputError(f"heads={self.heads} does not divide axis {self.head_axis} of a weight {tuple(x.shape)}")
        return x.unflatten(self.head_axis, (self.heads, -1)).movedim(self.head_axis, 0).flatten(1)  # (heads, values)

    def _shape(self, scale: Tensor, x: Tensor) -> Tensor:
        if self.heads is None:
            return self._spread(scale, x)
        shape = [1] * x.dim()
        shape[self.head_axis] = -1
        return scale.repeat_interleave(x.shape[self.head_axis] // self.heads).reshape(shape)  # (out, 1) or (1, in)

    def scale_groups(self, x: Tensor) -> Tensor:
        """Index of the scale of each value, broadcastable to ``x``."""
        return self._shape(torch.arange(self.scale.numel(), device=x.device), x)

    @torch.no_grad()
    def factor(self, x: Tensor) -> Tensor | float:
        if self.grad_scale == "none":
            return 1.0
        if self.grad_scale == "lsq":
            return (self.qmax * x.numel() / self.scale.numel()) ** -0.5
        if self.scale.numel() == 1:
            return (x.detach().abs().sum() * self.qmax).clamp_min(1e-12).rsqrt()
        return (self._groups(x.detach()).abs().sum(1) * self.qmax).clamp_min(1e-12).rsqrt()

    def fit_range(self, x: Tensor) -> None:
        scale = least_squares_scale(self._groups(x), self.qmin, self.qmax)
        self.scale.data = scale.clamp_min(FLOOR).to(device=self.scale.device, dtype=self.scale.dtype)


class MDQActivation(_Scaled):
    r"""Activation quantizer of VVTQ 2023: one learned scale, and optionally a learned offset :math:`\beta`.

    .. math:: \hat x = \alpha \cdot \lfloor \mathrm{clip}((x - \beta)/\alpha, n, p) \rceil + \beta

    The gradient of :math:`\beta` is the sum of the upstream gradients over clipped values; it is not scaled, that of
    :math:`\alpha` is by :math:`1/(\sqrt N p)`, N = values that share the scale, the batch included.

    Args:
        bits: 2 to 8.
        signed: ``None`` chooses at calibration: unsigned when the data has no negative value.
        channel_axis: One scale an index of this axis: 1 for one a head on query, key and value (B, heads, N, d).
        grad_scale: ``"released"``, ``"lsq"`` (:math:`1/\sqrt{N p}`) or ``"none"``.
        offset: Learn :math:`\beta`, which starts at 0.
        init: ``"released"``: :math:`2\,\mathrm{mean}|x| / \sqrt{2^{b-1} - 1}`, on an unsigned grid too;
            ``"corrected"`` takes the grid's own p.

    Shape:
        Input and output: any; ``scale``: (1,) or (scales,); ``offset``: (1,) or None.
    """

    def __init__(self, bits: int, signed: bool | None = None, channel_axis: int | tuple[int, ...] | None = None,
                 grad_scale: str = "released", offset: bool = False, init: str = "released") -> None:
        super().__init__(bits, signed, channel_axis)
        self.grad_scale = check_choice("grad_scale", grad_scale, ("released", "lsq", "none"))
        self.init = check_choice("init", init, ("released", "corrected"))
        if offset:
            self.add_offset()

    def add_offset(self) -> None:
        """Learn an offset from now on."""
        del self.offset
        self.offset = nn.Parameter(torch.zeros_like(self.scale.detach()[:1]))

    def factor(self, x: Tensor) -> float:
        shared = x.numel() / self.scale.numel()
        return {"none": 1.0, "lsq": (self.qmax * shared) ** -0.5, "released": shared**-0.5 / self.qmax}[self.grad_scale]

    def fit_range(self, x: Tensor) -> None:
        qmax = integer_range(self.bits, True)[1] if self.init == "released" else self.qmax
        scale = 2 * _rows(x, self.channel_axis).abs().mean(1) / qmax**0.5
        self.scale.data = scale.clamp_min(FLOOR).to(device=self.scale.device, dtype=self.scale.dtype)


def least_squares_scale(rows: Tensor, qmin: int, qmax: int, steps: int = STEPS) -> Tensor:
    r"""Scales by alternating least squares: codes for the scale, then :math:`\alpha = <w, q> / <q, q>`.

    From :math:`\max|w|/p` until the relative change is below 1e-5, at most ``steps`` times: it converges slowly at many
    bits. Each step costs one search of the rounding thresholds in the sorted values, whose prefix sums give both
    products exactly.

    Args:
        rows: Values that share a scale, one row each, (R, M).
        qmin: Smallest code.
        qmax: Largest code.
        steps: Cap.

    Returns:
        (R,), dtype of ``rows``; 1 for a row of zeros.
    """
    ordered = rows.detach().sort(1).values.double().contiguous()
    sums = torch.nn.functional.pad(ordered.cumsum(1), (1, 0))  # (R, M + 1)
    levels = torch.arange(qmin, qmax + 1, device=rows.device, dtype=torch.float64)  # (K,)
    scale = ordered.abs().amax(1) / qmax
    scale = torch.where(scale > 0, scale, 1.0)
    for _ in range(steps):
        cuts = torch.searchsorted(ordered, ((levels[:-1] + 0.5) * scale.unsqueeze(1)).contiguous())  # (R, K - 1)
        edges = torch.nn.functional.pad(cuts, (1, 0))
        edges = torch.nn.functional.pad(edges, (0, 1), value=ordered.shape[1])  # (R, K + 1)
        product = (levels * sums.gather(1, edges).diff(dim=1)).sum(1)
        square = (levels**2 * edges.diff(dim=1)).sum(1)
        new = torch.where((square > 0) & (product > 0), product / square.clamp_min(1), scale)
        done = ((new - scale).abs() <= TOLERANCE * scale).all()
        scale = new
        if done:
            break
    return scale.to(rows.dtype)
