"""Full runs on ImageNet as parameter files: network, bits, methods, draws of the calibration images."""

import dataclasses
import hashlib
from dataclasses import dataclass, field
from typing import Any

from vitq import comparison, environment, provenance
from vitq.errors import InputError
from vitq.numerics import check_bits, check_choice
from vitq.papers.erq2024.methods import METHODS
from vitq.papers.erq2024.options import PAPER_CODE, ErqOptions
from vitq.quantizers.percentiles import REPQ
from vitq.records import bits_name

TABLE = "erq2024_main"
NAMES = {"nearest": "nearest", "repq": "RepQ-ViT", "gptq": "GPTQ", "aqer": "Aqer", "wqer": "Wqer", "erq": "ERQ",
         "erq_plus": "ERQ+"}
VARIANTS = ("corrected", "released")


@dataclass(frozen=True)
class Job:
    """What one parameter file `notebooks/params/full/erq_imagenet_*.yml` says, less its seeds.

    Args:
        model: Name for :func:`vitq.zoo.load`; a tag pins the weights.
        network: Its name in the published table.
        weight_bits: Of all weights.
        act_bits: Of all activations but the image.
        methods: Keys of ``METHODS``; the first is the one that the file is made for.
        images: Calibration images, drawn from the training images.
        coe: Lambda, see :func:`~vitq.papers.erq2024.aqer.ridge_strength`.
        crop_pct: Share of the shorter side that the crop keeps; None for the model's own.
        variant: ``"corrected"``: the defaults of ErqOptions. ``"released"``: the switches of the released code.
        options: Further fields of :class:`~vitq.papers.erq2024.options.ErqOptions`.
    """

    model: str
    network: str
    weight_bits: int = 4
    act_bits: int = 4
    methods: tuple[str, ...] = ("erq", "erq_plus", "gptq", "repq")
    images: int = 32
    coe: float = 1e4
    crop_pct: float | None = None
    variant: str = "corrected"
    options: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "methods", tuple(self.methods))
        check_bits("weight_bits", self.weight_bits), check_bits("act_bits", self.act_bits)
        check_choice("variant", self.variant, VARIANTS)
        if not self.methods:
            raise InputError("methods is empty: give at least one")
        for method in self.methods:
            check_choice("methods", method, tuple(METHODS))
        if isinstance(self.images, bool) or not isinstance(self.images, int) or self.images < 1:
            raise InputError(f"images={self.images!r}: give a whole number of at least 1")
        for method in self.methods:
            ErqOptions.from_dict(self.arguments(method))

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "Job":
        """Build from a mapping; an unknown or missing key is refused by name."""
        known = [entry.name for entry in dataclasses.fields(cls)]
        wrong = sorted(set(values) - set(known)) or sorted({"model", "network"} - set(values))
        if wrong:
            raise InputError(f"job: {', '.join(wrong)}: model and network are needed, and there are {', '.join(known)}")
        return cls(**values)

    def arguments(self, method: str) -> dict[str, Any]:
        """Options of one method."""
        switches = {}
        if self.variant == "released" and method == "repq":
            switches = {"round_zero_point": False, "image_bits": 8, "merge": True, "weight_percentiles": REPQ}
        elif self.variant == "released":
            switches = {name: value for name, value in PAPER_CODE.items() if name != "dual"}
        values = switches | {"coe": self.coe} | self.options
        return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}

    @property
    def bits(self) -> str:
        """As records name them."""
        return bits_name(self.weight_bits, self.act_bits)

    @property
    def name(self) -> str:
        """Of the folder of its results."""
        network = self.network.lower().replace("-", "_")
        return f"erq_imagenet_{network}_{self.bits.lower()}"


def read(name: str) -> tuple[Job, list[int]]:
    """Job and seeds of a parameter file of `notebooks/params/full/`, by its name without ending."""
    import yaml

    folder = environment.home() / "notebooks" / "params" / "full"
    file = folder / f"{name}.yml"
    if not file.is_file():
        known = ", ".join(path.stem for path in sorted(folder.glob("erq_imagenet_*.yml"))) or "none"
        raise InputError(f"row={name!r}: there is no such parameter file; there are {known}")
    text = file.read_text(encoding="utf-8")
    content = yaml.safe_load(text)
    provenance.note_data(name, hashlib.sha256(text.encode()).hexdigest()[:16])
    return Job.from_dict(content["job"]), list(content["seeds"])


def resolve(row: str, job: dict[str, Any], seeds: list[int], variant: str, methods: list[str]) -> tuple[Job, list[int]]:
    """Job and seeds that a notebook's parameters ask for; what is empty is as the file says."""
    found, own = (Job.from_dict(job), [0]) if job else read(row)
    if variant:
        found = dataclasses.replace(found, variant=variant)
    if methods:
        found = dataclasses.replace(found, methods=tuple(methods))
    seeds = list(seeds or own)
    if any(isinstance(seed, bool) or not isinstance(seed, int) or seed < 0 for seed in seeds):
        raise InputError(f"parameter seeds={seeds}: give whole numbers of at least 0")
    return found, seeds


def published(job: Job, method: str, metric: str = "top1") -> dict[str, Any] | None:
    """Published figure of a method of this job as a record's `paper`; ``"fp32"`` for full precision."""
    table = comparison.published(TABLE)
    name, bits = ("FP32", "FP32") if method == "fp32" else (NAMES[method], job.bits)
    wanted = {"model": job.network, "method": name, "bits": bits, "metric": metric}
    for column, value in wanted.items():
        table = table[table[column] == value]
    return None if table.empty else {"value": float(table["value"].iloc[0]), "source": table["source"].iloc[0]}
