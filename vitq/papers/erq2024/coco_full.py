"""Full runs on COCO: a published detector, one calibration image, all validation images; every step can be resumed.

The quantized detector is kept in a file, and the detections of each image as they come, so that the same call after a
crash does what is missing. Average precision is in percent.
"""

import dataclasses
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from vitq import environment, provenance
from vitq.detection.coco import CocoSet
from vitq.detection.config import MODELS
from vitq.detection.images import ImageBatch, load_image
from vitq.errors import InputError, MissingError
from vitq.files import read_json, write_json
from vitq.papers.erq2024.coco_job import CocoJob, published
from vitq.papers.erq2024.full import _exact
from vitq.papers.erq2024.full_job import NAMES

COCO = {"classes": 80, "val": 5000}
SUFFIXES = (".jpg", ".jpeg", ".png")
PARITY_POINTS = 0.1
STEP = 500  # images between two lines of progress


@dataclass
class Bench:
    """Images and detector of a job, read once.

    Args:
        job: What is to be done.
        path: COCO folder with val2017/ and annotations/instances_val2017.json, and train2017/ where there is one.
        checkpoint: Published file of the detector; the micro detectors have their own.
        device: ``"auto"``, ``"cpu"`` or ``"cuda"``.
        whole: Ask for COCO's 80 classes and 5,000 images.
        limit: Validation images instead of all, to try the path; 0 for all.
    """

    job: CocoJob
    path: str
    checkpoint: str = ""
    device: str = "auto"
    whole: bool = True
    limit: int = 0

    def __post_init__(self) -> None:
        from vitq.detection import load
        from vitq.detection.results import fingerprint

        if not self.path:
            raise MissingError("parameter data_path: give the COCO folder that holds val2017/ and "
                               "annotations/instances_val2017.json")
        if self.limit < 0:
            raise InputError(f"parameter limit_images={self.limit}: give 0 for all, or a positive number")
        there = torch.cuda.is_available()
        if self.device == "cuda" and not there:
            raise MissingError("parameter device=cuda: there is no GPU; device=cpu works all the same, for days")
        if not self.checkpoint and self.job.model in MODELS:
            raise MissingError(f"parameter checkpoint: give the file of {self.job.model} that "
                               "Swin-Transformer-Object-Detection publishes (release v1.0.2, 3x schedule)")
        self.on = torch.device("cuda" if there and self.device != "cpu" else "cpu")
        self.test = self._set()
        self.calibrated_on = self._kind()
        self.model = load(self.job.model, checkpoint=self.checkpoint or None)
        if self.model.config.classes != len(self.test.categories):
            raise InputError(f"parameter data_path: {len(self.test.categories)} categories, the detector has "
                             f"{self.model.config.classes} classes")
        self.fingerprint = fingerprint(self.model)[:16]

    def _set(self) -> CocoSet:
        root = Path(self.path).expanduser()
        file, folder = root / "annotations" / "instances_val2017.json", root / "val2017"
        for place in (file, folder):
            if not place.exists():
                raise MissingError(f"parameter data_path: there is no {place}")
        found = CocoSet(file, folder, self.job.long, self.job.short)
        if self.whole and (len(found.categories), len(found)) != (COCO["classes"], COCO["val"]):
            raise InputError(f"parameter data_path: {len(found):,} images of {len(found.categories)} categories in "
                             f"{file.name}, and val2017 has 5,000 of 80")
        for number in found.image_ids[: self.limit or None]:
            if not found.path(number).is_file():
                raise MissingError(f"parameter data_path: there is no {found.path(number)}")
        return found

    def _kind(self) -> str:
        """``"train"`` or ``"first_val"``."""
        self.train = sorted(file for file in (Path(self.path).expanduser() / "train2017").glob("*")
                            if file.suffix.lower() in SUFFIXES)
        enough = len(self.train) >= self.job.images
        if self.job.calibration == "train" and not enough:
            raise MissingError(f"parameter data_path: {len(self.train)} images in train2017/, {self.job.images} are "
                               "needed; calibration=first_val takes the first validation image, as published")
        if self.job.calibration == "auto" and not enough and self.job.images > 1:
            raise MissingError(f"parameter data_path: {len(self.train)} images in train2017/, {self.job.images} are "
                               "needed")
        return "train" if enough and self.job.calibration != "first_val" else "first_val"

    @property
    def images(self) -> int:
        """Validation images that are evaluated."""
        return min(self.limit or len(self.test), len(self.test))

    def draws(self, seeds: list[int]) -> list[int]:
        """The seeds that make a difference: one is enough for the first validation image."""
        return seeds if self.calibrated_on == "train" else seeds[:1]

    def calibration(self, seed: int) -> tuple[list[ImageBatch], list[str]]:
        """Calibration images as the test pipeline makes them, and their file names."""
        if self.calibrated_on == "first_val":
            number = self.test.coco.dataset["images"][0]["id"]
            return [self.test.batch(number)], [self.test.path(number).name]
        chosen = torch.randperm(len(self.train), generator=torch.Generator().manual_seed(seed))[: self.job.images]
        files = [self.train[row] for row in chosen.tolist()]
        return [load_image(file, self.job.long, self.job.short) for file in files], [file.name for file in files]

    def precision(self, model: nn.Module, out: Path) -> dict[str, Any]:
        """box_ap, mask_ap and their parts in percent, number of images and seconds; goes on after the last image."""
        from vitq.detection.evaluation import detect_all, evaluate

        begin = time.perf_counter()
        with _exact():
            for count in range(STEP, self.images, STEP):
                detect_all(model.to(self.on), self.test, out, count, progress=False)
                spent = time.perf_counter() - begin
                print(f"{out.name}: {count:,} of {self.images:,} images, {spent:.0f} s", flush=True)
            found = evaluate(model.to(self.on), self.test, out, self.limit or None, progress=False)
        return {name.lower(): value if name == "images" or value is None else 100 * value
                for name, value in found.items()} | {"evaluate_seconds": time.perf_counter() - begin}


