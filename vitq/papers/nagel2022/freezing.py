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
    def observe(self, codes: Tensor, threshold: float) -> None:
        """Take in one step's codes as :meth:`step` does; ``frozen`` and ``frozen_codes`` are changed in place."""
        if self.previous is None:
            self.update(codes)
            return
        codes = blend(self.frozen, self.frozen_codes, codes)
        if self.released and threshold > 0:
            self.mean_codes = torch.where(self.started, self.mean_codes, codes.to(torch.float32))
            self.started.fill_(True)
        self._flips(codes)
        if threshold > 0:
            self._freeze(codes, self.frequency > threshold)
        self._average(codes)

    def _freeze(self, codes: Tensor, above: Tensor) -> None:
        write = above if self.released else above & ~self.frozen
        if write.device.type == "cpu" and not write.any():  # on a GPU asking would stall the step
            return
        majority = self.mean_codes.round().to(codes.dtype)  # of the codes before this step
        self.frozen_codes.copy_(blend(write, majority, self.frozen_codes))
        self.frozen |= above


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

    @torch.no_grad()
    def after_step(self, state: TrainState) -> None:
        threshold = self.threshold_at(state.step, state.total_steps)
        self.tracker.observe(self.weights.codes(), threshold)
        if threshold <= 0:
            return
        masks, codes = self.weights.split(self.tracker.frozen), self.weights.split(self.tracker.frozen_codes)
        for name, site in self.weights.sites.items():
            site.quantizer.freeze(masks[name], codes[name])
            if self.variant != "released" and site.is_parameter and not site.quantizer.SCALE_FROM_DATA:
                self._hold(site, masks[name], codes[name])

    @staticmethod
    def _hold(site: WeightSite, mask: Tensor, codes: Tensor) -> None:
        held = site.quantizer.dequantize(codes)
        site.latent.lerp_(held, mask.to(held.dtype))

    def before_evaluation(self, state: TrainState) -> None:
        if self.variant == "released":
            self.tracker.frequency.mul_((1 - self.tracker.momentum) ** self.evaluation_batches)

    def metrics(self) -> dict[str, Tensor]:
        return {"frozen": self.tracker.frozen.float().mean()}

    def state_dict(self) -> dict[str, Tensor]:
        return self.tracker.state_dict()

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self.tracker.load_state_dict(state)
