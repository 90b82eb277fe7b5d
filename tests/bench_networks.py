"""`make bench`, second part: a W4A4 training step (LSQ) over the full-precision one, and images a second, by network.

The two steps are timed in turn, as in `bench.py`, in float32 on the processor, with the images in channels-last layout
for convolutional networks, as `vitq.train` has them. `--out FILE` writes the table of the book; `--profile NETWORK`
shows instead where the time of the two steps goes. There is no bar here; `bench_gpu.py` has one.
"""

import argparse
import sys
from collections.abc import Callable

import bench
import timm
import torch
from bench_report import write_table

import vitq
from vitq import environment

NETWORKS = {
    "DeiT-T": "deit_tiny_patch16_224", "DeiT-S": "deit_small_patch16_224", "Swin-T": "swin_tiny_patch4_window7_224",
    "MobileNetV2": "mobilenetv2_100", "EfficientNet-lite0": "tf_efficientnet_lite0",
}
CONVOLUTIONAL = ("MobileNetV2", "EfficientNet-lite0")


def steps(network: str, batch: int) -> tuple[Callable[[], None], Callable[[], None]]:
    """A training step of the quantized network and one of the full-precision network, on the same images."""
    layout = torch.channels_last if network in CONVOLUTIONAL else torch.contiguous_format
    images = torch.randn(batch, 3, 224, 224).to(memory_format=layout)
    labels = torch.randint(bench.CLASSES, (batch,))
    plain = timm.create_model(NETWORKS[network])
    quantized = vitq.calibrate(vitq.quantize(plain, vitq.QuantSpec(4, 4)), [images])
    return tuple(bench.training_step(model.to(memory_format=layout), [], images, labels)
                 for model in (quantized, plain))


def measured(network: str, batch: int, rounds: int) -> dict[str, str]:
    """One line of the table."""
    ratio, milliseconds = bench.ratio(*steps(network, batch), rounds)
    return {"network": network, "batch": str(batch), "W4A4 / full precision": f"{ratio:.2f}",
            "W4A4 step, ms": f"{milliseconds:.0f}", "W4A4 images/s": f"{1000 * batch / milliseconds:.1f}",
            "full-precision images/s": f"{1000 * batch * ratio / milliseconds:.1f}"}


def profile(network: str, batch: int, lines: int = 12, repeats: int = 3) -> None:
    """Print the operations that take most of the time of both steps, in ms a step."""
    for name, step in zip(("W4A4", "full precision"), steps(network, batch), strict=True):
        step()
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as seen:
            for _ in range(repeats):
                step()
        events = sorted(seen.key_averages(), key=lambda event: -event.self_cpu_time_total)
        total = sum(event.self_cpu_time_total for event in events)
        print(f"{network}, batch {batch}, {name}: {total / 1e3 / repeats:.0f} ms a step")
        for event in events[:lines]:
            share = event.self_cpu_time_total / total
            print(f"  {event.key:<50} {event.self_cpu_time_total / 1e3 / repeats:>8.1f} ms {share:>5.0%} "
                  f"{event.count // repeats:>5} calls")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", default=list(NETWORKS), choices=NETWORKS)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--profile", choices=NETWORKS, metavar="NETWORK")
    parser.add_argument("--out", help="CSV file to write")
    given = parser.parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(min(2, torch.get_num_threads()))
    if given.profile:
        profile(given.profile, given.batch)
        return 0
    print(f"{torch.get_num_threads()} threads, {environment.hardware()['cpu']}")
    table = []
    for network in given.networks:
        table.append(measured(network, given.batch, given.rounds))
        print("  ".join(f"{name}: {value}" for name, value in table[-1].items()), flush=True)
        if given.out:  # after each network, since all of them take minutes
            write_table(given.out, table)
    return 0


if __name__ == "__main__":
    sys.exit(main())
