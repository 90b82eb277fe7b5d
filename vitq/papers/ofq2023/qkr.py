r"""Query-key reparameterization (OFQ 2023, section "QKR").

With row-vector tokens :math:`x_m` the attention logits of head h are
:math:`(W_q x_m + b_q) \cdot (W_k x_n + b_k) / \sqrt d`. The two projections enter through their product alone:

.. math:: W_{qk,h} = W_{q,h}^T W_{k,h} \in R^{C \times C}, \qquad
          \text{logits}_{mn} = \frac{x_m^T\, W_{qk,h}\, x_n + b_{q,h}^T W_{k,h} x_n}{\sqrt d} + \dots

up to terms that the softmax cancels. Quantizing :math:`W_{qk,h}` instead of both factors means that a flip in one no
longer perturbs the gradient of the other: :math:`\partial L/\partial W_q = W_k G^T` and
:math:`\partial L/\partial W_k = W_q G`, G being the gradient of the quantized product, hold the real-valued partner.
"""

import torch
from torch import Tensor, nn

from vitq.convert import ComputedWeight
from vitq.quantizers import Quantizer


class QueryKeyReparameterization(ComputedWeight):
    r"""The quantized product :math:`\hat W_{qk}` of all heads, as a layer.

    The trained parameters stay :math:`W_q` and :math:`W_k`; the product is formed in full precision in each forward
    pass (heads x C x d x C multiplications) and then quantized with one scale for each head and row.

    Args:
        query: Linear layer C -> heads * d. Its bias is kept as the exact floating-point column term
            :math:`b_q^T W_k x_n`; without it (the released code drops it) the attention differs from the original.
        key: Linear layer C -> heads * d; its bias cancels in the softmax and is dropped.
        heads: Number of heads.
        quantizer: Weight quantizer with one scale per row of a (heads * C, C) matrix.

    Shape:
        Input (B, N, C), output :math:`\hat W_{qk} X^T`, (B, N, heads, C), and the column term, (B, N, heads) or None.
    """

    kind = "query_key"

    def __init__(self, query: nn.Linear, key: nn.Linear, heads: int, quantizer: Quantizer) -> None:
        super().__init__(quantizer)
        self.query, self.key, self.heads = query, key, heads
        self.key.bias = None

    @property
    def shape(self) -> torch.Size:
        return torch.Size([self.heads * self.query.in_features, self.query.in_features])

    @property
    def latent(self) -> Tensor:
        """:math:`W_{qk}` in full precision, (heads * C, C), differentiable in W_q and W_k."""
        q, k = (layer.weight.unflatten(0, (self.heads, -1)) for layer in (self.query, self.key))  # (heads, d, C)
        return (q.transpose(1, 2) @ k).flatten(0, 1)  # (heads * C, C)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        z = nn.functional.linear(x, self.weight).unflatten(-1, (self.heads, -1))  # (B, N, heads, C)
        if self.query.bias is None:
            return z, None
        bias = self.query.bias.view(self.heads, 1, -1)  # (heads, 1, d)
        column = (bias @ self.key.weight.unflatten(0, (self.heads, -1))).squeeze(1)  # (heads, C)
        return z, x @ column.T  # (B, N, heads)


def cost(tokens: int, channels: int, heads: int) -> dict[str, int]:
    """Multiply-accumulates of the logit path of one layer for one image, and weights, without and with QKR (spec 3.4).

    Args:
        tokens: N. channels: C. heads: H.

    Returns:
        ``macs`` (2 N C^2 + N^2 C), ``macs_qkr`` (H (N C^2 + N^2 C)), ``weights`` (2 C^2), ``weights_qkr`` (H C^2) and
        ``forming``, the C^3 of making the product, once a step.
    """
    n, c = tokens, channels
    return {"macs": 2 * n * c * c + n * n * c, "macs_qkr": heads * (n * c * c + n * n * c), "weights": 2 * c * c,
            "weights_qkr": heads * c * c, "forming": c**3}
