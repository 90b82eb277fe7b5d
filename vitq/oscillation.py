r"""Oscillation of quantized weights: tracking its frequency, and statistics of weights near rounding thresholds.

Nagel 2022, section 4.1. With the change of a weight's code :math:`D_t = \bar w_t - \bar w_{t-1}`, an oscillation
:math:`o_t = 1` occurs when :math:`D_t \ne 0` and its sign differs from that of the last change. Its frequency is the
exponential moving average :math:`f_t = m\,o_t + (1 - m) f_{t-1}`, :math:`f_0 = 0`. Both flips of an up-down pair
count, so a steady pattern with period P tends to :math:`f = 2/P`.
"""

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from vitq.convert import WeightSite, weight_quantizers
from vitq.errors import InputError
from vitq.numerics import check_choice
from vitq.quantizers import Quantizer
from vitq.quantizers.offset_lsq import chunks
from vitq.train.callbacks import Callback, TrainState

REPORTING_THRESHOLD = 0.005  # "oscillating" in Tables 4 and 5 of Nagel 2022: f above this


class OscillationTracker(nn.Module):
    """Oscillation frequency of a tensor of integer codes. All state is in buffers.

    Call :meth:`update` once per optimizer step, in training only: codes that are watched more often than they can
    change make every frequency too small.

    Args:
        momentum: m, in (0, 1]. A threshold on the frequency should be at least 2 to 3 times m, and 1/m well below the
            number of steps.
        variant: Does the very first change of a weight count? ``"corrected"``: no, it has no earlier change to differ
            from (the rule of the released code); ``"paper"``: yes, as Algorithm 1 is printed.

    Attributes:
        frequency: float32, f of every weight, in [0, 1].
        mean_codes: float32, moving average of the codes with the same momentum, started at the first codes seen.
    """

    def __init__(self, momentum: float = 0.01, variant: str = "corrected") -> None:
        super().__init__()
        if not 0 < momentum <= 1:
            raise InputError(f"momentum={momentum!r}: give a number in (0, 1]")
        self.momentum = momentum
        self.variant = check_choice("variant", variant, ("corrected", "paper"))
        for name in ("frequency", "mean_codes", "previous", "direction"):
            self.register_buffer(name, None)

    @torch.no_grad()
    def update(self, codes: Tensor) -> Tensor:
        """Take in the codes after one optimizer step (any shape, the same every time); return o_t, bool."""
        oscillated = torch.zeros_like(codes, dtype=torch.bool)
        if self.previous is None:
            self._start(codes)
            return oscillated
        for rows in self._parts(codes):
            oscillated[rows] = self._flips(codes[rows], rows)
            self._average(codes[rows], rows)
        return oscillated

    def _parts(self, codes: Tensor) -> list:
        """Indices of the parts that are worked on one after another, all of them at once on a GPU."""
        if codes.shape != self.previous.shape:
            raise InputError(f"codes has shape {tuple(codes.shape)}, but was {tuple(self.previous.shape)} before")
        return (chunks(codes) if codes.dim() else None) or [...]

    def _flips(self, codes: Tensor, rows: slice) -> Tensor:
        """o_t of one part, in bytes: comparing with a number or converting from bool takes many times as long."""
        previous, direction = self.previous[rows], self.direction[rows]
        change = (codes > previous).view(torch.int8) - (codes < previous).view(torch.int8)
        oscillated = (change * direction).lt_(0)
        if self.variant == "paper":
            oscillated |= change.abs() > direction.abs()  # the first change
        direction.add_(change, alpha=2).clamp_(-1, 1)  # the sign of the last change, never forgotten
        self.frequency[rows].lerp_(oscillated.to(self.frequency.dtype), self.momentum)
        previous.copy_(codes)
        return oscillated.view(torch.bool)

    def _average(self, codes: Tensor, rows: slice) -> None:
        self.mean_codes[rows].lerp_(codes.to(self.mean_codes.dtype), self.momentum)

    def _start(self, codes: Tensor) -> None:
        self.previous = codes.clone()
        self.direction = torch.zeros_like(codes, dtype=torch.int8)
        self.frequency = torch.zeros_like(codes, dtype=torch.float32)
        self.mean_codes = codes.to(torch.float32)

    def oscillating(self, threshold: float = REPORTING_THRESHOLD) -> Tensor:
        """Mask of the weights with f above ``threshold``."""
        if self.frequency is None:
            raise InputError("the tracker has seen no codes yet: call update first")
        return self.frequency > threshold

    def _load_from_state_dict(self, state_dict, prefix, *args) -> None:
        for name in self._buffers:  # the shapes are known only after the first codes
            saved, own = state_dict.get(prefix + name), getattr(self, name)
            device = None if own is None else own.device
            setattr(self, name, None if saved is None else torch.empty_like(saved, device=device))
        super()._load_from_state_dict(state_dict, prefix, *args)


