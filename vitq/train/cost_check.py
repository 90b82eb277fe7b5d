"""`python -m vitq.train.cost_check FILE...`: a notebook's estimate of a run beside the run itself, on this machine.

For each parameter file the time of a step is estimated as the run's notebook does it (`vitq.train.cost.measure`: a few
steps on random images). Then `vitq.train.run` trains it on generated JPEG files of 500 x 375 pixels, with readers,
augmentation, teacher, remedies, evaluations and checkpoints, cut to some steps, and its steps are timed. The two are
done in turn in some rounds, since the speed of a machine that does other work varies; the median of the ratios counts.

Weights are random and soft labels those of an untrained network: neither changes the time. On a processor the batch
is made small; give `--batch-size 0` for that of the file. With `--processor-time` all times are those that the training
process computed, without waiting and without the readers, so that other work on the machine disturbs them little.
"""

import argparse
import csv
import dataclasses
import io
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
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
    """Time at the end of each step; what comes between two is the step, and now and then a checkpoint."""

    ends: list[float] = []  # of the class, since the run makes the callback itself, from its name
    now: Callable[[], float] = time.perf_counter

    def on_start(self, state: TrainState) -> None:
        Clock.ends = []

    def after_step(self, state: TrainState) -> None:
        cost.synchronize(state.device)
        Clock.ends.append(Clock.now())


def check(name: str, steps: int, batch: int, folder: Path | str, rounds: int = 3,
          clock: Callable[[], float] = time.perf_counter) -> dict[str, str]:
    """One row of the comparison.

    Args:
        name: of a parameter file.
        steps: of the run.
        batch: images of a step, 0 for the file's.
        folder: for images, labels and the run.
        rounds: of estimate and run.
        clock: `time.process_time` for processor time.

    Raises:
        InputError: a wrong file, fewer than five steps, or no round.
        MissingError: no such device.
    """
    if steps < 5 or rounds < 1:
        raise InputError(f"steps={steps}, rounds={rounds}: give at least 5 steps and one round")
    row, Clock.now = rows.read(name), clock
    config, size = cut(row.config, steps, batch, Path(folder)), batch or row.config.train.batch_size
    pairs = []  # estimated and measured seconds of a step
    for number in range(rounds):
        speed = cost.measure(config, steps=2, classes=CLASSES, clock=clock)
        run(config, Path(folder) / f"run-{number}")
        gaps = [end - start for start, end in zip(Clock.ends[SKIPPED - 1:], Clock.ends[SKIPPED:], strict=False)]
        pairs.append((size / speed.images_per_second, statistics.median(gaps)))
    ratio = statistics.median(estimated / measured for estimated, measured in pairs)
    estimated, measured = (statistics.median(column) for column in zip(*pairs, strict=True))
    return {"run": row.name.replace("_imagenet_", " "), "device": speed.device, "batch": str(size),
            "steps": f"{rounds} x {steps}",
            "estimated (s)": f"{estimated:.3g}", "measured (s)": f"{measured:.3g}",
            "off by (%)": f"{100 * (ratio - 1):+.0f}"}


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


def draw(folder: Path, train: int, val: int, size: tuple[int, int] | None = None) -> None:
    """An image folder of `CLASSES` classes with JPEG files of coarse noise, as detailed as photographs are.

    Args:
        folder: gets train/ and val/.
        train: number of training images.
        val: number of test images.
        size: width and height, those of a typical image of ImageNet if None.
    """
    from PIL import Image

    rng, (width, height) = np.random.default_rng(0), size or (WIDTH, HEIGHT)
    for split, count in (("train", train), ("val", val)):
        for number in range(count):
            coarse = Image.fromarray(rng.integers(0, 256, (height // 4, width // 4, 3), dtype=np.uint8))
            file = folder / split / f"n{number % CLASSES:08d}" / f"{number}.JPEG"
            file.parent.mkdir(parents=True, exist_ok=True)
            coarse.resize((width, height)).save(file, quality=90)


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
    parser.add_argument("--rounds", type=int, default=3, help="of estimate and run (default: 3)")
    parser.add_argument("--batch-size", type=int, default=16, help="0 for that of the file (default: 16)")
    parser.add_argument("--processor-time", action="store_true", help="instead of time on the clock")
    parser.add_argument("--out", help="CSV file to write")
    given = parser.parse_args(arguments)
    clock, found = time.process_time if given.processor_time else time.perf_counter, []
    try:
        for name in given.rows:
            with tempfile.TemporaryDirectory() as folder:
                found.append(check(name, given.steps, given.batch_size, folder, given.rounds, clock))
            print("  ".join(f"{key}: {value}" for key, value in found[-1].items()), flush=True)
            if given.out:  # after each run, since all of them take minutes
                _write(given.out, found)
    except (InputError, MissingError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2 if isinstance(error, InputError) else 3
    print(environment.hardware())
    return int(any(abs(float(entry["off by (%)"])) > BAR for entry in found))


def _write(file: str, found: list[dict[str, str]]) -> None:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(found[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(found)
    write_text(file, text.getvalue())


if __name__ == "__main__":
    sys.exit(main())
