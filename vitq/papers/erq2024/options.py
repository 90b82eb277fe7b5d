"""Every switch of ERQ and of its baselines, with the defaults that the book uses."""

from dataclasses import asdict, dataclass, fields

from vitq.errors import InputError
from vitq.numerics import check_bits, check_choice
from vitq.papers.erq2024.aqer import LAMBDA_MODES
from vitq.papers.erq2024.refinement import FLIP_RULES
from vitq.quantizers.percentiles import ERQ_WEIGHTS, REPQ, check_percentiles

CHOICES = {
    "probability": ("log_sqrt2", "uniform"),
    "weights": ("nearest", "gptq", "wqer"),
    "lambda_mode": LAMBDA_MODES,
    "flip_rule": FLIP_RULES,
    "refine": ("none", "qkv_fc1", "linear", "all"),
    "covariance": ("biased", "unbiased"),
    "data_path": ("fp_inputs", "sequential"),
}


@dataclass(frozen=True)
class ErqOptions:
    """What is quantized and how. ``None`` bits mean floating point. Section numbers are those of the specification.

    Args:
        weight_bits: Of all weights, first layer and classifier included.
        act_bits: Of all layer inputs and attention operands but the image.
        image_bits: Of the image: None (ERQ) or 8 (RepQ-ViT).
        reparameterize: Fold channel-wise ranges behind LayerNorm into one (1.4).
        merge: Do so for Swin's patch merging too: RepQ-ViT does, ERQ does not.
        round_zero_point: Round the folded zero point (9.2); False as released: a level more than the bits allow.
        probability: Quantizer of attention probabilities.
        act_percentiles: Candidates of the percentile search for activations.
        weight_percentiles: The same for weights.
        dual: Two grids a row for qkv and fc1 (journal version, 4.2).
        aqer: Correct weights for the rounding of their inputs (2).
        weights: How weights are rounded: ``"nearest"``, ``"gptq"`` or ``"wqer"`` (3).
        coe: Lambda, see :func:`~vitq.papers.erq2024.aqer.ridge_strength`; in ``"mean_paper"`` mode about 0.1 is usual.
        vector_strength: L of Aqer in a layer of vectors (the classifier) in ``"sum_code"`` mode, 0.1 as released, which
            fits few images too closely; None for that of the other linear layers.
        lambda_mode: ``"sum_code"`` or ``"mean_paper"``.
        flip_rule: Rule of rounding refinement: ours, as printed, as released.
        k: Roundings flipped at a time.
        rounds: Largest number of refinement rounds T.
        refine: Layers with refinement: ``"linear"`` as released, ``"qkv_fc1"`` as in older branches of the released
            code, ``"all"`` with convolutions, ``"none"``.
        ridge: Correct the open columns in Wqer.
        covariance: Of the refinement's moments: ``"biased"`` is exact, ``"unbiased"`` as released.
        damping: Of GPTQ.
        act_order: Of GPTQ: columns by falling energy.
        data_path: ``"fp_inputs"`` (released): inputs of the float network, quantized. ``"sequential"``: inputs as the
            partly quantized network makes them.
        calibration_images: Images that set the activation ranges, the first ones, in one pass.
        chunk: Images in one pass of the statistics; how the caller cut the images does not matter.
        workers: Layers corrected at a time, in threads.
    """

    weight_bits: int | None = 4
    act_bits: int | None = 4
    image_bits: int | None = None
    reparameterize: bool = True
    merge: bool = False
    round_zero_point: bool = True
    probability: str = "log_sqrt2"
    act_percentiles: tuple[float, ...] = REPQ
    weight_percentiles: tuple[float, ...] = ERQ_WEIGHTS
    dual: bool = False
    aqer: bool = True
    weights: str = "wqer"
    coe: float = 1e4
    vector_strength: float | None = 0.1
    lambda_mode: str = "sum_code"
    flip_rule: str = "exact_gain"
    k: int = 1
    rounds: int = 100
    refine: str = "linear"
    ridge: bool = True
    covariance: str = "biased"
    damping: float = 0.01
    act_order: bool = False
    data_path: str = "fp_inputs"
    calibration_images: int = 32
    chunk: int = 8
    workers: int = 1

    def __post_init__(self) -> None:
        for name in ("weight_bits", "act_bits", "image_bits"):
            if getattr(self, name) is not None:
                check_bits(name, getattr(self, name))
        for name, choices in CHOICES.items():
            check_choice(name, getattr(self, name), choices)
        for name in ("act_percentiles", "weight_percentiles"):
            object.__setattr__(self, name, check_percentiles(tuple(getattr(self, name))))
        for name, least in (("k", 1), ("rounds", 0), ("calibration_images", 1), ("chunk", 1), ("workers", 1)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise InputError(f"{name}={value!r}: give a whole number of at least {least}")
        for name, positive in (("coe", self.coe >= 0), ("damping", self.damping > 0)):
            if not positive:
                raise InputError(f"{name}={getattr(self, name)!r}: give a positive number")

    @classmethod
    def from_dict(cls, values: dict) -> "ErqOptions":
        """Build from a mapping; an unknown key is refused with the list of valid ones."""
        known = [field.name for field in fields(cls)]
        unknown = sorted(set(values) - set(known))
        if unknown:
            raise InputError(f"options has unknown {', '.join(unknown)}: choose from {', '.join(known)}")
        return cls(**{k: tuple(v) if isinstance(v, list) else v for k, v in values.items()})

    def to_dict(self) -> dict:
        return asdict(self)


PAPER_CODE = {  # switches of the released code (the journal version) where they differ from our defaults
    "round_zero_point": False, "flip_rule": "snap_code", "covariance": "unbiased", "dual": True,
}
