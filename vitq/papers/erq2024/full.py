"""Full runs on ImageNet: results for each draw of images and each method.

No training: a network is loaded, its accuracy in full precision is compared with the published one, it is quantized by
each method on a few training images, and evaluated on all validation images. Every result is a file of its own, so that
the same call after a crash does what is missing.
"""

import dataclasses
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vitq import data, environment, provenance
from vitq.data.folder import FolderSet
from vitq.errors import InputError, MissingError
from vitq.files import read_json, write_json
from vitq.papers.erq2024.full_job import NAMES, Job, published
from vitq.papers.erq2024.methods import METHODS

IMAGENET = {"classes": 1000, "train": 1_281_167, "val": 50_000}
PARITY_POINTS = 0.1


@dataclass
class Bench:
    """Images and network of a job, read once.

    Args:
        job: What is to be done.
        path: Folder with train/CLASS/ and val/CLASS/.
        device: ``"auto"``, ``"cpu"`` or ``"cuda"``.
        checkpoint: File with the weights instead of the model's usual ones.
        whole: Ask for ImageNet's 1,000 classes.
        limit: Validation images instead of all, to try the path; 0 for all.
    """

    job: Job
    path: str
    device: str = "auto"
    checkpoint: str = ""
    whole: bool = True
    limit: int = 0

    def __post_init__(self) -> None:
        from vitq import zoo

        if not self.path:
            raise MissingError("parameter data_path: give the ImageNet folder that holds train/CLASS/ and val/CLASS/")
        there = torch.cuda.is_available()
        if self.device == "cuda" and not there:
            raise MissingError("parameter device=cuda: there is no GPU; device=cpu works all the same, for hours")
        self.on = torch.device("cuda" if there and self.device != "cpu" else "cpu")
        classes = IMAGENET["classes"] if self.whole else None
        sets = [data.load("imagenet", split, path=self.path, num_classes=classes) for split in ("train", "val")]
        other = None if sets[1].num_classes == IMAGENET["classes"] else sets[1].num_classes
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)  # of a head for other classes
            self.model = zoo.load(self.job.model, checkpoint=self.checkpoint or None, num_classes=other)
        self.fingerprint = zoo.fingerprint(self.model)
        self.train, self.test = (self._seen(found) for found in sets)
        if len(self.train) < self.job.images:
            raise InputError(f"parameter data_path: {len(self.train)} training images, fewer than the "
                             f"{self.job.images} for calibration")
        if self.limit:
            self.test = self.test.subset(min(self.limit, len(self.test)))

    def _seen(self, found: FolderSet) -> FolderSet:
        found = dataclasses.replace(found, size=self.model.pretrained_cfg["input_size"][-1]).for_model(self.model)
        return found if self.job.crop_pct is None else dataclasses.replace(found, crop_pct=self.job.crop_pct)

    def calibration(self, seed: int) -> tuple[Tensor, str]:
        """Randomly drawn training images (images, 3, H, W) as they are evaluated, and a digest of their names."""
        chosen = torch.randperm(len(self.train), generator=torch.Generator().manual_seed(seed))[: self.job.images]
        names = [Path(self.train.samples[i][0]).name for i in chosen.tolist()]
        return torch.stack([self.train[i][0] for i in chosen.tolist()]), provenance.digest(names)[:12]

    def accuracy(self, model: nn.Module, batch_size: int) -> dict[str, Any]:
        """top1, top5, loss and number of images on the validation images."""
        from vitq.train import evaluate

        with _exact():
            return evaluate(model.to(self.on), self.test, batch_size=batch_size, device=self.on)


@contextmanager
def _exact() -> Iterator[None]:
    """Convolutions in float32 on GPUs that would round their operands."""
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = before