class LowBitWeights:
    """The quantized weights of a model as one flat tensor of codes, so that a remedy is a few operations, not many.

    What a quantizer leaves in floating point (``float_part``, see :mod:`vitq.papers.vvtq2023.sensitivity`) keeps its
    place, but its codes are always 0, so that it never oscillates, and it is not in ``count``.

    Args:
        model: Made by :func:`vitq.quantize`.
        max_bits: Weights with more bits are left out (the 8-bit first and last layers, as in the released code).
    """

    def __init__(self, model: nn.Module, max_bits: int = 4) -> None:
        found = {n: s for n, s in weight_quantizers(model).items() if s.quantizer.bits <= max_bits}
        if not found:
            raise InputError(f"max_bits={max_bits}: the model has no quantized weight of so few bits")
        self.sites: dict[str, WeightSite] = found
        self.shapes = [site.shape for site in found.values()]
        self.sizes = [shape.numel() for shape in self.shapes]
        free = (site.codes()[part].numel() for site, part in self._with_float_part() if part is not None)
        self.count = sum(self.sizes) - sum(free)

    def codes(self) -> Tensor:
        """All codes, flat, int8."""
        found = []
        for site, part in self._with_float_part():
            codes = site.codes()
            if part is not None:
                codes[part] = 0
            found.append(codes.flatten())
        return torch.cat(found)

    def _with_float_part(self) -> Iterator[tuple[WeightSite, tuple | None]]:
        return ((site, getattr(site.quantizer, "float_part", None)) for site in self.sites.values())

    def split(self, flat: Tensor) -> dict[str, Tensor]:
        """Views of a flat tensor by module path, each in the shape of its weight."""
        parts = flat.split(self.sizes)
        return {n: p.view(shape) for p, n, shape in zip(parts, self.sites, self.shapes, strict=True)}


class OscillationTracking(Callback):
    """Training callback that tracks all low-bit weights; changes nothing in training.

    Args:
        momentum: m of the frequency.
        max_bits: See :class:`LowBitWeights`.
        variant: See :class:`OscillationTracker`.
        threshold: For the logged share of oscillating weights.
    """

    def __init__(self, momentum: float = 0.01, max_bits: int = 4, variant: str = "corrected",
                 threshold: float = REPORTING_THRESHOLD) -> None:
        self.tracker = OscillationTracker(momentum, variant)
        self.max_bits = max_bits
        self.threshold = threshold

    def on_start(self, state: TrainState) -> None:
        self.weights = LowBitWeights(state.model, self.max_bits)
        self.tracker.update(self.weights.codes())

    def after_step(self, state: TrainState) -> None:
        self.tracker.update(self.weights.codes())

    def frequencies(self) -> dict[str, Tensor]:
        """f by module path, in the shape of the weight."""
        return self.weights.split(self.tracker.frequency)

    def mean_codes(self) -> dict[str, Tensor]:
        """Moving average of the codes by module path."""
        return self.weights.split(self.tracker.mean_codes)

    def metrics(self) -> dict[str, Tensor]:
        return {"oscillating": self.tracker.oscillating(self.threshold).sum() / self.weights.count}

    def state_dict(self) -> dict[str, Tensor]:
        return self.tracker.state_dict()

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self.tracker.load_state_dict(state)


@torch.no_grad()
def distance_to_code(weight: Tensor, quantizer: Quantizer) -> Tensor:
    """Code minus latent weight in steps (``code - w/s``), within [-0.5, 0.5] unless clipped.

    Peaks at +-0.5 mean oscillation (Nagel 2022, Fig. 3).
    """
    return quantizer.codes_of(weight) - quantizer.position(weight)


@torch.no_grad()
def boundary_range(weight: Tensor, quantizer: Quantizer, x: float) -> Tensor:
    """Mask of the weights within ``x`` steps of an internal rounding threshold, inclusive (OFQ, BR_x).

    Thresholds lie halfway between neighbouring codes; clipped weights beyond the outermost one are outside.

    Args:
        weight: Latent weight.
        quantizer: Its quantizer; thresholds lie at the half-integers of its ``position``.
        x: Half width in units of one quantization step, in (0, 0.5].
    """
    if not 0 < x <= 0.5:
        raise InputError(f"x={x!r}: give a distance in quantization steps, in (0, 0.5]")
    position = quantizer.position(weight)
    nearest = (position - 0.5).round_().clamp_(quantizer.qmin, quantizer.qmax - 1).add_(0.5)
    return position.sub_(nearest).abs_() <= x


@torch.no_grad()
def occupancy(model: nn.Module) -> dict[str, Tensor]:
    """Share of the weights on each code, lowest code first, by module path."""
    shares = {}
    for name, site in weight_quantizers(model).items():
        codes = site.codes().flatten().to(torch.int64) - site.quantizer.qmin
        shares[name] = torch.bincount(codes, minlength=2**site.quantizer.bits) / codes.numel()
    return shares
