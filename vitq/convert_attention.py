"""The part of the conversion that knows transformers: query, key and value, and the sites inside attention."""

from collections.abc import Iterator
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

from torch import nn

from vitq import attention
from vitq.errors import InputError

if TYPE_CHECKING:
    from vitq.convert import QuantSpec

QUANTIZED = tuple(attention.ATTENTION.values())
SHARED = ("query", "key", "value")  # layers that share one input, hence one input quantizer


def modules(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Attention modules of timm that can be quantized, by path."""
    for name, module in list(model.named_modules()):
        if type(module) in attention.ATTENTION:
            yield name, module


def split(model: nn.Module, spec: "QuantSpec") -> None:
    """Split the fused projection of every attention module, in place; see :func:`vitq.attention.split_qkv`.

    Raises:
        InputError: The model has no attention that can be split, or the spec asks for a product that cannot be formed.
    """
    found = list(modules(model))
    if not found:
        raise InputError(f"query_key={spec.query_key!r}: the model has no attention with a qkv layer; use 'fused'")
    for name, module in found:
        if spec.query_key == "reparameterized":
            attention.check_reparameterizable(name, module)
    for _, module in found:
        attention.split_qkv(module)


def site_names(model: nn.Module, spec: "QuantSpec") -> list[str]:
    """Paths of the quantizers inside attention, which ``overrides`` may name too."""
    sites = attention.SITES[spec.query_key]
    return [f"{name}.{site}_quantizer" for name, _ in modules(model) for site in sites] if spec.attention else []


def quantize(model: nn.Module, spec: "QuantSpec", bits: dict[str, tuple[int | None, int | None]]) -> set[str]:
    """Quantize what is inside attention, in place.

    Args:
        model: Its qkv layers are split unless the spec says ``"fused"``.
        spec: What is quantized.
        bits: (weight bits, input bits) by layer path.

    Returns:
        Paths of the layers that the query-key products have taken over.
    """
    taken = set()
    for name, module in modules(model):
        device = module.proj.weight.device
        quantizers: dict[str, nn.Module | None] = {"input": None}
        for site in attention.SITES[spec.query_key]:
            site_bits = _site_bits(f"{name}.{site}_quantizer", spec)
            signed = False if site == "probability" else None
            quantizers[site] = nn.Identity() if site_bits is None else spec.act_quantizer(site_bits, signed, site)
        if spec.query_key != "fused" and bits[f"{name}.value"][1] is not None:
            quantizers["input"] = spec.act_quantizer(bits[f"{name}.value"][1])
        attention.attach(module, spec.query_key, {n: q if q is None else q.to(device) for n, q in quantizers.items()})
        if spec.query_key == "reparameterized":
            _reparameterize(name, module, spec, bits[f"{name}.query"][0])
            taken |= {f"{name}.query", f"{name}.key"}
    return taken


def _site_bits(site: str, spec: "QuantSpec") -> int | None:
    bits = spec.act_bits if spec.attention else None
    for pattern, entry in spec.overrides.items():
        if fnmatchcase(site, pattern):
            bits = entry.get("act_bits", bits)
    return bits


def _reparameterize(name: str, module: nn.Module, spec: "QuantSpec", bits: int | None) -> None:
    from vitq.convert import set_weight_range
    from vitq.papers.ofq2023.qkr import QueryKeyReparameterization

    if bits is None:
        raise InputError(f"query_key='reparameterized': {name}.query has no weight bits; give weight_bits")
    quantizer = spec.weight_quantizer(bits)
    if not spec.query_bias:
        module.query.bias = None
    product = QueryKeyReparameterization(module.query, module.key, module.num_heads, quantizer)
    set_weight_range(f"{name}.query_key", product.latent.detach(), quantizer)
    del module.query, module.key
    module.add_module("query_key", product)


def input_site(model: nn.Module, name: str) -> dict[str, int]:
    """Further options of a quantizer of tokens that lie on a map: the number of columns (Swin's MLP layers)."""
    block = name.rpartition(".mlp.")[0]
    resolution = getattr(model.get_submodule(block), "input_resolution", None) if block else None
    return {} if resolution is None else {"columns": resolution[1]}
