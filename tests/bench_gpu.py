"""`python tests/bench_gpu.py --out FILE.json`: quantized training steps against the full-precision one on a GPU.

For each network: milliseconds of a training step (forward, backward, AdamW) at one batch size in bf16 autocast, with
and without torch.compile, images a second and peak memory, for full precision, W4A4 with LSQ and W2A2 with StatsQ (a
transformer: the whole of OFQ). A compiled quantized step may take 1.35 times the compiled full-precision one; exit
status 1 if one takes longer, or if a loss was not finite. Convolutional networks run in channels-last layout.

`--recipe nagel|ofq --minutes 5` runs a paper's recipe through its notebook instead, killed once (`bench_recipe.py`).
Without a GPU `--device cpu` tries the program.
"""

import argparse
import json
import math
import statistics
import sys
import time

import timm
import torch
from torch import nn

import vitq
from vitq import environment
from vitq.papers.ofq2023 import ofq_spec

NETWORKS = ("deit_tiny_distilled_patch16_224", "deit_small_distilled_patch16_224", "swin_tiny_patch4_window7_224",
            "mobilenetv2_100", "tf_efficientnet_lite0")
TARGET = 1.35  # compiled quantized step over compiled full-precision step


def specs(model: nn.Module) -> dict[str, vitq.QuantSpec]:
    """The two quantizations that are timed."""
    transformer = hasattr(model, "patch_embed")
    statsq = ofq_spec(2) if transformer else vitq.QuantSpec(2, 2, weight="statsq", act="offset_lsq")
    return {"W4A4 LSQ": vitq.QuantSpec(4, 4), "W2A2 OFQ" if transformer else "W2A2 StatsQ": statsq}


def measure(model: nn.Module, batch: int, size: int, steps: int, warm: int, device: str, compiled: bool) -> dict:
    """Median step time in milliseconds after `warm` steps, and what the losses were."""
    layout = torch.contiguous_format if hasattr(model, "patch_embed") else torch.channels_last
    model = model.to(device, memory_format=layout).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    images = torch.randn(batch, 3, size, size, device=device).to(memory_format=layout)
    labels = torch.randint(model.num_classes, (batch,), device=device)
    forward = torch.compile(model) if compiled else model
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    times, losses = [], []
    for _ in range(steps):
        start = time.perf_counter()
        with torch.autocast(device, torch.bfloat16):
            loss = nn.functional.cross_entropy(forward(images).float(), labels)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if device == "cuda":
            torch.cuda.synchronize()
        times.append(1e3 * (time.perf_counter() - start))
        losses.append(loss.item())
    middle = statistics.median(times[warm:])
    peak = torch.cuda.max_memory_allocated() / 2**30 if device == "cuda" else None
    return {"step_ms": round(middle, 2), "images_per_second": round(1e3 * batch / middle, 1), "peak_gb": peak,
            "first_loss": losses[0], "last_loss": losses[-1], "steps": steps,
            "finite": all(math.isfinite(value) for value in losses)}


def compare(name: str, compiled: bool, options: argparse.Namespace) -> list[dict]:
    """The rows of one network, the full-precision one first."""
    torch.manual_seed(0)
    rows, size = [], options.size
    plain = timm.create_model(name)
    kinds = specs(plain)
    for kind in ("full precision", *kinds):
        model = plain
        if kind in kinds:
            model = vitq.quantize(plain, kinds[kind]).to(options.device)
            vitq.calibrate(model, [torch.randn(8, 3, size, size, device=options.device)])
        found = measure(model, options.batch, size, options.steps, options.warm, options.device, compiled)
        rows.append({"network": name, "kind": kind, "compiled": compiled, **found})
        if options.device == "cuda":
            del model
            torch.compiler.reset()
            torch.cuda.empty_cache()
    for row in rows[1:]:
        row["ratio"] = round(row["step_ms"] / rows[0]["step_ms"], 3)
        row["within"] = row["ratio"] <= TARGET if compiled else None
    return rows


def shown(row: dict) -> str:
    """One row as a line."""
    memory = "" if row["peak_gb"] is None else f", {row['peak_gb']:.1f} GB"
    verdict = {None: "", True: f", within {TARGET}", False: f", EXCEEDS {TARGET}"}[row.get("within")]
    ratio = f", {row['ratio']:.2f} times full precision{verdict}" if "ratio" in row else ""
    return (f"{row['network']}, {row['kind']}, {'compiled' if row['compiled'] else 'eager'}: {row['step_ms']} ms, "
            f"{row['images_per_second']:g} images/s{memory}{ratio}{'' if row['finite'] else ', LOSS NOT FINITE'}")


def parser() -> argparse.ArgumentParser:
    found = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    found.add_argument("--networks", nargs="+", default=NETWORKS, help="names of timm's")
    found.add_argument("--batch", type=int, default=128)
    found.add_argument("--size", type=int, default=224)
    found.add_argument("--steps", type=int, default=80)
    found.add_argument("--warm", type=int, default=20, help="steps that do not count for the time")
    found.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    found.add_argument("--no-compile", action="store_true")
    found.add_argument("--recipe", choices=("nagel", "ofq"), help="run this paper's recipe through its notebook")
    found.add_argument("--minutes", type=float, default=5, help="of training, with --recipe")
    found.add_argument("--network", help="another network of vitq's, with --recipe")
    found.add_argument("--out", help="JSON file to write")
    return found


def main(arguments: list[str] | None = None) -> int:
    options = parser().parse_args(arguments)
    if options.device == "cuda" and not torch.cuda.is_available():
        print("device=cuda: there is no GPU; give --device cpu", file=sys.stderr)
        return 3
    if not 0 <= options.warm < options.steps:
        print(f"warm={options.warm}: give fewer than the {options.steps} steps", file=sys.stderr)
        return 2
    if options.recipe:
        import bench_recipe

        found = bench_recipe.measure(options.recipe, options.minutes, options.device, options.network, options.batch,
                                     options.size)
        good = found["record"]
    else:
        found = {"rows": []}
        for name in options.networks:
            for compiled in (False, True)[: 1 if options.no_compile else 2]:
                found["rows"] += compare(name, compiled, options)
                print("\n".join(map(shown, found["rows"][-3:])), flush=True)
        good = all(row["finite"] and row.get("within") is not False for row in found["rows"])
    found = {"hardware": environment.hardware(), "torch": torch.__version__, "batch": options.batch} | found
    if options.out:
        with open(options.out, "w") as file:
            json.dump(found, file, indent=1)
    return int(not good)


if __name__ == "__main__":
    sys.exit(main())