def full_precision(bench: Bench, out: Path | str) -> dict[str, Any]:
    """AP before anything is quantized, compared with the published one.

    Raises:
        InputError: Box or mask AP is more than 0.1 points from the published one: other weights or other images.
    """
    own = {"model": bench.fingerprint, "data": bench.test.identity(), "images": bench.images}
    folder = Path(out) / f"fp32-{provenance.digest(own)[:8]}"
    found = _kept(folder) or _keep(folder, bench.precision(bench.model, folder))
    papers = {metric: published(bench.job, "fp32", metric) for metric in ("box_ap", "mask_ap")}
    if bench.limit or not bench.whole or None in papers.values():
        return found
    for metric, paper in papers.items():
        if abs(found[metric] - paper["value"]) > PARITY_POINTS + 0.05:
            raise InputError(f"{bench.job.model} has {metric} {found[metric]:.1f} on {found['images']} images in full "
                             f"precision, and {paper['value']:.1f} is published: check the weights and the images")
    return found | {"published": {metric: paper["value"] for metric, paper in papers.items()},
                    "source": papers["box_ap"]["source"]}


def one(bench: Bench, out: Path | str, method: str, seed: int) -> dict[str, Any]:
    """Quantize by one method on one draw and evaluate; what was finished before is read, not made again."""
    from vitq.detection import open_saved

    job = dataclasses.asdict(bench.job) | {"methods": None, "arguments": bench.job.arguments(method)}
    own = {"method": method, "seed": seed, "job": job, "calibrated_on": bench.calibrated_on,
           "model": bench.fingerprint, "data": bench.test.identity(), "images": bench.images}
    folder = Path(out) / f"{method}-seed{seed}-{provenance.digest(own)[:8]}"
    if kept := _kept(folder):
        return kept
    file, facts = folder / "quantized.safetensors", folder / "quantized.json"
    if not (file.is_file() and facts.is_file()):
        write_json(facts, quantize(bench, method, seed, file))
    found = bench.precision(open_saved(file), folder)
    return _keep(folder, found | read_json(facts))


def quantize(bench: Bench, method: str, seed: int, file: Path) -> dict[str, Any]:
    """Write the quantized detector; seconds, memory and mean errors of its layers."""
    from vitq import detection

    images, names = bench.calibration(seed)
    if bench.on.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    begin, job = time.perf_counter(), bench.job
    with _exact():
        found = detection.quantize(bench.model.to(bench.on), images, method, job.weight_bits, job.act_bits,
                                   **job.arguments(method))
    seconds = time.perf_counter() - begin
    gpu = {"gpu_memory_mb": torch.cuda.max_memory_allocated() / 2**20} if bench.on.type == "cuda" else {}
    file.parent.mkdir(parents=True, exist_ok=True)
    detection.save(found.model, file)
    layers = found.table()
    return {"quantize_seconds": seconds, "peak_memory_mb": environment.peak_memory_mb(), **gpu, "calibrated_on": names,
            "layer_error": layers["error"].mean(), "layer_error_nearest": layers["error_nearest"].mean()}


def everything(bench: Bench, out: Path | str, seeds: list[int]) -> dict[str, list[dict]]:
    """Results of all methods, one for each seed; prints a line for each."""
    found: dict[str, list[dict]] = {method: [] for method in bench.job.methods}
    for seed in bench.draws(seeds):
        for method in bench.job.methods:
            result = one(bench, out, method, seed)
            found[method].append(result)
            print(f"{NAMES[method]}, seed {seed}, calibrated on {', '.join(result['calibrated_on'])}: "
                  f"box AP {result['box_ap']:.1f}, mask AP {result['mask_ap']:.1f}, "
                  f"{result['quantize_seconds']:.0f} s to quantize", flush=True)
    return found


def _kept(folder: Path) -> dict[str, Any] | None:
    file = folder / "result.json"
    return read_json(file) if file.is_file() else None


def _keep(folder: Path, result: dict[str, Any]) -> dict[str, Any]:
    write_json(folder / "result.json", result)
    return result
