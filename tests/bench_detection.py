"""`python tests/bench_detection.py --out FILE.json`: what detectors cost at the published image size.

Seconds of an image (all models, float32, with `--bf16` bfloat16 autocast too), seconds of calibration and ERQ W4A4 on
one image (`--quantize`, whole detector) and of an image after that, and the largest memory: of the GPU's allocator with
`--device cuda`, else of the process. An image is timed from padded pixels on the device to boxes and masks of 28 x 28.
Weights are random, but classes are sure enough that 1000 proposals give 100 detections, as on a full photograph. Every
figure comes from a process of its own. On a processor, its time is told beside the time on the clock: other work on the
machine disturbs it less. `--table` writes the book's table.

Without `--models` a GPU times the four models and quantizes Cascade Mask R-CNN Swin-S; a processor takes Mask R-CNN
Swin-T for both.
"""

import argparse
import csv
import json
import statistics
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from contextlib import nullcontext
from multiprocessing import get_context
from pathlib import Path

import torch
import torch.nn.functional as F

from vitq import environment
from vitq.detection import MODELS, Detector, ImageBatch
from vitq.detection.quantization import quantize

COLUMNS = ("model", "image", "work", "seconds", "processor seconds", "memory GB", "detections", "machine")


def build(name: str, device: str) -> Detector:
    """Random weights, the same each time; classes with sure scores."""
    torch.manual_seed(0)
    model = Detector(name).eval()
    for head in model.roi.box_heads:
        torch.nn.init.normal_(head.logits.weight, std=0.3)
    return model.to(device)


def picture(size: tuple[int, int], device: str) -> ImageBatch:
    """Coarse patterns with noise, padded as images are."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.randn(1, 3, *(max(side // 32, 1) for side in size), generator=generator)
    image = F.interpolate(coarse, size, mode="bilinear") + 0.3 * torch.randn(1, 3, *size, generator=generator)
    padded = F.pad(image, (0, -size[1] % 32, 0, -size[0] % 32))
    return ImageBatch(padded, [size], [size], torch.ones(1, 4)).to(device)


@torch.no_grad()
def timed(model: Detector, image: ImageBatch, device: str, rounds: int, bf16: bool = False) -> dict:
    """Median seconds of an image after one that does not count, and how much was found."""
    times, own = [], []
    for _ in range(rounds + 1):
        begin, start = time.perf_counter(), time.process_time()
        with torch.autocast(device, torch.bfloat16) if bf16 else nullcontext():
            found, = model(image)
        if device == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - begin), own.append(time.process_time() - start)
    processor = {} if device == "cuda" else {"processor seconds": round(statistics.median(own[1:]), 1)}
    return {"seconds": round(statistics.median(times[1:]), 3), "detections": len(found), **processor}


def memory(device: str) -> float:
    """Largest of this process so far, GB."""
    peak = environment.peak_gpu_memory_mb() if device == "cuda" else environment.peak_memory_mb()
    return round(peak / 1000, 2)


def measure(name: str, work: str, size: tuple[int, int], device: str, rounds: int, threads: int) -> list[dict]:
    """The rows of one model and one kind of work: ``"float32"``, ``"bfloat16"`` or ``"ERQ"``."""
    torch.set_num_threads(threads)
    model, image = build(name, device), picture(size, device)
    if work != "ERQ":
        row = timed(model, image, device, rounds, work == "bfloat16")
        return [{"model": name, "work": work, **row, "memory GB": memory(device)}]
    start = time.process_time()
    done = quantize(model, image, "erq", 4, 4)
    processor = {} if device == "cuda" else {"processor seconds": round(time.process_time() - start, 1)}
    phases = {phase: round(value, 1) for phase, value in done.seconds.items() if phase != "total"}
    rows = [{"model": name, "work": "calibration and ERQ W4A4", "seconds": round(done.seconds["total"], 1),
             "phases": phases, "memory GB": memory(device), **processor}]
    row = timed(done.model, image, device, rounds)
    return [*rows, {"model": name, "work": "W4A4, simulated in float32", **row, "memory GB": memory(device)}]


def machine(given: argparse.Namespace) -> str:
    """The GPU, or the processor and its threads."""
    if given.device == "cuda":
        return torch.cuda.get_device_name()
    return f"{environment.processor()}, {given.threads} thread{'s' if given.threads > 1 else ''}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=list(MODELS), help="to be timed")
    parser.add_argument("--quantize", nargs="*", choices=list(MODELS), help="to be quantized; give none for no model")
    parser.add_argument("--size", nargs=2, type=int, default=(800, 1333), metavar=("HEIGHT", "WIDTH"))
    parser.add_argument("--bf16", action="store_true", help="time bfloat16 autocast too")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--rounds", type=int, help="images that count (10 on a GPU, else 1)")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", help="JSON file to write")
    parser.add_argument("--table", help="CSV file to write")
    given = parser.parse_args()
    cuda = given.device == "cuda"
    if cuda and not torch.cuda.is_available():
        print("device=cuda: there is no GPU; give --device cpu", file=sys.stderr)
        return 3
    timing = given.models or (list(MODELS) if cuda else ["mask_rcnn_swin_tiny"])
    quantizing = given.quantize
    if quantizing is None:
        quantizing = ["cascade_mask_rcnn_swin_small" if cuda else "mask_rcnn_swin_tiny"]
    works = [(name, work) for name in timing for work in ("float32", "bfloat16")[: 1 + given.bf16]]
    rounds = given.rounds or (10 if cuda else 1)
    rows = []
    for name, work in [*works, *((name, "ERQ") for name in quantizing)]:
        with ProcessPoolExecutor(1, get_context("spawn")) as pool:
            job = pool.submit(measure, name, work, tuple(given.size), given.device, rounds, given.threads)
            same = {"image": "x".join(map(str, given.size)), "machine": machine(given)}
            found = [{**row, **same} for row in job.result()]
        for row in found:
            print(f"{row['model']:<30} {row['work']:<28} {row['seconds']:>9} s {row['memory GB']:>7} GB  "
                  f"{row.get('phases', '')}", flush=True)
        rows += found
        write(given, rows)
    return 0


def write(given: argparse.Namespace, rows: list[dict]) -> None:
    """After each process, so that what is done is kept."""
    if given.out:
        content = {"hardware": environment.hardware(), "torch": torch.__version__, "threads": given.threads,
                   "rows": rows}
        Path(given.out).write_text(json.dumps(content, indent=1) + "\n")
    if given.table:
        with open(given.table, "w", newline="") as file:
            table = csv.DictWriter(file, COLUMNS, restval="", extrasaction="ignore", lineterminator="\n")
            table.writeheader(), table.writerows(rows)


if __name__ == "__main__":
    sys.exit(main())
