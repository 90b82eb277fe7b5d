"""`python tests/bench_gpu.py --out FILE.json`: a quantized training step against the float one on a GPU.

For each network: milliseconds of a training step (forward, backward, AdamW) at one batch size, float and W2A2 OFQ, bf16
autocast, with and without torch.compile, images a second, peak memory, and whether every loss of `--steps` steps on
random images was finite. The JSON file names the GPU. Without a GPU it runs on the processor with `--device cpu`.
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

NETWORKS = ("deit_small_distilled_patch16_224", "swin_tiny_patch4_window7_224")


def measure(model: nn.Module, batch: int, size: int, steps: int, warm: int, device: str, compiled: bool) -> dict:
    """Median step time in milliseconds after `warm` steps, and what the losses were."""
    model = model.to(device).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    images = torch.randn(batch, 3, size, size, device=device)
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
    return {"step_ms": round(middle, 2), "images_per_second": round(1e3 * batch / middle), "peak_gb": peak,
            "first_loss": losses[0], "last_loss": losses[-1], "steps": steps,
            "finite": all(math.isfinite(value) for value in losses)}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", default=NETWORKS, help="names of timm's")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--warm", type=int, default=20, help="steps that do not count for the time")
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--no-compile", action="store_true")
    parser.add_argument("--out", help="JSON file to write")
    options = parser.parse_args()
    if options.device == "cuda" and not torch.cuda.is_available():
        print("device=cuda: there is no GPU; give --device cpu", file=sys.stderr)
        return 3
    if not 0 <= options.warm < options.steps:
        print(f"warm={options.warm}: give fewer than the {options.steps} steps", file=sys.stderr)
        return 2
    found = {"hardware": environment.hardware(), "torch": torch.__version__, "batch": options.batch, "rows": []}
    for name in options.networks:
        torch.manual_seed(0)
        floating = timm.create_model(name)
        quantized = vitq.quantize(floating, ofq_spec(2)).to(options.device)
        vitq.calibrate(quantized, [torch.randn(8, 3, options.size, options.size, device=options.device)])
        for compiled in (False, True)[: 1 if options.no_compile else 2]:
            pair = {}
            for kind, model in (("float", floating), ("W2A2", quantized)):
                pair[kind] = measure(model, options.batch, options.size, options.steps, options.warm, options.device,
                                     compiled)
                found["rows"].append({"network": name, "kind": kind, "compiled": compiled, **pair[kind]})
            ratio = pair["W2A2"]["step_ms"] / pair["float"]["step_ms"]
            found["rows"][-1]["ratio_to_float"] = round(ratio, 3)
            first, second = pair["float"]["step_ms"], pair["W2A2"]["step_ms"]
            print(f"{name}, compiled={compiled}: {first} ms float, {second} ms W2A2, {ratio:.2f} times, "
                  f"finite: {pair['W2A2']['finite']}", flush=True)
    if options.out:
        with open(options.out, "w") as file:
            json.dump(found, file, indent=1)
    return int(not all(row["finite"] for row in found["rows"]))


if __name__ == "__main__":
    sys.exit(main())
