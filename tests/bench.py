"""`make bench`: what quantization, tracking, freezing and dampening cost, as ratios measured side by side in one run.

Every training step is timed in turn with its reference (A B A B ...), so that a change in the machine's speed hits
both; the figure is the median of the ratios of neighbours. Exit status 1 if a bound is exceeded. `--out FILE` writes a
CSV. At the end the rate at which one core reads JPEG files is printed (`bench_reading.py`).
"""

import argparse
import statistics
import subprocess
import sys
import time
from collections.abc import Callable

import bench_reading
import timm
import torch
from bench_report import write_table
from torch import nn

import vitq
from vitq import environment
from vitq.oscillation import OscillationTracking
from vitq.papers.nagel2022 import Dampening, IterativeFreezing
from vitq.papers.ofq2023 import ofq_spec
from vitq.papers.vvtq2023 import BinRegularization
from vitq.train.callbacks import Callback, TrainState

MODEL, BATCH, CLASSES = "deit_tiny_patch16_224", 16, 1000
DISTILLED = "deit_tiny_distilled_patch16_224"  # the network of OFQ 2023


def training_step(model: nn.Module, callbacks: list[Callback], images, labels) -> Callable[[], None]:
    """A closure that does one step of SGD with the hooks of the callbacks, as `vitq.train.fit` does."""
    model.train()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)
    state = TrainState(model, torch.device("cpu"), total_steps=1000, optimizers=[optimizer])
    for callback in callbacks:
        callback.on_start(state)

    def step() -> None:
        loss = nn.functional.cross_entropy(model(images), labels)
        for callback in callbacks:
            extra = callback.loss(state)
            loss = loss if extra is None else loss + extra
        loss.backward()
        for callback in callbacks:
            callback.after_backward(state)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        state.step += 1
        for callback in callbacks:
            callback.after_step(state)

    return step


def seconds(step: Callable[[], None]) -> float:
    start = time.perf_counter()
    step()
    return time.perf_counter() - start


def ratio(step: Callable[[], None], reference: Callable[[], None], rounds: int) -> tuple[float, float]:
    """Median over rounds of the ratio of the two neighbouring times, and median milliseconds of `step`."""
    seconds(step), seconds(reference)
    pairs = [(seconds(step), seconds(reference)) for _ in range(rounds)]
    return statistics.median(a / b for a, b in pairs), 1e3 * statistics.median(a for a, _ in pairs)


def import_seconds(code: str, rounds: int = 5) -> float:
    """Median seconds that `code` adds to a process that has imported torch."""
    program = f"import torch, time; start = time.perf_counter()\n{code}\nprint(time.perf_counter() - start)"
    runs = [subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
            for _ in range(rounds)]
    return statistics.median(map(float, runs))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--out", help="CSV file to write")
    options = parser.parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(min(2, torch.get_num_threads()))
    images, labels = torch.randn(BATCH, 3, 224, 224), torch.randint(CLASSES, (BATCH,))
    float_model = timm.create_model(MODEL)

    def quantized(*callbacks: Callback) -> Callable[[], None]:
        model = vitq.calibrate(vitq.quantize(float_model, vitq.QuantSpec(4, 4)), [images])
        return training_step(model, list(callbacks), images, labels)

    def ofq(**options: str) -> Callable[[], None]:
        model = vitq.calibrate(vitq.quantize(distilled, ofq_spec(2, **options)), [images])
        return training_step(model, [], images, labels)

    distilled = timm.create_model(DISTILLED)
    cases = [
        ("W4A4 step / float step", 1.5, quantized(), training_step(float_model, [], images, labels)),
        ("tracking / plain W4A4 step", 1.05, quantized(OscillationTracking(0.01)), quantized()),
        ("freezing / plain W4A4 step", 1.05, quantized(IterativeFreezing(0.05, momentum=0.01)), quantized()),
        ("dampening / plain W4A4 step", 1.10, quantized(Dampening(1e-3)), quantized()),
        ("bin regularization / plain W4A4 step", 1.10, quantized(BinRegularization(begin=0.0)), quantized()),
        ("OFQ W2A2 with QKR / float step", 1.8, ofq(), training_step(distilled, [], images, labels)),
        ("OFQ W2A2, StatsQ / LSQ weights", 1.03, ofq(query_key="fused"), ofq(query_key="fused", weight="lsq")),
    ]
    rows = []
    for name, bound, step, reference in cases:
        value, milliseconds = ratio(step, reference, options.rounds)
        rows.append({"figure": name, "measured": f"{value:.3f}", "bound": bound, "step (ms)": f"{milliseconds:.0f}"})
    added = import_seconds("import vitq")
    name = "import vitq after import torch (s)"
    rows.append({"figure": name, "measured": f"{added:.3f}", "bound": 0.3, "step (ms)": ""})
    print(f"{MODEL}, batch {BATCH}, {torch.get_num_threads()} threads, {environment.hardware()}")
    for row in rows:
        verdict = "within" if float(row["measured"]) <= row["bound"] else "EXCEEDS"
        print(f"{row['figure']:<38} {row['measured']:>7}  {verdict} {row['bound']}  {row['step (ms)']:>6}")
    if options.out:
        write_table(options.out, rows)
    bench_reading.main([])
    return int(any(float(row["measured"]) > row["bound"] for row in rows))


if __name__ == "__main__":
    sys.exit(main())
