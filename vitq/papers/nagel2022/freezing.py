"""Iterative weight freezing (Nagel 2022, section 4.3, Algorithm 1)."""

import torch
from torch import Tensor

from vitq.convert import WeightSite
from vitq.errors import InputError
from vitq.numerics import blend, check_choice
from vitq.oscillation import LowBitWeights, OscillationTracker
from vitq.train.callbacks import Callback, TrainState
from vitq.train.schedules import cosine_schedule

VARIANTS = ("corrected", "paper", "released")


class FreezingTracker(OscillationTracker):
    r"""Tracks codes and freezes those that oscillate too often, to the integer they had most of the time.

    A weight whose frequency exceeds :math:`f_{th}` is frozen for good to :math:`\lfloor \mathrm{ema} \rceil`, the
    rounded moving average of its codes before this step.

    Args:
        momentum: m of both averages.
        variant: ``"corrected"`` (default): the first change does not count, the average starts with the first codes,
            and the stored integer is written once. ``"paper"``: Algorithm 1 as printed, the first change counts too.
            ``"released"``: what the authors' code does: the average starts only when the threshold first exceeds 0, and
            the stored integer is rewritten as long as the frequency is above the threshold, so that it can flip.

    Attributes:
        frozen: bool. frozen_codes: the stored integers.
    """

    def __init__(self, momentum: float = 0.01, variant: str = "corrected") -> None:
        check_choice("variant", variant, VARIANTS)
        super().__init__(momentum, "paper" if variant == "paper" else "corrected")
        self.released = variant == "released"
        self.register_buffer("frozen", None)
        self.register_buffer("frozen_codes", None)
        self.register_buffer("started", None)

    def _start(self, codes: Tensor) -> None:
        super()._start(codes)
        self.frozen = torch.zeros_like(codes, dtype=torch.bool)
        self.frozen_codes = codes.clone()
        self.started = torch.zeros((), dtype=torch.bool, device=codes.device)

    @torch.no_grad()
    def step(self, codes: Tensor, threshold: float) -> Tensor:
        """Take in one step's codes (frozen entries are replaced by their integer); return the codes to use from now on.

        Args:
            codes: Codes of the latent weights after the optimizer step.
            threshold: f_th of this step; 0 freezes nothing.
        """
        self.observe(codes, threshold)
        return blend(self.frozen, self.frozen_codes, codes)

    @torch.no_grad()
    def observe(self, codes: Tensor, threshold: float) -> bool:
        """Take in one step's codes as :meth:`step` does; ``frozen`` and ``frozen_codes`` are changed in place.

        Returns:
            Whether they may have changed; on a GPU always True, as asking would stall the step.
        """
        if self.previous is None:
            self.update(codes)
            return True
        begins, written = self.released and threshold > 0, False
        for rows in self._parts(codes):
            part = blend(self.frozen[rows], self.frozen_codes[rows], codes[rows])
            if begins:
                mean = self.mean_codes[rows]
                mean.copy_(torch.where(self.started, mean, part.to(mean.dtype)))
            self._flips(part, rows)
            if threshold > 0:
                written |= self._freeze(rows, threshold)
            self._average(part, rows)
        if begins:
            self.started.fill_(True)
        return written

    def _freeze(self, rows: slice, threshold: float) -> bool:
        """Freeze one part, before its averages take in the codes of this step; return whether it may have changed."""
        frequency, frozen, codes = self.frequency[rows], self.frozen[rows], self.frozen_codes[rows]
        ask = frequency.device.type == "cpu" and frequency.numel() > 0
        if ask and not frequency.amax() > threshold:
            return False
        above = frequency > threshold
        write = above if self.released else above > frozen  # above and not frozen
        if ask and not write.view(torch.int8).max():  # several times as fast as any() of a bool
            return False
        codes.copy_(blend(write, self.mean_codes[rows].round().to(codes.dtype), codes))
        frozen |= above
        return True


