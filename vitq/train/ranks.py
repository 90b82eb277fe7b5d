"""One process or many: what the loop needs of Hugging Face Accelerate, and nothing of it inside a step."""

import contextlib
import warnings
from typing import Any

import torch
from torch import Tensor, nn

from vitq.errors import MissingError


class Ranks:
    """The processes of this run, started by torchrun or being this one alone.

    Args:
        device: "auto", "cpu" or "cuda".

    Raises:
        MissingError: CUDA was asked for and is not there.
    """

    def __init__(self, device: str = "auto"):
        if device == "cuda" and not torch.cuda.is_available():
            raise MissingError("train.device='cuda': no CUDA device is usable here; give device: cpu or auto")
        from accelerate import Accelerator, DistributedDataParallelKwargs
        from accelerate.state import AcceleratorState, PartialState
        cpu = device == "cpu" or not torch.cuda.is_available()
        if PartialState._shared_state and (PartialState().device.type == "cpu") != cpu:
            AcceleratorState._reset_state(reset_partial_state=True)
        # Buffers stay local: trackers agree on all ranks by themselves, batch norm is averaged before evaluation.
        self.accelerator = Accelerator(
            cpu=cpu, kwargs_handlers=[DistributedDataParallelKwargs(broadcast_buffers=False)])
        self.device = self.accelerator.device
        self.count, self.index = self.accelerator.num_processes, self.accelerator.process_index
        self.part = (self.index, self.count)
        self.main = self.accelerator.is_main_process

    def wrap(self, model: nn.Module, compile: bool) -> nn.Module:
        """The module to call in training: data parallel over several ranks, compiled on demand."""
        wrapped = model
        if self.count > 1:
            # Layouts of 1 x 1 kernels that differ in name only, and a successor of the option that torch 2.8 lacks.
            warnings.filterwarnings("ignore", message="Grad strides do not match bucket view strides")
            warnings.filterwarnings("ignore", message="`broadcast_buffers` is deprecated", category=FutureWarning)
            wrapped = self.accelerator.prepare_model(model)
        return torch.compile(wrapped) if compile else wrapped

    def accumulate(self, wrapped: nn.Module, last: bool) -> contextlib.AbstractContextManager:
        """Context of one part of a batch: gradients are exchanged in the last part only."""
        if last or self.count == 1:
            return contextlib.nullcontext()
        return self.accelerator.no_sync(wrapped)

    def sum(self, tensor: Tensor) -> Tensor:
        """Sum over ranks."""
        return tensor if self.count == 1 else self.accelerator.reduce(tensor, "sum")

    def average_batch_norm(self, model: nn.Module) -> None:
        """Replace the running statistics by their mean over ranks, each of which saw other images."""
        if self.count == 1:
            return
        for module in model.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is not None:
                for buffer in (module.running_mean, module.running_var):
                    buffer.copy_(self.sum(buffer.clone()) / self.count)

    def gather(self, value: Any) -> list[Any]:
        """The value of each rank, in order."""
        if self.count == 1:
            return [value]
        from accelerate.utils import gather_object
        return gather_object([value])

    def wait(self) -> None:
        """Wait for all ranks."""
        self.accelerator.wait_for_everyone()
