"""What OFQ says happens in training, as callbacks that watch it: reversals, restless scales, gradients of q and k."""

import torch
from torch import Tensor, nn

from vitq.convert import WeightSite, weight_quantizers
from vitq.errors import InputError
from vitq.oscillation import LowBitWeights, OscillationTracker
from vitq.train.callbacks import Callback, TrainState


class ScaleTrace(Callback):
    """Records, in every optimizer step, the scales of all low-bit weights and how many codes reverse their direction.

    Args:
        max_bits: Weights with more bits are left out.
        last: Steps to keep the scales of, counted from the end of the run.

    Attributes:
        scales: Step sizes, one for each row of each weight, float32 (last, rows).
        reversals: Share of the weights whose code moved against its last move, float32 (steps,).
        flips: Share of the weights whose code moved, float32 (steps,).
    """

    def __init__(self, max_bits: int = 4, last: int = 100) -> None:
        if last < 1:
            raise InputError(f"last={last!r}: give at least 1 step")
        self.max_bits, self.last = max_bits, last

    def on_start(self, state: TrainState) -> None:
        self.weights = LowBitWeights(state.model, self.max_bits)
        self.last = min(self.last, state.total_steps)
        self.tracker = OscillationTracker(1.0)
        self.tracker.update(self.weights.codes())
        self.scales = torch.zeros(self.last, len(self._scales()), device=state.device)
        self.reversals = torch.zeros(state.total_steps, device=state.device)
        self.flips = torch.zeros(state.total_steps, device=state.device)

    @torch.no_grad()
    def _scales(self) -> Tensor:
        sites = self.weights.sites.values()
        return torch.cat([s.quantizer.step_size(s.latent).flatten() for s in sites])

    @torch.no_grad()
    def after_step(self, state: TrainState) -> None:
        before, codes = self.tracker.previous, self.weights.codes()
        self.flips[state.step - 1] = (codes != before).float().mean()
        self.reversals[state.step - 1] = self.tracker.update(codes).float().mean()
        row = state.step - 1 - (state.total_steps - self.last)
        if row >= 0:
            self.scales[row] = self._scales()

    def state_dict(self) -> dict[str, Tensor]:
        tracked = {f"tracker.{name}": value for name, value in self.tracker.state_dict().items()}
        return {"scales": self.scales, "reversals": self.reversals, "flips": self.flips} | tracked

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        for name in ("scales", "reversals", "flips"):
            getattr(self, name).copy_(state[name])
        tracked = {n.removeprefix("tracker."): v for n, v in state.items() if n.startswith("tracker.")}
        self.tracker.load_state_dict(tracked)


def scale_jitter(scales: Tensor) -> dict[str, float]:
    r"""How restless scales are, from a trace (steps, rows).

    Returns:
        ``variance``: mean over rows of :math:`\mathrm{var}(s) / \mathrm{mean}(s)^2` (T14 of the specification);
        ``step``: mean of :math:`|s_t - s_{t-1}| / s_{t-1}`; ``reversal``: share of steps in which s turns round.
    """
    scales = scales.double()
    moves = scales.diff(dim=0)
    turns = (moves[1:] * moves[:-1] < 0).double().mean()
    return {"variance": (scales.var(0) / scales.mean(0).square()).mean().item(),
            "step": (moves.abs() / scales[:-1]).mean().item(), "reversal": turns.item()}


class QueryKeyTrace(Callback):
    """Records how query and key disturb each other over the last steps of a run.

    Args:
        last: Steps to keep, counted from the end.
        images: Training images of the probe batch, on which gradients are compared from step to step.

    Attributes:
        flips: Codes of query, key and value that moved, by block, float32 (last, blocks, 3); 0 for query and key where
            they are not quantized themselves.
        change: :math:`|g_t - g_{t-1}| / |g_{t-1}|` of the probe gradient of W_q and W_k, (last, blocks, 2).
        cosine: Cosine between g_t and g_{t-1}, (last, blocks, 2).
    """

    def __init__(self, last: int = 60, images: int = 64) -> None:
        if last < 2:
            raise InputError(f"last={last!r}: give at least 2 steps")
        self.last, self.images = last, images

    def on_start(self, state: TrainState) -> None:
        from vitq import convert_attention

        blocks = [(n, m) for n, m in state.model.named_modules() if type(m) in convert_attention.QUANTIZED]
        if not blocks:
            raise InputError("model: it has no quantized attention to watch")
        sites = weight_quantizers(state.model)
        self.blocks = [_Block(m, sites.get(f"{n}.qkv")) for n, m in blocks]
        images, labels = next(iter(state.batches()))
        self.probe = images[: self.images], labels[: self.images]
        shape = (min(self.last, state.total_steps), len(blocks))
        self.flips = torch.zeros(*shape, 3, device=state.device)
        self.change, self.cosine = (torch.zeros(*shape, 2, device=state.device) for _ in range(2))

    def after_step(self, state: TrainState) -> None:
        row = state.step - 1 - (state.total_steps - len(self.flips))
        if row < -1:
            return
        gradients = torch.autograd.grad(self._loss(state.model), [w for b in self.blocks for w in b.weights()])
        for i, block in enumerate(self.blocks):
            flips, change, cosine = block.step(gradients[2 * i : 2 * i + 2])
            if row >= 0:
                self.flips[row, i], self.change[row, i], self.cosine[row, i] = flips, change, cosine

    def _loss(self, model: nn.Module) -> Tensor:
        logits = model(self.probe[0])
        return nn.functional.cross_entropy(logits[0] if isinstance(logits, tuple) else logits, self.probe[1])

    def state_dict(self) -> dict[str, Tensor]:
        return {"flips": self.flips, "change": self.change, "cosine": self.cosine}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        for name in state:
            getattr(self, name).copy_(state[name])


class _Block:
    """One attention module under watch: its W_q and W_k, fused or not, and what they were one step ago."""

    def __init__(self, module: nn.Module, fused: WeightSite | None) -> None:
        self.module, self.fused = module, fused
        self.codes = self.gradients = None

    def weights(self) -> list[Tensor]:
        if self.fused is not None:  # one parameter: its gradient is cut into thirds
            return [self.fused.latent, self.fused.latent]
        return [self.module.query_key.query.weight, self.module.query_key.key.weight]

    def step(self, gradients: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        q, k = gradients
        if self.fused is not None:
            q, k = q.chunk(3)[0], k.chunk(3)[1]
        flips, change, cosine = (torch.zeros(size, device=q.device) for size in (3, 2, 2))
        codes = None if self.fused is None else self.fused.codes()
        if self.gradients is not None:
            pairs = list(zip((q, k), self.gradients, strict=True))
            change = torch.stack([(new - old).norm() / old.norm() for new, old in pairs])
            cosine = torch.stack([nn.functional.cosine_similarity(n.flatten(), o.flatten(), 0) for n, o in pairs])
            if codes is not None:
                flips = torch.stack([part.float().sum() for part in (codes != self.codes).chunk(3)])
        self.codes, self.gradients = codes, (q, k)
        return flips, change, cosine
