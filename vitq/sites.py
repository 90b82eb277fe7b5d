"""Where activation quantizers sit, and which values share a scale there.

A site is a kind of tensor: the image, the input of a layer, of the classifier, query, key and value, the product
:math:`W_{qk} X` of a reparameterized attention, and the attention probabilities. ``AXES`` gives, for each way of
sharing scales, the axes of the scales and of the offset vectors (for quantizers that have them).
"""

from vitq.errors import InputError

Axes = int | tuple[int, ...] | None
LAYOUTS = {  # shapes that the axes below refer to
    "image": "(B, 3, H, W)", "conv": "(B, C, H, W)", "linear": "(..., tokens, C)", "head": "(B, C)",
    "query": "(B, heads, tokens, d)", "key": "(B, heads, tokens, d)", "value": "(B, heads, tokens, d)",
    "query_key": "(B, tokens, heads, C)", "probability": "(B, heads, tokens, tokens)",
}
_TOKEN: dict[str, tuple[Axes, Axes]] = {
    "image": (1, (2, 3)), "conv": (None, 1), "linear": (-2, -1), "head": (None, -1), "query": (-2, (1, 3)),
    "key": (-2, (1, 3)), "value": ((1, 3), (1, 3)), "query_key": ((1, 2), (2, 3)), "probability": (-2, None),
}
AXES: dict[str, dict[str, tuple[Axes, Axes]]] = {
    "token": _TOKEN,
    "channel": _TOKEN | {
        "image": (1, 1), "linear": (None, -1), "query": (None, (1, 3)), "key": (None, (1, 3)),
        "query_key": (2, (2, 3)), "probability": (None, None),
    },
    "tensor": {site: (None, offset) for site, (_, offset) in (_TOKEN | {"image": (1, 1)}).items()},
}  # fmt: skip
_HEADS = {"query": 1, "key": 1, "value": 1, "query_key": 2, "probability": 1}
AXES["head"] = {site: (_HEADS.get(site), offset) for site, (_, offset) in AXES["tensor"].items()}


def axes(scales: str, site: str) -> tuple[Axes, Axes]:
    """Axes of the scales and of the offset vectors at ``site``, a name in ``LAYOUTS``.

    Args:
        scales: ``"tensor"``: one scale. ``"head"``: one for each head of the operands of attention, one scale elsewhere
            (VVTQ 2023, the paper's granularity); any image size.
            ``"token"``: one for each token position, for each channel of the value, for
            each (token, head) of the reparameterized query-key product (OFQ 2023, released code); ties the model to
            one image size. ``"channel"``: the same without positions: one scale in linear layers and probabilities,
            one for each channel of the value and each head of the product; any image size.
        site: Kind of tensor.
    """
    if scales not in AXES:
        raise InputError(f"activation_scales={scales!r}: choose one of {', '.join(map(repr, AXES))}")
    return AXES[scales][site]
