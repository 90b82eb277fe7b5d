"""Full runs on COCO as parameter files: detector, bits, methods, draws of the calibration image."""

import dataclasses
import hashlib
from dataclasses import dataclass, field
from typing import Any

from vitq import comparison, environment, provenance
from vitq.detection.config import config_of
from vitq.detection.images import LONG, SHORT
from vitq.detection.quantization import METHODS, PUBLISHED
from vitq.errors import InputError
from vitq.numerics import check_bits, check_choice
from vitq.papers.erq2024.full_job import NAMES, VARIANTS
from vitq.papers.erq2024.options import PAPER_CODE, ErqOptions
from vitq.quantizers.percentiles import REPQ
from vitq.records import bits_name

TABLE = "erq2024_coco"
CLAIMS = {"Mask R-CNN Swin-T": "erq2024_coco_mask_t", "Mask R-CNN Swin-S": "erq2024_coco_mask_s",
          "Cascade Mask R-CNN Swin-T": "erq2024_coco_cascade_t",
          "Cascade Mask R-CNN Swin-S": "erq2024_coco_cascade_s"}  # of their records
CALIBRATIONS = ("auto", "train", "first_val")


@dataclass(frozen=True)
class CocoJob:
    """What one parameter file `notebooks/params/full/erq_coco_*.yml` says, less its seeds.

    Args:
        model: Name for :func:`vitq.detection.load`.
        network: Its name in the published table.
        weight_bits: Of all weights.
        act_bits: Of all activations but the image, which has 8 bits.
        methods: Of :func:`vitq.detection.quantize`; the first is the one that the file is made for.
        images: Calibration images.
        coe: Lambda, see :func:`~vitq.papers.erq2024.aqer.ridge_strength`.
        calibration: ``"first_val"``, as published: the first image of the annotation file of the validation set, which
            is scored too. ``"train"``: drawn from the training images, a draw a seed. ``"auto"``: ``"train"`` where
            the folder has training images.
        variant: ``"corrected"``: whole zero points, ranges of the proposal head by all levels, exact window padding.
            ``"released"``: as RepQ-ViT's detectors and the released code of ERQ do it.
        scope: ``"whole"`` or ``"backbone"``.
        long: Largest long side of an image, pixels.
        short: Largest short side.
        options: Further fields of :class:`~vitq.papers.erq2024.options.ErqOptions`.
    """

    model: str
    network: str
    weight_bits: int = 4
    act_bits: int = 4
    methods: tuple[str, ...] = ("erq",)
    images: int = 1
    coe: float = 1e5
    calibration: str = "auto"
    variant: str = "corrected"
    scope: str = "whole"
    long: int = LONG
    short: int = SHORT
    options: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "methods", tuple(self.methods))
        config_of(self.model)
        check_bits("weight_bits", self.weight_bits), check_bits("act_bits", self.act_bits)
        check_choice("variant", self.variant, VARIANTS), check_choice("calibration", self.calibration, CALIBRATIONS)
        check_choice("scope", self.scope, ("whole", "backbone"))
        if not self.methods:
            raise InputError("methods is empty: give at least one")
        for method in self.methods:
            check_choice("methods", method, tuple(METHODS))
            ErqOptions.from_dict(PUBLISHED | METHODS[method] | self.options_of(method))
        for name in ("images", "long", "short"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise InputError(f"{name}={value!r}: give a whole number of at least 1")
        if self.calibration == "first_val" and self.images != 1:
            raise InputError(f"images={self.images}: calibration first_val is one image")

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "CocoJob":
        """Build from a mapping; an unknown or missing key is refused by name."""
        known = [entry.name for entry in dataclasses.fields(cls)]
        wrong = sorted(set(values) - set(known)) or sorted({"model", "network"} - set(values))
        if wrong:
            raise InputError(f"job: {', '.join(wrong)}: model and network are needed, and there are {', '.join(known)}")
        return cls(**values)

    def options_of(self, method: str) -> dict[str, Any]:
        """Fields of ErqOptions that differ from the method's own."""
        switches: dict[str, Any] = {}
        if self.variant == "released" and method in ("nearest", "repq"):
            switches = {"round_zero_point": False, "weight_percentiles": REPQ}
        elif self.variant == "released":
            switches = {name: value for name, value in PAPER_CODE.items() if name != "dual"}
        values = switches | {"coe": self.coe} | self.options
        return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}

    def arguments(self, method: str) -> dict[str, Any]:
        """Keyword arguments of :func:`vitq.detection.quantize` besides bits."""
        odd = {"levels": "first", "windows": "released"} if self.variant == "released" else {}
        return {"scope": self.scope, **odd, **self.options_of(method)}

    @property
    def bits(self) -> str:
        """As records name them."""
        return bits_name(self.weight_bits, self.act_bits)

    @property
    def name(self) -> str:
        """Of its parameter file and of the folder of its results."""
        network = self.network.lower().replace(" mask r-cnn", "").replace(" r-cnn", "").replace("-", "_")
        return f"erq_coco_{network.replace(' ', '_')}_{self.bits.lower()}_{self.methods[0]}"


def read(name: str) -> tuple[CocoJob, list[int]]:
    """Job and seeds of a parameter file of `notebooks/params/full/`, by its name without ending."""
    import yaml

    folder = environment.home() / "notebooks" / "params" / "full"
    file = folder / f"{name}.yml"
    if not file.is_file():
        known = ", ".join(path.stem for path in sorted(folder.glob("erq_coco_*.yml"))) or "none"
        raise InputError(f"row={name!r}: there is no such parameter file; there are {known}")
    text = file.read_text(encoding="utf-8")
    content = yaml.safe_load(text)
    provenance.note_data(name, hashlib.sha256(text.encode()).hexdigest()[:16])
    return CocoJob.from_dict(content["job"]), list(content["seeds"])


def resolve(row: str, job: dict[str, Any], seeds: list[int], variant: str, calibration: str,
            methods: list[str]) -> tuple[CocoJob, list[int]]:
    """Job and seeds that a notebook's parameters ask for; what is empty is as the file says."""
    found, own = (CocoJob.from_dict(job), [0]) if job else read(row)
    given = {"variant": variant, "calibration": calibration, "methods": tuple(methods)}
    found = dataclasses.replace(found, **{name: value for name, value in given.items() if value})
    seeds = list(seeds or own)
    if any(isinstance(seed, bool) or not isinstance(seed, int) or seed < 0 for seed in seeds):
        raise InputError(f"parameter seeds={seeds}: give whole numbers of at least 0")
    return found, seeds


def published(job: CocoJob, method: str, metric: str = "box_ap") -> dict[str, Any] | None:
    """Published figure of a method of this job as a record's `paper`; ``"fp32"`` for full precision."""
    table = comparison.published(TABLE)
    name, bits = ("FP32", "FP32") if method == "fp32" else (NAMES[method], job.bits)
    wanted = {"model": job.network, "method": name, "bits": bits, "metric": metric}
    for column, value in wanted.items():
        table = table[table[column] == value]
    return None if table.empty else {"value": float(table["value"].iloc[0]), "source": table["source"].iloc[0]}
