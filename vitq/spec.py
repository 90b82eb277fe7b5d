"""What is quantized and how: the one configuration object of the conversion."""

from dataclasses import asdict, dataclass, field

from vitq.errors import InputError
from vitq.numerics import check_bits, check_choice
from vitq.quantizers import QUANTIZERS, Quantizer
from vitq.sites import AXES, axes


@dataclass(frozen=True)
class QuantSpec:
    """What is quantized, and how. ``None`` for a number of bits means floating point.

    The defaults follow Nagel 2022, section 5.1 (the released ``LSQ_paper`` set-up): per-tensor LSQ, first and last
    layer at 8 bit, the input of every layer quantized but the image; residual sums, pooling, normalization and logits
    stay in floating point.

    Args:
        weight_bits: Bits of the weights, 2 to 8 (StatsQ from 1) or None.
        act_bits: Bits of the layer inputs (and, in transformers, of query, key, value and probabilities).
        weight: Weight quantizer, a name in ``vitq.quantizers.QUANTIZERS``.
        act: Activation quantizer.
        first_last_bits: Bits of the first and last layer's weights and the last layer's input.
        attention: Quantize the operands of attention's matrix products too.
        weight_options: Further arguments of the weight quantizer, e.g. ``{"channel_axis": 0}``.
        act_options: Further arguments of the activation quantizer.
        first_last_weight: Weight quantizer of the first and last layer; None for the same as everywhere.
        first_last_weight_options: Its further arguments.
        weight_scales: ``"layer"`` for the scales that the weight quantizer has by itself, or ``"head"`` for one scale a
            head of attention in the weights of query, key, value and projection (VVTQ; needs ``query_key="separate"``).
        activation_scales: Which activations share a scale, see :func:`vitq.sites.axes`: ``"tensor"``, ``"head"``,
            ``"token"`` or ``"channel"``.
        image_bits: Bits of the image in front of the first layer, None for floating point.
        unsigned_gelu: Quantize the input of a transformer's second MLP layer without sign, so that the small negative
            outputs of GELU become 0 (OFQ).
        gelu_offset: Learn an offset, 0 at first, for the input of a transformer's second MLP layer (VVTQ).
        query_key: ``"fused"``, ``"separate"`` or ``"reparameterized"``, see :mod:`vitq.attention`.
        query_bias: Keep the query's bias under reparameterization (exact); False drops it, as OFQ's released code does.
        overrides: ``{pattern: {"weight_bits": ..., "act_bits": ...}}``; the pattern is matched against the module path
            as a shell would (``"blocks.0.*"``), later entries win, and one that matches nothing is an error.
    """

    weight_bits: int | None = 4
    act_bits: int | None = None
    weight: str = "lsq"
    act: str = "lsq"
    first_last_bits: int | None = 8
    attention: bool = True
    weight_options: dict = field(default_factory=dict)
    act_options: dict = field(default_factory=dict)
    overrides: dict = field(default_factory=dict)
    first_last_weight: str | None = None
    first_last_weight_options: dict = field(default_factory=dict)
    activation_scales: str = "tensor"
    image_bits: int | None = None
    unsigned_gelu: bool = False
    query_key: str = "fused"
    query_bias: bool = True
    weight_scales: str = "layer"
    gelu_offset: bool = False

    def __post_init__(self) -> None:
        for name in ("weight", "act", "first_last_weight"):
            given = getattr(self, name)
            if given not in QUANTIZERS and not (name == "first_last_weight" and given is None):
                raise InputError(f"{name}={given!r}: choose one of {', '.join(QUANTIZERS)}")
        for name in ("weight_bits", "act_bits", "first_last_bits", "image_bits"):
            if getattr(self, name) is not None:
                low = QUANTIZERS[self.weight].MIN_BITS if name == "weight_bits" else 2
                check_bits(name, getattr(self, name), low)
        check_choice("activation_scales", self.activation_scales, tuple(AXES))
        check_choice("query_key", self.query_key, ("fused", "separate", "reparameterized"))
        check_choice("weight_scales", self.weight_scales, ("layer", "head"))
        self._check_quantizers()
        for pattern, entry in self.overrides.items():
            for key, bits in entry.items():
                if key not in ("weight_bits", "act_bits"):
                    raise InputError(f"overrides[{pattern!r}] has {key!r}: only weight_bits and act_bits can be set")
                if bits is not None:
                    check_bits(f"overrides[{pattern!r}][{key!r}]", bits)
        for name in ("weight", "act", "first_last_weight"):
            if getattr(self, name) is None:
                continue
            try:
                QUANTIZERS[getattr(self, name)](8, **getattr(self, f"{name}_options"))
            except TypeError as error:
                raise InputError(f"{name}_options={getattr(self, f'{name}_options')!r}: {error}") from None

    def _check_quantizers(self) -> None:
        """Whether the quantizers can do what `weight_scales` and `gelu_offset` ask for."""
        if self.weight_scales == "head":
            if self.query_key != "separate":
                raise InputError(f"weight_scales='head' needs query_key='separate', not {self.query_key!r}")
            if not hasattr(QUANTIZERS[self.weight], "set_heads"):
                raise InputError(f"weight_scales='head': {self.weight} has no scale a head; use weight='mdq'")
        if self.gelu_offset and not hasattr(QUANTIZERS[self.act], "add_offset"):
            raise InputError(f"gelu_offset=True: {self.act} learns no such offset; use act='mdq_activation'")

    @classmethod
    def from_dict(cls, values: dict) -> "QuantSpec":
        """Build from a mapping (YAML, checkpoint metadata); an unknown key is refused with the list of valid ones."""
        unknown = set(values) - set(cls.__dataclass_fields__)
        if unknown:
            raise InputError(f"quant has unknown {sorted(unknown)}: choose from {', '.join(cls.__dataclass_fields__)}")
        return cls(**values)

    def to_dict(self) -> dict:
        return asdict(self)

    def weight_quantizer(self, bits: int, first_or_last: bool = False) -> Quantizer:
        if first_or_last and self.first_last_weight is not None:
            return QUANTIZERS[self.first_last_weight](bits, signed=True, **self.first_last_weight_options)
        return QUANTIZERS[self.weight](bits, **{"signed": True, **self.weight_options})

    def act_quantizer(self, bits: int, signed: bool | None = None, site: str = "linear", **options) -> Quantizer:
        """A quantizer for activations at ``site``, see :data:`vitq.sites.AXES`."""
        scale_axes, offset_axes = axes(self.activation_scales, site)
        given = {"signed": signed, "channel_axis": scale_axes, **options}
        if self.act == "offset_lsq":
            given["offset_axis"] = None if site == "probability" else offset_axes
        return QUANTIZERS[self.act](bits, **given | self.act_options)
