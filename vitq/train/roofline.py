"""What a training step moves and computes, counted operation by operation, for devices that are not at hand.

A step in eager mode is a sequence of kernels. Each reads its inputs from memory, computes, and writes its outputs, so
that it takes no less than the slowest of three: bytes over bandwidth, operations over peak, and its launch. Counted on
two small batches, both grow linearly with the batch; the sum over kernels at the full batch is the estimate. It knows
no cache and no slow kernel, and the shares of a device that training reaches are assumed: a factor of two either way.
"""

from dataclasses import dataclass

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from vitq.train.callbacks import Callback, TrainState

NO_DATA = ("empty", "new_empty", "empty_like", "empty_strided", "detach", "lift_fresh", "_local_scalar_dense")


@dataclass(frozen=True)
class Device:
    """An accelerator by its data sheet, and the shares of it that training reaches.

    Args:
        name: what it is called.
        bandwidth: of its memory, bytes a second.
        peak: of convolutions and matrix products, operations a second.
        source: where the two come from.
        bandwidth_share: reached by element-wise kernels.
        peak_share: reached by the convolutions of small networks.
        launch: least seconds a kernel.
    """

    name: str
    bandwidth: float
    peak: float
    source: str
    bandwidth_share: float = 0.5
    peak_share: float = 0.25
    launch: float = 6e-6

    def seconds(self, nbytes: float, operations: float) -> float:
        """Least time of one kernel."""
        return max(self.launch, nbytes / (self.bandwidth * self.bandwidth_share),
                   operations / (self.peak * self.peak_share))


A100 = Device("A100 80 GB", 2.039e12, 156e12, "data sheet of the A100 80GB SXM: 2,039 GB/s, 156 TFLOP/s in TF32")


class StepCount(Callback):
    """Counts the kernels of the second training step: bytes and operations of each, and what autograd keeps.

    Attributes:
        kernels: (bytes, operations) in the order of execution.
        saved: bytes of the distinct tensors that the forward pass keeps for the backward pass.
    """

    def __init__(self) -> None:
        self.kernels: list[tuple[int, int]] = []
        self.saved = 0
        self._kept: dict[int, int] = {}

    def after_step(self, state: TrainState) -> None:
        if state.step == 1:
            self._mode = _Counting(self.kernels)
            self._hooks = torch.autograd.graph.saved_tensors_hooks(self._keep, lambda kept: kept)
            self._mode.__enter__()
            self._hooks.__enter__()
        elif state.step == 2:
            self._hooks.__exit__(None, None, None)
            self._mode.__exit__(None, None, None)
            self.saved = sum(self._kept.values())
            self._kept.clear()

    def _keep(self, tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        self._kept[storage.data_ptr()] = storage.nbytes()
        return tensor


class _Counting(TorchDispatchMode):
    def __init__(self, kernels: list[tuple[int, int]]) -> None:
        super().__init__()
        self.kernels = kernels

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        if not func.is_view and func._schema.name.split("::")[-1] not in NO_DATA:
            moved = sum(_bytes(leaf) for leaf in tree_leaves((args, kwargs, out)))
            self.kernels.append((moved, _operations(func, args, kwargs, out)))
        return out


def _operations(func, args: tuple, kwargs: dict, out: object) -> int:
    from torch.utils.flop_counter import flop_registry

    if func is torch.ops.aten.convolution_backward.default:  # torch's own count forgets the groups
        output, _, weight, mask = args[0], args[1], args[2], args[-1]
        return 2 * output.numel() * weight[0].numel() * sum(mask[:2])
    count = flop_registry.get(func._overloadpacket)
    return count(*args, **kwargs, out_val=out) if count else 0


def _bytes(leaf: object) -> int:
    return leaf.numel() * leaf.element_size() if isinstance(leaf, torch.Tensor) else 0


def step_seconds(small: list[tuple[int, int]], large: list[tuple[int, int]], sizes: tuple[int, int], batch: int,
                 device: Device) -> float:
    """Time of a step of `batch` images from the kernels counted at two smaller batches.

    Args:
        small: kernels at `sizes[0]` images.
        large: the same kernels at `sizes[1]` images.
        sizes: the two batch sizes.
        batch: images of the step.
        device: where it would run.
    """
    if len(small) != len(large):
        raise RuntimeError(f"{len(small)} kernels at batch {sizes[0]} and {len(large)} at {sizes[1]}: no common order")
    return sum(device.seconds(*(extrapolate(low, high, sizes, batch) for low, high in zip(a, b, strict=True)))
               for a, b in zip(small, large, strict=True))


def extrapolate(low: float, high: float, sizes: tuple[int, int], batch: int) -> float:
    """The value at `batch` of the straight line through (sizes[0], low) and (sizes[1], high), at least 0."""
    return max(0.0, low + (high - low) / (sizes[1] - sizes[0]) * (batch - sizes[0]))
