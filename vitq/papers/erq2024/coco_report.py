"""What the detection notebook shows of a full run: settings, checks, records, published figures."""

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from vitq import comparison, records
from vitq.papers.erq2024.coco_full import COCO, Bench
from vitq.papers.erq2024.coco_job import CLAIMS, TABLE, CocoJob, published
from vitq.papers.erq2024.full_job import NAMES
from vitq.records import Record
from vitq.train.rows import write_records

if TYPE_CHECKING:
    import pandas

METRICS = ("box_ap", "mask_ap")
WHY_NOT = "no COCO folder given (data_path)"


def configuration(job: CocoJob, seeds: list[int]) -> str:
    """The job as YAML."""
    shown = dataclasses.asdict(job) | {"methods": list(job.methods)}
    text = yaml.safe_dump(shown, sort_keys=False, default_flow_style=None, width=72)
    return f"# {job.name}, seeds {', '.join(map(str, seeds))}\n{text}"


def open_bench(job: CocoJob, scale: str, path: str, checkpoint: str, device: str,
               limit: int) -> tuple[Bench | None, str]:
    """Images and detector, or why nothing is run; prints what is there.

    Raises:
        MissingError: What is needed is not there; names the parameter.
        InputError: What is there is wrong; names the parameter.
    """
    if not path and scale != "full":
        return None, WHY_NOT
    bench = Bench(job, path, checkpoint, device, whole=scale != "smoke" and not limit, limit=limit)
    images = {"train": f"{job.images} of {len(bench.train):,} training images, drawn by the seed",
              "first_val": "the first validation image, as published; it is scored too"}[bench.calibrated_on]
    print(f"{bench.images:,} validation images of {len(bench.test.categories)} classes; weights {bench.fingerprint}; "
          f"device {bench.on}\ncalibration: {images}")
    return bench, ""


def cost(job: CocoJob, seeds: list[int], bench: Bench | None) -> str:
    """Hours on the device that is here, from one image in full precision; one line."""
    import time

    images = bench.images if bench else COCO["val"]
    passes = 1 + len(job.methods) * (len(bench.draws(seeds)) if bench else len(seeds))
    text = f"{passes} evaluations of {images:,} images"
    if bench is None:
        return f"{text}; seconds an image are measured where there is a COCO folder"
    batch, model = bench.test.batch(bench.test.image_ids[0]).to(bench.on), bench.model.to(bench.on)
    model(batch)
    begin = time.perf_counter()
    model(batch)
    seconds = time.perf_counter() - begin
    return (f"{text}, {seconds:.2f} seconds an image in full precision, measured here on {bench.on.type}: "
            f"{passes * images * seconds / 3600:.1f} hours or more")


def parity_line(found: dict[str, Any]) -> str:
    """What `full_precision` found, as one line."""
    beside = (f"published {found['published']['box_ap']:.1f} and {found['published']['mask_ap']:.1f} "
              f"({found['source']})" if "published" in found else "not compared: not the published figures' images")
    return (f"full precision: box AP {found['box_ap']:.1f}, mask AP {found['mask_ap']:.1f} on {found['images']:,} "
            f"images; {beside}")


def make(job: CocoJob, seeds: list[int], scale: str, bench: Bench | None, float_result: dict[str, Any],
         results: dict[str, list[dict]], reason: str = "") -> list[Record]:
    """A record for each method, in their order, and one for full precision if it was measured."""
    shared = {"claim": CLAIMS.get(job.network, TABLE), "model": job.network, "data": "coco", "scale": scale}
    made, config = [], dataclasses.asdict(job) | {"methods": None}
    for method in job.methods:
        names = {"method": NAMES[method], "bits": job.bits, "variant": job.variant, "paper": published(job, method),
                 "config": config | {"arguments": job.arguments(method)}}
        if reason:
            made.append(Record(**shared, **names, checkpoint=job.model, status="not run", reason=reason))
            continue
        found = results[method]
        names["config"] |= {"calibrated_on": [result["calibrated_on"] for result in found]}
        metrics = {name: [result[name] for result in found] for name in found[0] if name != "peak_memory_mb"
                   and all(isinstance(result[name], float) for result in found)}
        exact = {f"{name}_float": float_result[name] for name in METRICS}
        made.append(Record(
            **shared, **names, metrics=metrics | exact, seeds=bench.draws(seeds), images=found[0]["images"],
            data_version=bench.test.identity()["annotations"][:16], checkpoint=f"{job.model} {bench.fingerprint}",
            seconds=round(sum(r["quantize_seconds"] + r["evaluate_seconds"] for r in found), 1),
            peak_memory_mb=max(r["peak_memory_mb"] for r in found)))
    if not reason:
        made.append(Record(
            **shared, method="FP32", bits="FP32", paper=published(job, "fp32"), images=float_result["images"],
            metrics={name: value for name, value in float_result.items() if isinstance(value, float)},
            data_version=bench.test.identity()["annotations"][:16], checkpoint=f"{job.model} {bench.fingerprint}"))
    return made


def write(made: list[Record], out: Path | str, scale: str, record: str = "") -> list[Path]:
    """Write and print records: the first to `record`, where given, the others beside it; tries stay in `out`."""
    files = write_records(made, record or ("" if scale != "smoke" else str(out)))
    for entry, file in zip(made, files, strict=True):
        shown = ", ".join(f"{name} {entry.metrics[name]['mean']:.1f}" for name in METRICS if name in entry.metrics)
        print(f"{entry.method}, {entry.bits}: {entry.status} {entry.reason or shown}\n  record: {file.name}")
    return files


def beside_published(job: CocoJob, folder: Path) -> "pandas.DataFrame":
    """Published AP of the network beside that of the full-scale records in `folder`, with the difference."""
    mine = records.load_records(folder, claim=CLAIMS.get(job.network, TABLE))
    mine = mine[(mine["model"] == job.network) & (mine["scale"] == "full") & mine["variant"].isin(("", job.variant))]
    reported = comparison.published(TABLE)
    reported = reported[reported["model"] == job.network]
    table = records.compare(mine, reported)
    table = table[table["metric"].isin(METRICS) & table["bits"].isin(("FP32", job.bits))]
    return table[["method", "bits", "metric", "reported", "mean", "std", "n", "delta", "verdict", "source"]]
