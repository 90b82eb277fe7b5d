"""What a run costs: time of a step measured here, or counted for a GPU that is not here; memory; disk."""

import contextlib
import dataclasses
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

import vitq
from vitq import zoo
from vitq.train import roofline
from vitq.train.assembly import augmented, load_model, set_heads, task_loss
from vitq.train.callbacks import Callback, TrainState
from vitq.train.checkpoints import list_checkpoints
from vitq.train.config import TrainConfig
from vitq.train.full import IMAGENET
from vitq.train.loop import fit
from vitq.train.ranks import Ranks
from vitq.train.remedies import build_remedy
from vitq.train.run_config import RunConfig

COUNTED = (2, 4)  # batch sizes on which kernels are counted
CPU_BATCH = 8
CONTEXT_GB = 1.0  # of a GPU's memory, for the driver and the workspace of the convolutions
CHECKPOINTS = 3  # two are kept, and one is being written


@dataclass(frozen=True)
class Speed:
    """Training speed of a configuration on a device.

    Args:
        device: what it is or would be.
        how: "measured here" or "estimated", and from what.
        images_per_second: trained by one device.
        memory_gb: of a process, None if it was not measured.
        checkpoint_gb: size of one checkpoint on disk.
    """

    device: str
    how: str
    images_per_second: float
    memory_gb: float | None
    checkpoint_gb: float


@dataclass(frozen=True)
class Cost:
    """Cost of all seeds of a run: device hours, memory and disk in GB (10^9 bytes), and how they were estimated."""

    device: str
    how: str
    images_per_second: float
    device_hours: float
    memory_gb: float | None
    disk_gb: float

    def __str__(self) -> str:
        memory = "memory not known" if self.memory_gb is None else f"memory {self.memory_gb:.1f} GB"
        time = f"{self.device_hours:.3g} hours" if self.device_hours < 100 else f"{self.device_hours / 24:.0f} days"
        return (f"{self.device} ({self.how}):\n"
                f"  {time} at {self.images_per_second:.3g} images/s, {memory}, disk {self.disk_gb:.2f} GB")


class _Clock(Callback):
    """Time at the end of each step."""

    def __init__(self, now: Callable[[], float]) -> None:
        self.now, self.times = now, []

    def after_step(self, state: TrainState) -> None:
        synchronize(state.device)
        self.times.append(self.now())


def synchronize(device: torch.device) -> None:
    """Wait until a GPU has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def measure(config: RunConfig, *, steps: int = 3, processes: int = 1, classes: int = 1000,
            clock: Callable[[], float] = time.perf_counter) -> Speed:
    """Time a few training steps of a run on the device that it would use, on random images and weights.

    The loop, the quantized network, the teacher and the remedies are those of the run; reading images is not in it
    (`reading_speed`). On a processor smaller batches are timed, whose time an image is nearly the same.

    Args:
        config: the run.
        steps: to time, after one to warm up.
        processes: that share a batch.
        classes: of the network.
        clock: another one, such as `time.process_time` on a processor that does other work too.
    """
    device = Ranks(config.train.device).device
    on_gpu = device.type == "cuda"
    batch = config.train.batch_size // processes if on_gpu else min(CPU_BATCH, config.train.batch_size)
    if on_gpu:
        torch.cuda.reset_peak_memory_stats(device)
    watch = _Clock(clock)
    checkpoint = _steps(config, batch, steps + 1, watch, classes)
    seconds = sorted(b - a for a, b in zip(watch.times, watch.times[1:], strict=False))
    memory = torch.cuda.max_memory_allocated(device) / 1e9 + CONTEXT_GB if on_gpu else None
    name = torch.cuda.get_device_name(device) if on_gpu else f"this processor, torch threads: {torch.get_num_threads()}"
    if on_gpu:
        torch.cuda.empty_cache()
    return Speed(name, f"measured here: {steps} steps of {batch} images", batch / seconds[len(seconds) // 2], memory,
                 checkpoint)


def count(config: RunConfig, device: roofline.Device = roofline.A100, classes: int = 1000) -> Speed:
    """Estimate the same for a GPU that is not at hand, by counting kernels (`vitq.train.roofline`)."""
    counts = []
    on_cpu = dataclasses.replace(config, train=dataclasses.replace(config.train, device="cpu"),
                                 remedies=[_without_frozen(entry) for entry in config.remedies])
    for batch in COUNTED:
        counter = roofline.StepCount()
        with _whole_tensors():
            checkpoint = _steps(on_cpu, batch, 2, counter, classes)
        counts.append(counter)
    small, large = counts
    batch = config.train.batch_size
    seconds = roofline.step_seconds(small.kernels, large.kernels, COUNTED, batch, device)
    saved = roofline.extrapolate(small.saved, large.saved, COUNTED, batch) / config.train.accumulation / 1e9
    # Around the peak a layer's gradients and its temporary copies come on top of what autograd keeps.
    return Speed(device.name, f"estimated from {len(small.kernels)} kernels a step", batch / seconds,
                 1.2 * saved + 2 * checkpoint + CONTEXT_GB, checkpoint)


@contextlib.contextmanager
def _whole_tensors():
    """Quantizers work on whole tensors, as on a GPU, and not in parts that fit the cache of a processor."""
    from vitq.quantizers import offset_lsq

    before, offset_lsq.CHUNK = offset_lsq.CHUNK, 2**40
    try:
        yield
    finally:
        offset_lsq.CHUNK = before


def _without_frozen(entry: dict[str, Any]) -> dict[str, Any]:
    """Freezing that holds nothing: on a processor its kernels depend on what was frozen, on a GPU they do not."""
    return entry | {"threshold": 1.0, "final": None} if entry["name"] == "freezing" else entry


def reading_speed(config: RunConfig, batches: int = 3) -> float:
    """Training images a second that the readers of a run's image folder deliver here, after the first batch."""
    from vitq import data

    given, size = config.data, config.train.batch_size
    dataset = data.load(given.name, "train", size=given.image_size, images=given.train_images, path=given.path)
    dataset = augmented(dataset, config)
    reader = iter(data.batches(dataset, min(size, len(dataset)), train=True))
    next(reader)
    began, images = time.perf_counter(), 0
    for _, (_, labels) in zip(range(batches), reader, strict=False):
        images += len(labels)
    return images / (time.perf_counter() - began)