def key(bench: Bench, method: str, seed: int | None) -> dict[str, Any]:
    """What a result depends on: one made with another key is not taken over."""
    job = dataclasses.asdict(bench.job) | {"methods": None}
    if method == "fp32":
        job = {name: job[name] for name in ("model", "crop_pct")}
    else:
        job |= {"arguments": bench.job.arguments(method)}
    versions = {"data": bench.test.version, "train": bench.train.version, "weights": bench.fingerprint}
    return {"method": method, "seed": seed, "job": job, "images": len(bench.test), **versions}


def full_precision(bench: Bench, out: Path | str, batch_size: int = 100) -> dict[str, Any]:
    """Accuracy before anything is quantized, compared with the published one.

    Returns:
        top1, top5, loss, images and, where they can be compared, published and source.

    Raises:
        InputError: It is more than 0.1 points from the published accuracy: other weights, classes or preprocessing.
    """
    found = _kept(out, key(bench, "fp32", None)) or _keep(out, key(bench, "fp32", None), {
        **bench.accuracy(bench.model, batch_size), "finished": True})
    paper = published(bench.job, "fp32")
    if paper is None or bench.limit or bench.test.num_classes != IMAGENET["classes"]:
        return found
    if abs(found["top1"] - paper["value"]) > PARITY_POINTS + 0.005:
        raise InputError(f"{bench.job.model} has {found['top1']:.2f} % on {found['images']} images in full precision, "
                         f"and {paper['value']:.2f} % are published: check the weights, the class folders and crop_pct")
    return found | {"published": paper["value"], "source": paper["source"]}


def one(bench: Bench, out: Path | str, method: str, seed: int, batch_size: int = 100) -> dict[str, Any]:
    """Quantize by one method on one draw of images and evaluate; a finished result is read, not made again."""
    own = key(bench, method, seed)
    if kept := _kept(out, own):
        return kept
    images, drawn = bench.calibration(seed)
    if bench.on.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    begin = time.perf_counter()
    job = bench.job
    with _exact():
        found = METHODS[method](bench.model.to(bench.on), images, job.weight_bits, job.act_bits,
                                **job.arguments(method))
    seconds = time.perf_counter() - begin
    gpu = {"gpu_memory_mb": torch.cuda.max_memory_allocated() / 2**20} if bench.on.type == "cuda" else {}
    layers = found.table()
    result = bench.accuracy(found.model, batch_size) | gpu | {
        "quantize_seconds": seconds, "peak_memory_mb": environment.peak_memory_mb(), "drawn": drawn,
        "layer_error": layers["error"].mean(), "layer_error_nearest": layers["error_nearest"].mean(),
        "stuck": layers["stuck"].mean(), "evaluate_seconds": time.perf_counter() - begin - seconds}
    return _keep(out, own, result)


def everything(bench: Bench, out: Path | str, seeds: list[int], batch_size: int = 100) -> dict[str, list[dict]]:
    """Results of all methods, one for each seed; prints a line for each."""
    found: dict[str, list[dict]] = {method: [] for method in bench.job.methods}
    for seed in seeds:
        for method in bench.job.methods:
            result = one(bench, out, method, seed, batch_size)
            found[method].append(result)
            print(f"{NAMES[method]:>9}, seed {seed}: top-1 {result['top1']:.2f} %, {result['quantize_seconds']:.0f} s, "
                  f"mean layer error {result['layer_error']:.3g}", flush=True)
    return found


def _file(out: Path | str, own: dict[str, Any]) -> Path:
    seed = "" if own["seed"] is None else f"-seed{own['seed']}"
    return Path(out) / f"{own['method']}{seed}-{provenance.digest(own)[:8]}.json"


def _kept(out: Path | str, own: dict[str, Any]) -> dict[str, Any] | None:
    file = _file(out, own)
    return read_json(file)["result"] if file.is_file() else None


def _keep(out: Path | str, own: dict[str, Any], result: dict[str, Any]) -> dict[str, Any]:
    write_json(_file(out, own), {"key": own, "result": result})
    return result
