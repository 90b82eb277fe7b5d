"""What OFQ quantizes, as a QuantSpec (OFQ 2023, released code; specification sections 5.1 to 5.3)."""

from vitq.spec import QuantSpec


def ofq_spec(
    bits: int,
    *,
    weight: str = "statsq",
    query_key: str = "reparameterized",
    scales: str = "token",
    query_bias: bool = True,
    init: str | None = None,
) -> QuantSpec:
    """Weights and activations at ``bits``; patch embedding and heads at 8 bits, with LSQ weights per output row.

    Args:
        bits: 2 to 8, of weights and activations.
        weight: ``"statsq"``, or ``"lsq"`` for the baseline: learned scales per output row, started and trained as
            OFQ's LSQ is.
        query_key: ``"reparameterized"`` or ``"fused"``.
        scales: ``"token"`` as released, which ties a model to one image size; ``"channel"`` for any image size.
        query_bias: False drops the query's bias under reparameterization, as the released code does.
        init: Start of the activation scales, see :class:`vitq.quantizers.OffsetLSQ`; by default the released rule
            ``"ofq"`` with scales per token, and ``"mse"`` without: that rule starts a single scale much too small.
    """
    default = "ofq" if scales == "token" else "mse"
    rows = {"channel_axis": 0, "init": "lsq", "grad_scale": "lsq", "variant": "paper"}
    return QuantSpec(
        weight_bits=bits,
        act_bits=bits,
        weight=weight,
        weight_options=rows if weight == "lsq" else {},
        act="offset_lsq",
        act_options={} if (init or default) == "ofq" else {"init": init or default},
        activation_scales=scales,
        first_last_bits=8,
        first_last_weight="lsq",
        first_last_weight_options=rows,
        image_bits=8,
        unsigned_gelu=True,
        query_key=query_key,
        query_bias=query_bias,
    )
