r"""Pure functions behind every quantizer: rounding, fake quantization, integer codes, packing.

Notation of the field: latent weight :math:`w`, scale (step size) :math:`s > 0`, integer grid :math:`n \dots p`,
codes :math:`\bar w = \mathrm{clip}(\lfloor w / s \rceil, n, p)`, quantized value :math:`q(w) = s \bar w`
(Nagel 2022, Eq. 1). Rounding is to nearest, ties to even.
"""

import torch
from torch import Tensor

from vitq.errors import InputError

EPSILON = 1e-8  # smallest effective scale, as in the released code of Nagel 2022
VARIANTS = ("released", "paper")


def check_bits(name: str, bits: int, low: int = 2, high: int = 8) -> int:
    """Return ``bits`` if it is an integer from ``low`` to ``high``; raise InputError that names it otherwise."""
    if isinstance(bits, bool) or not isinstance(bits, int) or not low <= bits <= high:
        raise InputError(f"{name}={bits!r}: give an integer number of bits from {low} to {high}")
    return bits


def check_choice(name: str, value: object, choices: tuple) -> object:
    """Return ``value`` if it is one of ``choices``; raise InputError that lists them otherwise."""
    if value not in choices:
        raise InputError(f"{name}={value!r}: choose one of {', '.join(map(repr, choices))}")
    return value


def integer_range(bits: int, signed: bool) -> tuple[int, int]:
    """Smallest and largest code: ``-2^(b-1) .. 2^(b-1)-1`` if signed, ``0 .. 2^b-1`` otherwise."""
    return (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)


