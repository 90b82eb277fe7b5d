"""`python -m vitq.train.cost_check FILE...`: a notebook's estimate of a run beside the run itself, on this machine.

For each parameter file the time of a step is estimated as the run's notebook does it (`vitq.train.cost.measure`: a few
steps on random images). Then `vitq.train.run` trains it on generated JPEG files of 500 x 375 pixels, with readers,
augmentation, teacher, remedies, evaluations and checkpoints, cut to some steps, and its steps are timed. The estimate
is made before and after the run, and the mean counts, since the speed of a machine that does other work varies.

Weights are random and soft labels those of an untrained network: neither changes the time. On a processor the batch
is made small; give `--batch-size 0` for that of the file.
"""

import argparse
import csv
import dataclasses
import io
import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from vitq import environment
from vitq.errors import InputError, MissingError
from vitq.files import write_text
from vitq.train import cost, rows
from vitq.train.callbacks import Callback, TrainState
from vitq.train.remedies import register_remedy
from vitq.train.run_config import RunConfig
from vitq.train.runs import run

BAR = 25  # percent that an estimate may be off
WIDTH, HEIGHT = 500, 375  # of ImageNet's typical image
CLASSES = 10
SKIPPED = 2  # first steps that are not counted, since they warm up


class Clock(Callback):
    """Time between the ends of two steps, with whatever comes between: reading, evaluations, checkpoints."""

    ends: list[float] = []  # the run makes the callback itself, from its name

    def on_start(self, state: TrainState) -> None:
        Clock.ends = []

    def after_step(self, state: TrainState) -> None:
        cost.synchronize(state.device)
        Clock.ends.append(time.perf_counter())


def check(name: str, steps: int, batch: int, folder: Path | str) -> dict[str, str]:
    """One row of the comparison.

    Args:
        name: of a parameter file.
        steps: of the run.
        batch: images of a step, 0 for the file's.
        folder: for images, labels and the run.

    Raises:
        InputError: a wrong file, or fewer than five steps.
        MissingError: no such device.
    """
    if steps < 5:
        raise InputError(f"steps={steps}: give at least 5")
    row = rows.read(name)
    config = cut(row.config, steps, batch, Path(folder))
    before = cost.measure(config, steps=2, classes=CLASSES)
    began = time.perf_counter()
    run(config, Path(folder) / "run")
    whole = time.perf_counter() - began
    after = cost.measure(config, steps=2, classes=CLASSES)
    speed = 2 / (1 / before.images_per_second + 1 / after.images_per_second)
    size = config.train.batch_size
    estimated = cost.estimate(config, dataclasses.replace(before, images_per_second=speed), train_images=size * steps,
                              test_images=2 * CLASSES)
    gaps = [end - start for start, end in zip(Clock.ends[SKIPPED - 1:], Clock.ends[SKIPPED:], strict=False)]
    measured = statistics.median(gaps)
    return {"run": row.name, "device": before.device, "batch": str(size), "steps": str(steps),
            "estimated s a step": f"{size / speed:.3g}", "measured s a step": f"{measured:.3g}",
            "estimate is off by, %": f"{100 * (size / speed / measured - 1):+.0f}",
            "estimated s in all": f"{3600 * estimated.device_hours:.0f}", "measured s in all": f"{whole:.0f}"}


def cut(config: RunConfig, steps: int, batch: int, folder: Path) -> RunConfig:
    """The run on generated images, cut to some steps, its remedies at work from the first one."""
    train = dataclasses.replace(config.train, batch_size=batch or config.train.batch_size)
    crops = 1 if config.soft_labels is None else config.soft_labels.crops
    count = train.batch_size * -(-steps // crops)
    draw(folder / "images", count, 2 * CLASSES)
    register_remedy("clock", f"{__name__}.Clock")
    changed = dataclasses.replace(
        config, train=train, pretrained=False, checkpoint=None, limit_batches=steps, scale="smoke", continue_from=None,
        data=dataclasses.replace(config.data, path=str(folder / "images")),
        remedies=[*(cost.at_work(entry) for entry in config.remedies), {"name": "clock"}])
    return changed if config.soft_labels is None else _labelled(changed, folder / "labels")


def draw(folder: Path, train: int, val: int, seed: int = 0) -> None:
    """An image folder of `CLASSES` classes with JPEG files of coarse noise, as detailed as photographs are."""
    from PIL import Image

    rng = np.random.default_rng(seed)
    for split, count in (("train", train), ("val", val)):
        for number in range(count):
            coarse = Image.fromarray(rng.integers(0, 256, (HEIGHT // 4, WIDTH // 4, 3), dtype=np.uint8))
            file = folder / split / f"n{number % CLASSES:08d}" / f"{number}.JPEG"
            file.parent.mkdir(parents=True, exist_ok=True)
            coarse.resize((WIDTH, HEIGHT)).save(file, quality=90)


def _labelled(config: RunConfig, folder: Path) -> RunConfig:
    """The run with soft labels of an untrained network of its own kind."""
    from vitq import zoo
    from vitq.data.soft_labels import CropSettings, LabelFormat, make
    from vitq.train.assembly import load_data

    teacher = zoo.load(config.model, pretrained=False, num_classes=CLASSES).eval()
    crops = CropSettings(crops=config.soft_labels.crops, label=LabelFormat(top_k=5))
    make(folder, load_data(config)[0], teacher, crops, workers=0, progress=False)
    return dataclasses.replace(config, soft_labels=dataclasses.replace(config.soft_labels, path=str(folder)))


def main(arguments: list[str] | None = None) -> int:
    """Print the comparison; exit status 1 if an estimate is off by more than 25 %, 2 for wrong input, 3 for missing."""
    parser = argparse.ArgumentParser(prog="python -m vitq.train.cost_check", description=__doc__.partition("\n")[0])
    parser.add_argument("rows", nargs="+", metavar="FILE", help="parameter files, by path or by name")
    parser.add_argument("--steps", type=int, default=12, help="of each run (default: 12)")
    parser.add_argument("--batch-size", type=int, default=16, help="0 for that of the file (default: 16)")
    parser.add_argument("--out", help="CSV file to write")
    given = parser.parse_args(arguments)
    found = []
    try:
        for name in given.rows:
            with tempfile.TemporaryDirectory() as folder:
                found.append(check(name, given.steps, given.batch_size, folder))
            print("  ".join(f"{key}: {value}" for key, value in found[-1].items()), flush=True)
    except (InputError, MissingError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2 if isinstance(error, InputError) else 3
    print(environment.hardware())
    if given.out:
        text = io.StringIO()
        writer = csv.DictWriter(text, list(found[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(found)
        write_text(given.out, text.getvalue())
    return int(any(abs(float(entry["estimate is off by, %"])) > BAR for entry in found))


if __name__ == "__main__":
    sys.exit(main())
