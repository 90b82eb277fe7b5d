"""Where a NaN came from: the first module whose parameter or output is not finite."""

import torch
from torch import Tensor, nn

from vitq.errors import InputError


class DivergedError(InputError):
    """Training ran into NaN or infinity."""


@torch.no_grad()
def finite(model: nn.Module) -> bool:
    """Whether all parameters are finite; costs one synchronisation with the device."""
    norms = [p.abs().max() for p in model.parameters() if p.numel()]
    return not norms or bool(torch.isfinite(torch.stack([norm.float() for norm in norms])).all())


def first_bad_parameter(model: nn.Module) -> str | None:
    """Path of the first parameter with a NaN or infinity, in the order of the modules."""
    for name, parameter in model.named_parameters():
        if not torch.isfinite(parameter).all():
            return name
    return None


@torch.no_grad()
def first_bad_output(model: nn.Module, images: Tensor) -> str | None:
    """Path of the first module, in the order of execution, whose output for `images` is not finite."""
    bad: list[str] = []

    def watch(name: str):
        def hook(module: nn.Module, inputs: tuple, output: object) -> None:
            if not bad and isinstance(output, Tensor) and not torch.isfinite(output).all():
                bad.append(name or "the model")
        return hook

    handles = [module.register_forward_hook(watch(name)) for name, module in model.named_modules()]
    modes = [(module, module.training) for module in model.modules()]
    try:
        model.eval()(images)
    finally:
        for handle in handles:
            handle.remove()
        for module, mode in modes:
            module.training = mode
    return bad[0] if bad else None


def diverged(model: nn.Module, images: Tensor | None, step: int, saved: str | None) -> DivergedError:
    """The one error that says what diverged, where, and what is left.

    Args:
        model: as it is now.
        images: a batch to run through it, if no parameter is to blame.
        step: optimizer steps completed.
        saved: the last checkpoint, if any.
    """
    parameter = first_bad_parameter(model)
    if parameter is not None:
        where = f"first in parameter {parameter!r}"
    elif images is not None and not torch.isfinite(images).all():
        where = "in the images"
    else:
        output = None if images is None else first_bad_output(model, images)
        where = f"first in the output of {output!r}" if output else "in the loss alone"
    kept = f"the last good checkpoint is {saved}" if saved else "no checkpoint was written"
    return DivergedError(f"loss: NaN or infinite at step {step}, {where}; lower learning_rate or set clip; {kept}")