class _RoundSTE(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        return x.round()

    @staticmethod
    def backward(ctx, grad: Tensor) -> Tensor:
        return grad


def round_ste(x: Tensor) -> Tensor:
    """Round to nearest, ties to even; the gradient passes unchanged (straight-through estimator)."""
    return _RoundSTE.apply(x)


def grad_scale(x: Tensor, factor: float) -> Tensor:
    """Return ``x``; its gradient is multiplied by ``factor`` (LSQ, section 2.2)."""
    return x if factor == 1.0 else x.detach() + (x - x.detach()) * factor


def _inner(a: Tensor, b: Tensor) -> Tensor:
    """Inner product of two tensors of one shape; channels-last tensors are read in place, not copied."""
    if a.dim() == 4 and not a.is_contiguous():
        a, b = a.permute(0, 2, 3, 1), b.permute(0, 2, 3, 1)
    return torch.dot(a.flatten(), b.flatten())


class _FakeQuantize(torch.autograd.Function):
    """One pass forward, one backward: the mask is a byte an element, the scale's gradient two inner products."""

    @staticmethod
    def forward(ctx, x: Tensor, scale: Tensor, qmin: int, qmax: int, paper_mask: bool, frozen: Tensor | None,
                frozen_codes: Tensor | None) -> Tensor:
        ratio = x / scale
        if paper_mask:
            inside = (ratio >= qmin) & (ratio <= qmax)
            out = ratio.round_().clamp_(qmin, qmax)
        else:
            rounded = ratio.round_()
            out = rounded.clamp(qmin, qmax)
            inside = out == rounded
        if frozen is not None:  # outside for the gradients: none to x, the stored integer to the scale
            inside &= ~frozen
            out = blend(frozen, frozen_codes, out)
        out.mul_(scale)
        ctx.save_for_backward(x, scale, out, inside)
        return out

    @staticmethod
    def backward(ctx, grad: Tensor):
        x, scale, out, inside = ctx.saved_tensors
        grad_x = grad * inside
        grad_scale_ = None
        if ctx.needs_input_grad[1]:
            # sum g (code - [inside] x/s), the LSQ gradient, as (<g, q> - <g [inside], x>) / s
            if scale.numel() == 1:
                total = _inner(grad, out) - _inner(grad_x, x)
                grad_scale_ = (total / scale.reshape(())).reshape(scale.shape)
            else:
                dims = [d for d in range(x.dim()) if scale.shape[d] == 1]
                grad_scale_ = (grad * out - grad_x * x).sum(dims, keepdim=True) / scale
        return grad_x, grad_scale_, None, None, None, None, None


def fake_quantize(x: Tensor, scale: Tensor, qmin: int, qmax: int, variant: str = "released",
                  frozen: tuple[Tensor, Tensor] | None = None) -> Tensor:
    r"""Uniform symmetric fake quantization with a differentiable scale.

    .. math:: q(x) = s \cdot \mathrm{clip}(\lfloor x/s \rceil, n, p)

    Gradients (Nagel 2022, Eq. 2; LSQ, Eq. 3): with :math:`r = \lfloor x/s \rceil` and the mask :math:`M`,
    :math:`\partial q/\partial x = M` and :math:`\partial q/\partial s = \mathrm{clip}(r, n, p) - M x/s`.

    Args:
        x: Any shape, any floating dtype; half precision is quantized in float32 and returned in its own dtype.
        scale: Positive, one element or broadcastable to ``x`` with the same number of dimensions.
        qmin: Smallest code n.
        qmax: Largest code p.
        variant: ``"paper"``: :math:`M = [n \le x/s \le p]` as printed in Eq. 2. ``"released"``: the mask of the
            authors' code, :math:`M = [n \le r \le p]`, half a bin wider on either side.
        frozen: Mask (bool) and integers, both of the shape of ``x``: where the mask is set, the result is the scale
            times the integer, whatever ``x`` is.
    """
    low_precision = x.dtype in (torch.float16, torch.bfloat16)
    mask, codes = (None, None) if frozen is None else frozen
    y = _FakeQuantize.apply(x.float() if low_precision else x, scale, qmin, qmax, variant == "paper", mask, codes)
    return y.to(x.dtype) if low_precision else y


def blend(mask: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """``a`` where ``mask`` is set, else ``b``, exactly; several times as fast as ``torch.where`` on a processor.

    Differentiable in ``a`` and ``b`` if they are floating point. Integers are combined modulo their range, which is
    exact; floating-point values must be finite.
    """
    share = mask.view(torch.int8).to(b.dtype)  # from a bool the conversion takes seven times as long
    if b.is_floating_point():
        return torch.lerp(b, a.to(b.dtype), share)
    return b + share * (a.to(b.dtype) - b)


def integer_codes(x: Tensor, scale: Tensor, qmin: int, qmax: int, zero_point: Tensor | None = None) -> Tensor:
    """Codes of ``x``, same shape: int8 if they fit, int16 otherwise. Not differentiable."""
    dtype = torch.int8 if qmax <= 127 else torch.int16
    x = x.detach()
    x = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
    codes = (x / scale.detach()).round_()
    if zero_point is not None:
        codes.add_(zero_point)
    return codes.clamp_(qmin, qmax).to(dtype)


def pack_codes(codes: Tensor, bits: int) -> Tensor:
    """Pack integer codes into bytes, ``ceil(numel * bits / 8)`` of them, little-endian bit order.

    Args:
        codes: Integers of any shape, signed or not, that fit in ``bits`` bits (two's complement).
        bits: 1 to 8.
    """
    planes = torch.arange(bits, device=codes.device)
    stream = ((codes.reshape(-1, 1).to(torch.int16) >> planes) & 1).flatten().to(torch.uint8)  # (numel * bits,)
    stream = torch.nn.functional.pad(stream, (0, -stream.numel() % 8)).reshape(-1, 8)  # (bytes, 8)
    return (stream << torch.arange(8, device=codes.device)).sum(1).to(torch.uint8)


def unpack_codes(packed: Tensor, bits: int, shape: tuple[int, ...], signed: bool) -> Tensor:
    """Invert :func:`pack_codes`: int8 codes of ``shape`` (int16 for unsigned 8 bit)."""
    numel = int(torch.Size(shape).numel())
    if packed.numel() != -(-numel * bits // 8):
        raise InputError(f"packed={packed.numel()} bytes do not fit shape={tuple(shape)} at bits={bits}")
    stream = (packed.reshape(-1, 1) >> torch.arange(8, device=packed.device)) & 1  # (bytes, 8)
    stream = stream.flatten()[: numel * bits].reshape(numel, bits).to(torch.int16)
    codes = (stream << torch.arange(bits, device=packed.device)).sum(1)
    if signed:
        codes = codes - ((codes >> (bits - 1)) << bits)
    return codes.to(torch.int16 if bits == 8 and not signed else torch.int8).reshape(shape)
