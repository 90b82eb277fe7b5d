"""timm's attention modules with the matrix products of attention quantized.

The class of a module is exchanged and quantizers are added to it; softmax, relative position bias and mask stay in
floating point. Three forms of the query-key product:

- ``"fused"``: timm's one ``qkv`` layer; query, key, value and the (unsigned) probabilities are quantized.
- ``"separate"``: three layers ``query``, ``key``, ``value``, split from ``qkv`` exactly.
- ``"reparameterized"``: OFQ's QKR (:mod:`vitq.papers.ofq2023.qkr`).
"""

from timm.layers.attention import Attention, maybe_add_mask, resolve_self_attn_mask
from timm.models.swin_transformer import WindowAttention
from torch import Tensor, nn

from vitq.errors import InputError

FORMS = ("fused", "separate", "reparameterized")
SITES = {
    "fused": ("query", "key", "value", "probability"),
    "separate": ("query", "key", "value", "probability"),
    "reparameterized": ("query_key", "value", "probability"),
}


class _Quantized:
    """What both kinds of attention share; a mixin, made by `attach`."""

    def _values(self, v: Tensor) -> Tensor:
        """(B, N, C) to quantized values (B, heads, N, d)."""
        return self.value_quantizer(v.unflatten(-1, (self.num_heads, -1)).transpose(1, 2))

    def _logits_and_values(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Logits (B, heads, N, N), scaled by 1/sqrt(d), and quantized values (B, heads, N, d)."""
        if self.form == "fused":
            q, k, v = self.qkv(x).chunk(3, dim=-1)  # (B, N, C) each
        else:
            if self.input_quantizer is not None:
                x = self.input_quantizer(x)
            v = self.value(x)
            if self.form == "reparameterized":
                return self._reparameterized_logits(x) * self.scale, self._values(v)
            q, k = self.query(x), self.key(x)
        q, k = (t.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for t in (q, k))  # (B, heads, N, d)
        q, k = self.query_quantizer(self.q_norm(q)), self.key_quantizer(self.k_norm(k))
        return (q @ k.transpose(-2, -1)) * self.scale, self._values(v)

    def _reparameterized_logits(self, x: Tensor) -> Tensor:
        z, column = self.query_key(x)  # (B, N, heads, C), (B, N, heads)
        z = self.query_key_quantizer(z).transpose(1, 2).flatten(1, 2)  # (B, heads * N, C)
        logits = (x @ z.transpose(1, 2)).unflatten(-1, (self.num_heads, -1))  # (B, N, heads, N)
        if column is not None:
            logits = logits + column.transpose(1, 2).unsqueeze(1)
        return logits.transpose(1, 2)  # (B, heads, N, N)


class QuantAttention(_Quantized, Attention):
    """Multi-head self-attention of ViT and DeiT."""

    def forward(self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
        gate = self.gate(x).sigmoid() if self.gate is not None else None
        logits, v = self._logits_and_values(x)
        logits = maybe_add_mask(logits, resolve_self_attn_mask(x.shape[1], logits, attn_mask, is_causal))
        probabilities = self.attn_drop(self.probability_quantizer(logits.softmax(dim=-1)))
        x = (probabilities @ v).transpose(1, 2).flatten(2)  # (B, N, C)
        x = self.norm(x)
        return self.proj_drop(self.proj(x if gate is None else x * gate))


class QuantWindowAttention(_Quantized, WindowAttention):
    """Shifted-window attention of Swin; B counts windows of all images."""

    q_norm = k_norm = staticmethod(lambda x: x)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        logits, v = self._logits_and_values(x)
        logits = logits + self._get_rel_pos_bias()
        if mask is not None:
            windows = logits.unflatten(0, (-1, mask.shape[0])) + mask.unsqueeze(1)  # (images, windows, heads, N, N)
            logits = windows.flatten(0, 1)
        probabilities = self.attn_drop(self.probability_quantizer(self.softmax(logits)))
        return self.proj_drop(self.proj((probabilities @ v).transpose(1, 2).flatten(2)))  # (B, N, C)


ATTENTION: dict[type[nn.Module], type[nn.Module]] = {Attention: QuantAttention, WindowAttention: QuantWindowAttention}


def split_qkv(module: nn.Module) -> None:
    """Replace ``qkv`` by three layers ``query``, ``key`` and ``value`` with its rows 0..C-1, C..2C-1 and 2C..3C-1."""
    rows, columns = module.qkv.weight.shape
    for number, name in enumerate(("query", "key", "value")):
        layer = nn.Linear(columns, rows // 3, bias=module.qkv.bias is not None, device="meta")
        part = slice(number * rows // 3, (number + 1) * rows // 3)
        layer.weight = nn.Parameter(module.qkv.weight.detach()[part].clone())
        if module.qkv.bias is not None:
            layer.bias = nn.Parameter(module.qkv.bias.detach()[part].clone())
        module.add_module(name, layer)
    del module.qkv


def attach(module: nn.Module, form: str, quantizers: dict[str, nn.Module | None]) -> None:
    """Turn a timm attention module into its quantized form, in place.

    Args:
        module: timm's attention, its ``qkv`` split unless ``form`` is ``"fused"``.
        form: One of ``FORMS``.
        quantizers: One module for each name of ``SITES[form]``, and ``input`` (or None) for the layers that share their
            input.
    """
    module.__class__ = ATTENTION[type(module)]
    module.form = form
    for name in SITES[form]:
        module.add_module(f"{name}_quantizer", quantizers[name])
    if form != "fused":
        module.add_module("input_quantizer", quantizers.get("input"))


def check_reparameterizable(name: str, module: nn.Module) -> None:
    """Raise InputError where query and key are normalized before their product, which QKR cannot express."""
    if any(not isinstance(getattr(module, norm, nn.Identity()), nn.Identity) for norm in ("q_norm", "k_norm")):
        raise InputError(f"query_key='reparameterized': {name} normalizes query and key, so they have no fixed "
                         "product; use 'separate'")