def estimate(config: RunConfig, speed: Speed, *, seeds: int = 1, train_images: int = IMAGENET["train"],
             test_images: int = IMAGENET["val"]) -> Cost:
    """Cost of a run at a speed: training, and evaluations at a third of its time an image.

    Args:
        config: the run.
        speed: from `measure` or `count`.
        seeds: runs.
        train_images: in the training set.
        test_images: in the test set.
    """
    settings, limit = config.train, config.limit_batches
    per_epoch = train_images // settings.batch_size
    steps = settings.total_steps(per_epoch) if limit is None else min(limit, settings.total_steps(per_epoch))
    crops = 1 if config.soft_labels is None else config.soft_labels.crops  # of each image in a pass
    every = crops * per_epoch if settings.evaluate_every is None else settings.evaluate_every
    evaluations = 2 + 2 * config.evaluate_before + (steps // every if every else 0)
    evaluations += (settings.ema is not None) * (1 + (steps // every if every else 0))
    evaluated = evaluations * (test_images if limit is None else min(test_images, 256 * limit))
    seconds = (steps * settings.batch_size + evaluated / 3) / speed.images_per_second
    return Cost(speed.device, speed.how, speed.images_per_second, seeds * seconds / 3600, speed.memory_gb,
                seeds * (CHECKPOINTS + 1) * speed.checkpoint_gb)


def _steps(config: RunConfig, batch: int, steps: int, watcher: Callback, classes: int) -> float:
    """Train a few steps on random images, and return the size of a checkpoint in GB."""
    settings = TrainConfig.from_dict(config.train.to_dict() | {
        "epochs": None, "steps": steps, "batch_size": batch, "accumulation": 1, "log_every": 10**9,
        "checkpoint_every": 0, "evaluate_every": 0, "warmup_steps": 0, "cooldown_epochs": 0})
    device = Ranks(settings.device).device
    blank = dataclasses.replace(config, pretrained=False, checkpoint=None, teacher=None, soft_labels=None)
    model = load_model(blank, SimpleNamespace(num_classes=classes))
    size = config.data.image_size or zoo.preprocessing(model)["size"]
    images = torch.randn(batch * steps, 3, size, size, generator=torch.Generator().manual_seed(0))
    if config.quant is not None:
        model = vitq.quantize(model, vitq.QuantSpec.from_dict(config.quant)).to(device)
        vitq.calibrate(model, [images[:batch].to(device)])
    teacher = None
    if config.teacher is not None:
        other = config.model if config.teacher.model == "self" else config.teacher.model
        teacher = zoo.load(other, pretrained=False, num_classes=classes).to(device)
    set_heads(model, config)
    remedies = [build_remedy(at_work(entry), config.variant) for entry in config.remedies]
    with tempfile.TemporaryDirectory() as scratch:
        fit(model, (images, torch.arange(len(images)) % classes), settings, callbacks=[*remedies, watcher],
            loss=task_loss(config, teacher), out=scratch)
        newest = list_checkpoints(Path(scratch) / "checkpoints")[-1]
        return sum(file.stat().st_size for file in newest.iterdir()) / 1e9


def at_work(entry: dict[str, Any]) -> dict[str, Any]:
    """A remedy as it is later in a run: bin regularization begins after a quarter of the epochs, here at once."""
    return entry | {"begin": 0.0, "epochs": None} if entry["name"] == "bin_regularization" else entry


if __name__ == "__main__":
    import sys

    from vitq.train.plan import main
    sys.exit(main())
