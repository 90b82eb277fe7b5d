"""LSQ with learned offset vectors: the activation quantizer of OFQ."""

import math

import torch
from torch import Tensor, nn

from vitq.numerics import check_choice, integer_codes
from vitq.quantizers.base import Quantizer, spread
from vitq.quantizers.ranges import RULES, estimate_scale

FLOOR = 1e-5  # smallest effective scale in the released code; the gradient passes through it unchanged


EDGE = 1e-6  # share of the grid: an input this little beyond the outermost level still counts as inside
CHUNK = 2**17  # values that are worked on at a time on a processor, so that all passes but the first hit its cache


def chunks(x: Tensor) -> list[slice] | None:
    """Slices of the first axis with about ``CHUNK`` values each on a processor; None for the whole tensor at once."""
    if x.device.type != "cpu" or torch.compiler.is_compiling():
        return None
    rows = max(1, CHUNK * len(x) // max(1, x.numel()))
    return [slice(start, start + rows) for start in range(0, len(x), rows)]


def _sum_like(values: Tensor, like: Tensor) -> Tensor:
    """Sum of ``values`` down to the shape of ``like``, which broadcasts against it."""
    if like.numel() == 1:
        return values.sum().reshape(like.shape)
    return values.sum([a for a in range(values.dim()) if like.shape[a] == 1], keepdim=True)


def _snap(x: Tensor, scale: Tensor, pre: Tensor | None, post: Tensor | None, ends: tuple[int, int],
          position: Tensor | None = None, out: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Position on the grid and fake-quantized value, into the tensors given if there are any."""
    position = torch.div(x, scale, out=position) if pre is None else torch.add(x, pre, out=position).div_(scale)
    out = torch.clamp(position, *ends, out=out).round_().mul_(scale)
    return position, out if post is None else out.add_(post)


def _gradients(grad: Tensor, position: Tensor, vectors: tuple[Tensor | None, ...], ends: tuple[int, int],
               into: Tensor | None = None) -> tuple[Tensor, list[Tensor | None]]:
    """Gradient of the input, and of scale, pre_offset and post_offset."""
    scale, pre, post = vectors
    # The gradient of hardtanh leaves out the ends themselves, which belong to the grid: a little beyond them.
    low, high = ends[0] - EDGE * ends[1], ends[1] + EDGE * ends[1]
    if torch.compiler.is_compiling():  # what a compiler fuses by itself
        into = grad * ((position >= ends[0]) & (position <= ends[1]))
    elif into is None:
        into = torch.ops.aten.hardtanh_backward(grad, position, low, high)
    else:
        torch.ops.aten.hardtanh_backward(grad, position, low, high, grad_input=into)
    by_scale = position.clamp(*ends).round_().mul_(grad).addcmul_(into, position, value=-1)  # g code - [inside] g x/s
    sums = [_sum_like(by_scale, scale), None, None]
    if pre is not None:
        sums[1:] = [_sum_like(into, pre), _sum_like(grad, post)]
    return into, sums


class _OffsetFakeQuantize(torch.autograd.Function):
    """Backward needs the position on the grid alone: the mask of the clip and the code follow from it."""

    @staticmethod
    def forward(ctx, x: Tensor, scale: Tensor, pre: Tensor | None, post: Tensor | None, qmin: int, qmax: int) -> Tensor:
        parts, ctx.ends = chunks(x), (qmin, qmax)
        if parts is None:
            position, out = _snap(x, scale, pre, post, ctx.ends)
        else:
            position, out = torch.empty_like(x), torch.empty_like(x)
            for rows in parts:
                _snap(x[rows], scale, pre, post, ctx.ends, position[rows], out[rows])
        ctx.save_for_backward(position, scale, pre, post)
        return out

    @staticmethod
    def backward(ctx, grad: Tensor):
        position, *vectors = ctx.saved_tensors
        parts = chunks(grad)
        if parts is None:
            grad_x, sums = _gradients(grad, position, vectors, ctx.ends)
        else:
            grad_x, sums = torch.empty_like(grad), [None if v is None else torch.zeros_like(v) for v in vectors]
            for rows in parts:
                _, own = _gradients(grad[rows], position[rows], vectors, ctx.ends, grad_x[rows])
                sums = [s if s is None else s.add_(part) for s, part in zip(sums, own, strict=True)]
        return grad_x, *sums, None, None


class OffsetLSQ(Quantizer):
    r"""LSQ for activations with two learned offset vectors (OFQ 2023, released code).

    .. math:: \hat x = s \cdot \mathrm{clip}(\lfloor (x + \beta_{pre}) / s \rceil, n, p) + \beta_{post}

    The two vectors are independent and start at 0. The scale starts at :math:`2\,\mathrm{mean}|x| / \sqrt p`, twice
    that on an unsigned grid with several scales; it is at least :math:`10^{-5}`, with an identity gradient there, and
    its gradient is multiplied by :math:`1/\sqrt{pM}`, M = values that share it in this batch. The straight-through mask
    is that of the clip, as LSQ prints it.

    Args:
        bits: 2 to 8.
        signed: ``None`` chooses at calibration: unsigned when the data has no negative value.
        channel_axis: Axes of the scales. OFQ has one scale per token (-2) in linear layers.
        offset_axis: Axes of the offset vectors, -1 for channels; ``None`` for no offsets.
        columns: The tokens on axis -2 are a map in row order with so many columns, and all tokens of a column share a
            scale, as in the released Swin.
        init: As in :class:`~vitq.quantizers.lsq.LSQ`.

    Shape:
        Input and output: any. ``scale``, ``pre_offset``, ``post_offset``: vectors, sized at calibration.
    """

    def __init__(
        self,
        bits: int,
        signed: bool | None = True,
        channel_axis: int | tuple[int, ...] | None = None,
        offset_axis: int | tuple[int, ...] | None = -1,
        columns: int | None = None,
        init: str = "ofq",
    ) -> None:
        super().__init__(bits, signed, channel_axis)
        self.offset_axis = tuple(offset_axis) if isinstance(offset_axis, list) else offset_axis
        self.columns = columns
        self.init = check_choice("init", init, RULES)
        self.scale = nn.Parameter(torch.ones(1))
        for name in ("pre_offset", "post_offset"):
            self.register_parameter(name, None if offset_axis is None else nn.Parameter(torch.zeros(1)))

    def _map(self, x: Tensor) -> Tensor:
        return x if self.columns is None else x.unflatten(-2, (-1, self.columns))  # (..., rows, columns, C)

    def fake_quantize(self, x: Tensor) -> Tensor:
        """Half precision is computed in float32 and returned in its own dtype."""
        values = self._map(x)
        values = values.float() if x.dtype in (torch.float16, torch.bfloat16) else values
        pre, post = self._offsets(values)
        y = _OffsetFakeQuantize.apply(values, self._step_size(values), pre, post, self.qmin, self.qmax)
        return y.to(x.dtype).reshape(x.shape)

    def fit_range(self, x: Tensor) -> None:
        values = self._map(x)
        scale = estimate_scale(values, self.qmin, self.qmax, self.channel_axis, self.init)
        self.scale.data = scale.to(device=self.scale.device, dtype=self.scale.dtype)
        if self.offset_axis is not None:
            axes = (self.offset_axis,) if isinstance(self.offset_axis, int) else self.offset_axis
            size = math.prod(values.shape[axis] for axis in axes)
            for offset in (self.pre_offset, self.post_offset):
                offset.data = torch.zeros(size, device=offset.device, dtype=offset.dtype)

    def _step_size(self, values: Tensor) -> Tensor:
        value = self.scale.detach()
        factor = (self.qmax * values.numel() / value.numel()) ** -0.5
        return self._spread(value.clamp_min(FLOOR) + (self.scale - value) * factor, values)

    def step_size(self, x: Tensor) -> Tensor:
        """Effective scale, shaped to broadcast against ``x`` (as a map where ``columns`` is set)."""
        return self._step_size(self._map(x))

    def _offsets(self, values: Tensor) -> tuple[Tensor | None, Tensor | None]:
        if self.offset_axis is None:
            return None, None
        pre = spread(self.pre_offset, values, self.offset_axis, "pre_offset")
        return pre, spread(self.post_offset, values, self.offset_axis, "post_offset")

    @torch.no_grad()
    def position(self, x: Tensor) -> Tensor:
        """``(x + pre_offset) / s``."""
        values = self._map(x)
        pre, _ = self._offsets(values)
        values = values if pre is None else values + pre
        return (values / self._step_size(values)).reshape(x.shape)

    def codes_of(self, x: Tensor) -> Tensor:
        return integer_codes(self.position(x), torch.ones((), device=x.device), self.qmin, self.qmax)

    def dequantize(self, codes: Tensor, x: Tensor | None = None) -> Tensor:
        """``s * codes + post_offset``; ``x`` is unused: all quantizers are called alike, and StatsQ needs it."""
        values = self._map(codes)
        _, post = self._offsets(values)
        y = values * self._step_size(values)
        return (y if post is None else y + post).reshape(codes.shape)
