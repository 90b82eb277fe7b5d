"""A quantized model as a table."""

from typing import TYPE_CHECKING

from torch import nn

from vitq.convert import INPUT, LAYERS, WeightSite, weight_quantizers
from vitq.quantizers import Quantizer

if TYPE_CHECKING:
    import pandas


def _text(q: nn.Module | None) -> str:
    if not isinstance(q, Quantizer):
        return "float"
    sign = {True: "signed", False: "unsigned", None: "open"}[q.signed]
    return f"{q.bits} bit {sign} {type(q).__name__.lower()}"


def describe(model: nn.Module) -> "pandas.DataFrame":
    """One row a layer or attention module: what is quantized and how; ``float`` where it is not."""
    import pandas

    sites, rows = weight_quantizers(model), []
    inside = {id(layer) for site in sites.values() if not site.is_parameter for layer in site.module.modules()}
    for name, module in model.named_modules():
        if name in sites and not sites[name].is_parameter:
            rows.append({"layer": name, "kind": sites[name].kind, "weights": sites[name].shape.numel(),
                         "weight": _text(sites[name].quantizer), "input": "shared"})
        elif isinstance(module, LAYERS) and id(module) not in inside:
            kind = WeightSite(name, module, None).kind
            weight, act = sites[name].quantizer if name in sites else None, getattr(module, INPUT, None)
            numel = module.parametrizations.weight.original.numel() if name in sites else module.weight.numel()
            rows.append({"layer": name, "kind": kind, "weights": numel, "weight": _text(weight), "input": _text(act)})
        elif hasattr(module, "value_quantizer"):
            rows.append({"layer": name, "kind": "attention", "weights": 0, "weight": "none",
                         "input": _operands(module)})
    return pandas.DataFrame(rows)


def _operands(module: nn.Module) -> str:
    product = getattr(module, "query_key_quantizer", None)
    text = f"q, k, v: {_text(module.value_quantizer)}"
    if product is not None:
        text = f"input: {_text(module.input_quantizer)}; W_qk X: {_text(product)}; v: {_text(module.value_quantizer)}"
    return f"{text}; probabilities: {_text(module.probability_quantizer)}"
