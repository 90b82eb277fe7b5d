"""The weights of a network by their role: query, key, value, projection, feed-forward, embedding, classifier, others.

A fused ``qkv`` layer counts as three parts, its rows 0..C-1, C..2C-1 and 2C..3C-1. Heads are consecutive rows of query,
key and value and consecutive columns of the projection.
"""

from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn.utils import parametrize

from vitq.convert import LAYERS
from vitq.errors import InputError

QUERY_KEY_VALUE = ("query", "key", "value")
ATTENTION_KINDS = (*QUERY_KEY_VALUE, "projection")


@dataclass(frozen=True)
class Part:
    """One weight matrix or kernel.

    Args:
        name: Path; rows of a fused layer are named as the separate layer would be (``blocks.0.attn.query``).
        kind: ``query``, ``key``, ``value``, ``projection``, ``ffn``, ``embedding``, ``classifier``, ``conv``,
            ``depthwise``, ``pointwise`` or ``linear``.
        layer: Path of the module that holds the weight.
        heads: Heads of the attention around it, None elsewhere.
        third: Which third of the rows of a fused layer, None for the whole weight.
    """

    name: str
    kind: str
    layer: str
    heads: int | None = None
    third: int | None = None

    def weight(self, model: nn.Module) -> Tensor:
        """The full-precision weight, detached, (out, in) or (out, in, kh, kw)."""
        module = model.get_submodule(self.layer)
        quantized = parametrize.is_parametrized(module, "weight")
        weight = (module.parametrizations.weight.original if quantized else module.weight).detach()
        return weight if self.third is None else weight.chunk(3)[self.third]

    def by_head(self, weight: Tensor) -> Tensor:
        """A weight of this part as one row a head, (heads, values)."""
        if self.heads is None:
            raise InputError(f"{self.name} has no heads: it is a {self.kind}")
        axis = 1 if self.kind == "projection" else 0
        return weight.unflatten(axis, (self.heads, -1)).movedim(axis, 0).flatten(1)


def parts(model: nn.Module) -> list[Part]:
    """All weights of linear layers and convolutions in model order, float or quantized.

    Raises:
        InputError: The model has none.
    """
    attention = {n: m for n, m in model.named_modules() if hasattr(m, "num_heads") and hasattr(m, "proj")}
    layers = [(n, m) for n, m in model.named_modules() if isinstance(m, LAYERS)]
    if not layers:
        raise InputError("model has no convolution or linear layer")
    classifier = model.get_classifier() if hasattr(model, "get_classifier") else None
    found = []
    for number, (name, module) in enumerate(layers):
        parent, _, own = name.rpartition(".")
        heads = attention[parent].num_heads if parent in attention else None
        if heads is not None and own == "qkv":
            found += [Part(f"{parent}.{kind}", kind, name, heads, i) for i, kind in enumerate(QUERY_KEY_VALUE)]
        elif heads is not None and own in (*QUERY_KEY_VALUE, "proj"):
            found.append(Part(name, "projection" if own == "proj" else own, name, heads))
        elif module is classifier:
            found.append(Part(name, "classifier", name))
        else:
            found.append(Part(name, _kind(model, parent, own, module, number == 0 and bool(attention)), name))
    return found


def _kind(model: nn.Module, parent: str, own: str, module: nn.Module, embedding: bool) -> str:
    siblings = model.get_submodule(parent)
    if own in ("fc1", "fc2") and isinstance(getattr(siblings, "fc1", None), nn.Linear):
        return "ffn"
    if embedding:
        return "embedding"
    if isinstance(module, nn.Linear):
        return "linear"
    if module.groups > 1 and module.groups == module.in_channels:
        return "depthwise"
    return "pointwise" if module.kernel_size == (1, 1) else "conv"
