"""What the notebook of the full runs shows of a job: settings, cost, results, records, published figures."""

import dataclasses
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import yaml

from vitq import comparison, records, zoo
from vitq.errors import InputError
from vitq.papers.erq2024.full import IMAGENET, Bench
from vitq.papers.erq2024.full_job import NAMES, TABLE, Job, published
from vitq.papers.erq2024.methods import METHODS
from vitq.records import Record
from vitq.train.rows import write_records

if TYPE_CHECKING:
    import pandas


def configuration(job: Job, seeds: list[int]) -> str:
    """The job as YAML."""
    shown = dataclasses.asdict(job) | {"methods": list(job.methods)}
    text = yaml.safe_dump(shown, sort_keys=False, default_flow_style=None, width=72)
    return f"# {job.name}, seeds {', '.join(map(str, seeds))}\n{text}"


def figures(job: Job) -> "pandas.DataFrame":
    """Published figures of the network at these bits and in full precision."""
    table = comparison.published(TABLE)
    table = table[(table["model"] == job.network) & (table["metric"] == "top1")]
    return table[table["bits"].isin(("FP32", job.bits))].sort_values("value", ascending=False)


def open_bench(job: Job, scale: str, path: str, device: str, checkpoint: str, limit: int) -> tuple[Bench | None, str]:
    """Images and network, or why nothing is run; prints what is there.

    Raises:
        MissingError: What is needed is not there; names the parameter.
        InputError: What is there is wrong; names the parameter.
    """
    if limit < 0:
        raise InputError(f"parameter limit_images={limit}: give 0 for all, or a positive number")
    if not path and scale == "small":
        print("status: not run: no ImageNet folder given (data_path)")
        return None, "no ImageNet folder given (data_path)"
    bench = Bench(job, path, device, checkpoint, whole=scale != "smoke" and not limit, limit=limit)
    print(f"{len(bench.train):,} training images, {len(bench.test):,} validation images, {bench.test.num_classes:,} "
          f"classes; weights {bench.fingerprint}; device {bench.on}")
    return bench, ""


def cost(job: Job, seeds: list[int], bench: Bench | None, images: int = 4) -> str:
    """Hours on the device that is here, from a quantized forward pass; one line.

    Without data the network has random weights, which take as long.
    """
    model = bench.model if bench else zoo.load(job.model, pretrained=False)
    device = bench.on if bench else torch.device("cuda" if torch.cuda.is_available() else "cpu")
    size = model.pretrained_cfg["input_size"][-1]
    pixels = torch.randn(images, 3, size, size)
    found = METHODS["repq"](model.to(device), pixels, job.weight_bits, job.act_bits).model
    speed = _images_per_second(found, pixels.to(device))
    count = len(bench.test) if bench else IMAGENET["val"]
    evaluations = 1 + len(job.methods) * len(seeds)
    return (f"{evaluations} evaluations of {count:,} images at {speed:.0f} images/s, measured here on {device.type}: "
            f"{evaluations * count / speed / 3600:.1f} hours, reading of files not counted")


def _images_per_second(model: torch.nn.Module, pixels: torch.Tensor) -> float:
    from vitq.train.evaluation import evaluation_mode

    with evaluation_mode(model):
        model(pixels)
        _wait(pixels.device)
        begin = time.perf_counter()
        model(pixels)
        _wait(pixels.device)
    return len(pixels) / (time.perf_counter() - begin)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def parity_line(found: dict[str, Any]) -> str:
    """What `full_precision` found, as one line."""
    beside = (f"published {found['published']:.2f} % ({found['source']})" if "published" in found
              else "not compared: other classes or images than the published figure's")
    return f"full precision: {found['top1']:.2f} % on {found['images']:,} validation images, {beside}"


def make(job: Job, seeds: list[int], scale: str, bench: Bench | None, float_result: dict[str, Any],
         results: dict[str, list[dict]], reason: str = "") -> list[Record]:
    """A record for each method, in their order, and one for full precision if it was measured.

    Args:
        job: What was asked for.
        seeds: Draws of the calibration images.
        scale: "smoke" or "full".
        bench: What it ran on; None if it was not run.
        float_result: Of `full_precision`.
        results: Of `everything`.
        reason: Why it was not run.
    """
    config = dataclasses.asdict(job) | {"methods": None}
    shared = {"claim": TABLE, "model": job.network, "data": "imagenet", "scale": scale}
    made = []
    for method in job.methods:
        names = {"method": NAMES[method], "setting": "dual" if method == "erq_plus" else "", "bits": job.bits,
                 "variant": job.variant, "paper": published(job, method),
                 "config": config | {"arguments": job.arguments(method)}}
        if reason:
            made.append(Record(**shared, **names, checkpoint=job.model, status="not run", reason=reason))
            continue
        found = results[method]
        metrics = {name: [result[name] for result in found] for name in found[0]
                   if isinstance(found[0][name], float) and name != "peak_memory_mb"}
        made.append(Record(
            **shared, **names, metrics=metrics | {"top1_float": float_result["top1"]}, seeds=list(seeds),
            images=found[0]["images"], data_version=bench.test.version,
            checkpoint=f"{job.model} {bench.fingerprint}",
            seconds=round(sum(r["quantize_seconds"] + r["evaluate_seconds"] for r in found), 1),
            peak_memory_mb=max(r["peak_memory_mb"] for r in found)))
    if not reason:
        made.append(Record(
            **shared, method="FP32", bits="FP32", paper=published(job, "fp32"), images=float_result["images"],
            metrics={name: float_result[name] for name in ("top1", "top5", "loss")}, data_version=bench.test.version,
            checkpoint=f"{job.model} {bench.fingerprint}", config={"model": job.model, "crop_pct": job.crop_pct}))
    return made


def write(made: list[Record], out: Path | str, scale: str, record: str = "") -> list[Path]:
    """Write and print records: the first to `record`, where given, the others beside it; tries stay in `out`."""
    files = write_records(made, record or ("" if scale != "smoke" else str(out)))
    for entry, file in zip(made, files, strict=True):
        found = entry.metrics.get("top1")
        shown = f"{found['mean']:.2f} %" + ("" if found["std"] is None else f" ({found['std']:.2f})") if found else ""
        print(f"{entry.method}, {entry.bits}: {entry.status} {entry.reason or shown}\n  record: {file.name}")
    return files


def beside_published(job: Job, folder: Path) -> "pandas.DataFrame":
    """Published accuracies at these bits beside those of the records in `folder`, RepQ-ViT as the baseline."""
    mine = records.load_records(folder, claim=TABLE)
    mine = mine[(mine["model"] == job.network) & (mine["scale"] == "full") & mine["variant"].isin(("", job.variant))]
    reported = figures(job)
    baseline = {"method": "RepQ-ViT"} if (reported["method"] == "RepQ-ViT").any() else None
    table = records.compare(mine, reported, baseline=baseline)
    table = table[(table["metric"] == "top1") & table["bits"].isin(("FP32", job.bits))]
    return table[["method", "bits", "reported", "mean", "std", "n", "delta", "verdict", "source"]]
