r"""Confidence-guided annealing (OFQ 2023, section "CGA"; specification section 4).

A converged model is trained on for some epochs at the smallest learning rate. In every iteration only the weights
within the boundary range :math:`BR_x` of a rounding threshold may move, the *unconfident* ones; all others are held
exactly where they are. A weight that leaves the range is held from then on, so that the open set runs dry.
"""

import torch
from torch import Tensor, nn

from vitq.convert import WeightSite, weight_quantizers
from vitq.errors import InputError
from vitq.numerics import check_choice
from vitq.oscillation import boundary_range
from vitq.train.callbacks import Callback, TrainState

READINGS = ("released", "intended")


class ConfidenceGuidedAnnealing(Callback):
    """Training callback: weights outside the boundary range stay bit for bit, whatever the optimizer does.

    Gradients of held weights are set to 0 before clipping; after the optimizer step, whose momentum and weight decay
    would still move them, their old values are put back. Works with any quantizer that has thresholds.

    Args:
        x: Half width of the range in quantization steps, in (0, 0.5]. The paper's is 0.005.
        reading: What happens to query and key under reparameterization, where no entry of their product is a parameter.
            ``"released"``: nothing, they train freely (the released code's mask has no effect). ``"intended"``: the
            gradient of the product's held entries is 0; the product still moves, since each entry of W_q and W_k
            touches a whole row or column of it.
        max_bits: Weights with more bits are left alone.

    Attributes:
        open_share: Share of open weights of the parameters in every step, float32 (steps,).
    """

    def __init__(self, x: float = 0.005, reading: str = "released", max_bits: int = 4) -> None:
        if not 0 < x <= 0.5:
            raise InputError(f"x={x!r}: give a distance in quantization steps, in (0, 0.5]")
        self.x, self.max_bits = x, max_bits
        self.reading = check_choice("reading", reading, READINGS)

    def on_start(self, state: TrainState) -> None:
        low = [s for s in weight_quantizers(state.model).values() if s.quantizer.bits <= self.max_bits]
        self.sites: list[WeightSite] = [s for s in low if s.is_parameter]
        if not self.sites:
            raise InputError(f"max_bits={self.max_bits}: the model has no quantized weight of so few bits")
        if self.reading == "intended":
            for site in low:
                if not site.is_parameter:
                    site.quantizer.register_forward_hook(self._mask_product)
        self.open_share = torch.zeros(state.total_steps, device=state.device)
        self.total = sum(s.latent.numel() for s in self.sites)
        self.held: list[tuple[Tensor, Tensor]] = []
        self.last = torch.zeros((), device=state.device)

    def _mask_product(self, quantizer: nn.Module, args: tuple[Tensor], output: Tensor) -> Tensor:
        if not output.requires_grad:
            return output
        return torch.where(boundary_range(args[0], quantizer, self.x), output, output.detach())

    @torch.no_grad()
    def after_backward(self, state: TrainState) -> None:
        self.held = []
        for site in self.sites:
            is_open = boundary_range(site.latent, site.quantizer, self.x)
            if site.latent.grad is not None:
                site.latent.grad.mul_(is_open)
            self.held.append((is_open, site.latent.clone()))
        self.last = sum(is_open.sum() for is_open, _ in self.held) / self.total
        self.open_share[state.step] = self.last

    @torch.no_grad()
    def after_step(self, state: TrainState) -> None:
        for site, (is_open, before) in zip(self.sites, self.held, strict=True):
            site.latent.copy_(torch.where(is_open, site.latent, before))

    def metrics(self) -> dict[str, Tensor]:
        return {"open": self.last}

    def state_dict(self) -> dict[str, Tensor]:
        return {"open_share": self.open_share}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self.open_share.copy_(state["open_share"])
