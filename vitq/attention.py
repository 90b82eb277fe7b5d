"""timm's attention modules with the two matrix products of attention quantized.

The class of a module is exchanged, its parameters and their names stay; four quantizers are added: query, key, value
and the attention probabilities (unsigned). Relative position bias, mask and softmax stay in floating point.
"""

import torch
from timm.layers.attention import Attention, maybe_add_mask, resolve_self_attn_mask
from timm.models.swin_transformer import WindowAttention
from torch import Tensor, nn

SITES = ("query_quantizer", "key_quantizer", "value_quantizer", "probability_quantizer")


class QuantAttention(Attention):
    """Multi-head self-attention of ViT and DeiT with quantized q, k, v and probabilities."""

    def forward(self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
        B, N, _ = x.shape
        gate = self.gate(x).sigmoid() if self.gate is not None else None
        qkv = self.qkv(x).reshape(B, N, 3, self.num_heads, self.head_dim).permute(2, 0, 3, 1, 4)
        q, k, v = qkv.unbind(0)  # (B, heads, N, d) each
        q, k = self.query_quantizer(self.q_norm(q)), self.key_quantizer(self.k_norm(k))
        logits = (q @ k.transpose(-2, -1)) * self.scale  # (B, heads, N, N)
        logits = maybe_add_mask(logits, resolve_self_attn_mask(N, logits, attn_mask, is_causal))
        probabilities = self.attn_drop(self.probability_quantizer(logits.softmax(dim=-1)))
        x = probabilities @ self.value_quantizer(v)  # (B, heads, N, d)
        x = self.norm(x.transpose(1, 2).reshape(B, N, self.attn_dim))  # (B, N, C)
        return self.proj_drop(self.proj(x if gate is None else x * gate))


class QuantWindowAttention(WindowAttention):
    """Shifted-window attention of Swin with quantized q, k, v and probabilities."""

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        B, N, _ = x.shape  # B = images * windows
        qkv = self.qkv(x).reshape(B, N, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4)
        q, k, v = qkv.unbind(0)  # (B, heads, N, d) each
        q, k = self.query_quantizer(q), self.key_quantizer(k)
        logits = (q @ k.transpose(-2, -1)) * self.scale + self._get_rel_pos_bias()  # (B, heads, N, N)
        if mask is not None:
            windows = mask.shape[0]
            logits = logits.view(-1, windows, self.num_heads, N, N) + mask.unsqueeze(1).unsqueeze(0)
            logits = logits.view(-1, self.num_heads, N, N)
        probabilities = self.attn_drop(self.probability_quantizer(self.softmax(logits)))
        x = (probabilities @ self.value_quantizer(v)).transpose(1, 2).reshape(B, N, -1)  # (B, N, C)
        return self.proj_drop(self.proj(x))


ATTENTION: dict[type[nn.Module], type[nn.Module]] = {Attention: QuantAttention, WindowAttention: QuantWindowAttention}


def attach(module: nn.Module, quantizers: dict[str, nn.Module]) -> None:
    """Turn a timm attention module into its quantized form, in place; ``quantizers`` has one module a name of SITES."""
    module.__class__ = ATTENTION[type(module)]
    for name in SITES:
        module.add_module(name, quantizers[name])


@torch.no_grad()
def macs_of_products(heads: int, tokens: int, head_dim: int) -> int:
    """Multiply-accumulates of the two matrix products of one attention layer, for one image."""
    return 2 * heads * tokens * tokens * head_dim
