"""Two optimizers: one for the network, an Adam of its own for the quantizer scales."""

import torch
from torch import nn

from vitq.train.config import TrainConfig

TOKENS = ("pos_embed", "cls_token", "dist_token")


def build_optimizers(model: nn.Module, config: TrainConfig,
                     scales: list[nn.Parameter] | None = None) -> list[torch.optim.Optimizer]:
    """The main optimizer and, if there are scales to be trained apart, their Adam.

    Source: Nagel et al. (2022), released code: SGD with weight decay on all parameters, normalisation included; the
    quantizer scales by Adam at a constant 1e-5 without decay.

    Args:
        model: the network; parameters that need no gradient are left out.
        config: rates, momentum, decay.
        scales: quantizer scales; by default those that `vitq.scale_parameters` finds.
    """
    if scales is None:
        from vitq import scale_parameters
        scales = scale_parameters(model)
    apart = config.scale_learning_rate != "with_weights"
    skip = {id(scale) for scale in scales} if apart else set()
    parameters = [p for p in model.parameters() if p.requires_grad and id(p) not in skip]
    optimizers = [_main(_groups(model, parameters, config), config)]
    scales = [scale for scale in scales if scale.requires_grad]
    if apart and scales:
        optimizers.append(torch.optim.Adam(scales, lr=config.scale_learning_rate, weight_decay=0.0, fused=True))
    return optimizers


def _groups(model: nn.Module, parameters: list[nn.Parameter], config: TrainConfig) -> list[dict]:
    if config.decay == "all":
        return [{"params": parameters, "weight_decay": config.weight_decay}]
    free = _never_decayed(model) if config.decay == "transformer" else set()
    decayed = [p.ndim > 1 and id(p) not in free for p in parameters]
    groups = [{"params": [p for p, does in zip(parameters, decayed, strict=True) if does],
               "weight_decay": config.weight_decay},
              {"params": [p for p, does in zip(parameters, decayed, strict=True) if not does], "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]


def _never_decayed(model: nn.Module) -> set[int]:
    """Ids of the parameters of any shape that OFQ does not decay: tokens, position embeddings, biases, quantizers'."""
    from vitq.quantizers import Quantizer

    free = {id(p) for module in model.modules() if isinstance(module, Quantizer) for p in module.parameters()}
    return free | {id(p) for name, p in model.named_parameters()
                   if name.endswith(TOKENS) or name.endswith((".bias", "parametrizations.bias.original"))}


def _main(groups: list[dict], config: TrainConfig) -> torch.optim.Optimizer:
    # Fused kernels: for a hundred small tensors on a CPU they take a sixth of the time of the default loop.
    if config.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=config.learning_rate, fused=True)
    return torch.optim.SGD(groups, lr=config.learning_rate, momentum=config.momentum, fused=True)