class IterativeFreezing(Callback):
    """Training callback: freezes oscillating weights in the integer domain.

    Frozen weights live in the quantizer (mask and codes are in the model's state dict): their gradient is 0, and a
    later change of the scale still moves their value. Corrected and paper variant also hold the latent weight at
    ``s * code``, so that histograms and checkpoints tell the truth; the released code lets it drift. Where the scale is
    a statistic of the weights (StatsQ) or the weight is computed from others, nothing is held: a held weight would move
    the scale that holds it.

    Args:
        threshold: f_th at the start.
        final: f_th at the end, reached along a cosine; ``None`` keeps ``threshold`` throughout the run.
        momentum: m; thresholds should be 2 to 3 times as large or more.
        begin: With ``final``: share of the run before which nothing is frozen (released code: 0.25).
        variant: See :class:`FreezingTracker`.
        max_bits: Weights with more bits are left alone.
        evaluation_batches: ``"released"`` only: batches that each evaluation passes through the model. The released
            tracker runs there too, which shrinks every frequency by (1 - m) a batch.
    """

    def __init__(self, threshold: float, final: float | None = None, momentum: float = 0.001, begin: float = 0.25,
                 variant: str = "corrected", max_bits: int = 4, evaluation_batches: int = 0) -> None:
        for name, value in (("threshold", threshold), ("final", final)):
            if value is not None and not 0 <= value <= 1:
                raise InputError(f"{name}={value!r}: a frequency threshold lies in [0, 1] (0 is off)")
        self.tracker = FreezingTracker(momentum, variant)
        self.threshold, self.final, self.begin = threshold, final, begin
        self.variant, self.max_bits, self.evaluation_batches = variant, max_bits, evaluation_batches

    def threshold_at(self, step: int, total_steps: int) -> float:
        """f_th of optimizer step number ``step`` (counted from 1); 0 means off."""
        if self.final is None:
            return self.threshold
        if step < self.begin * total_steps:
            return 0.0
        return cosine_schedule(step, total_steps, self.threshold, self.final, self.begin)

    def on_start(self, state: TrainState) -> None:
        self.weights = LowBitWeights(state.model, self.max_bits)
        self.tracker.observe(self.weights.codes(), 0.0)
        self.holdable = [site for site in self.weights.sites.values() if self._holdable(site)]
        self.held: list[WeightSite] | None = None  # those with a frozen entry, once masks were handed over

    def _holdable(self, site: WeightSite) -> bool:
        return self.variant != "released" and site.is_parameter and not site.quantizer.SCALE_FROM_DATA

    @torch.no_grad()
    def after_step(self, state: TrainState) -> None:
        threshold = self.threshold_at(state.step, state.total_steps)
        changed = self.tracker.observe(self.weights.codes(), threshold)
        if threshold <= 0:
            return
        first = self.held is None
        if changed or first:
            self._hand_over()
        for site in self.holdable if first else self.held:
            self._hold(site)

    def _hand_over(self) -> None:
        """Give masks and codes to the quantizers, and find the latent weights that have an entry to hold."""
        masks, codes = self.weights.split(self.tracker.frozen), self.weights.split(self.tracker.frozen_codes)
        for name, site in self.weights.sites.items():
            site.quantizer.freeze(masks[name], codes[name])
        everywhere = self.tracker.frozen.device.type != "cpu"  # where asking would stall the step
        self.held = [s for s in self.holdable if everywhere or masks[s.name].view(torch.int8).max()]

    @staticmethod
    def _hold(site: WeightSite) -> None:
        mask, codes = site.quantizer.frozen, site.quantizer.frozen_codes
        held = site.quantizer.dequantize(codes)
        site.latent.lerp_(held, mask.view(torch.int8).to(held.dtype))

    def before_evaluation(self, state: TrainState) -> None:
        if self.variant == "released":
            self.tracker.frequency.mul_((1 - self.tracker.momentum) ** self.evaluation_batches)

    def metrics(self) -> dict[str, Tensor]:
        return {"frozen": self.tracker.frozen.float().mean()}

    def state_dict(self) -> dict[str, Tensor]:
        return self.tracker.state_dict()

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self.tracker.load_state_dict(state)
        self.held = None
