"""The soft labels that a full run needs: whether they are there, and else what makes them, on how much disk, how long.

The paper's labels are FKD's: 500 crops of each training image, labelled by EfficientNet-L2 (noisy student, 475 pixels),
of which the five most probable classes are kept.
"""

import dataclasses
import functools
import time
from pathlib import Path

import torch

from vitq import zoo
from vitq.data.soft_labels import CropSettings, LabelFormat, make, total_bytes
from vitq.data.soft_labels.layout import IMAGENET_IMAGES, bytes_per_crop
from vitq.errors import InputError, MissingError
from vitq.train import roofline
from vitq.train.assembly import load_data, load_model, load_soft_labels, preprocessed, training_data
from vitq.train.ranks import Ranks
from vitq.train.report import State
from vitq.train.rows import Row
from vitq.train.run_config import RunConfig

TEACHER, TEACHER_SIZE = "tf_efficientnet_l2.ns_jft_in1k_475", 475
CROPS, FKD_BYTES = 500, 57  # stored crops of an image; bytes a crop of the published files
FKD_FOLDER = "FKD_soft_label_500_crops_marginal_smoothing_k_5"
BF16 = dataclasses.replace(roofline.A100, peak=312e12)  # data sheet, dense BF16
TRY_CROPS = 8


@functools.cache
def teacher_speed(batch: int = 256) -> tuple[float, int]:
    """Crops a second of the teacher on an A100 in bf16, estimated, and the kernels of a forward pass that were counted.

    Nothing is computed: the network has no values (``vitq.train.roofline`` says how it counts).
    """
    import timm

    sizes, counted = (2, 4), []
    for few in sizes:
        with torch.device("meta"):
            model = timm.create_model(TEACHER).eval().to(torch.bfloat16)
            images = torch.empty(few, 3, TEACHER_SIZE, TEACHER_SIZE, dtype=torch.bfloat16)
        kernels: list[tuple[int, int]] = []
        with torch.no_grad(), roofline._Counting(kernels):
            model(images)
        counted.append(kernels)
    return batch / roofline.step_seconds(*counted, sizes, batch, BF16), len(counted[0])


def teacher_hours(crops: int = CROPS, images: int = IMAGENET_IMAGES) -> float:
    """Hours of one A100 for the labels of so many crops of each image."""
    return images * crops / teacher_speed()[0] / 3600


def make_command(data: str, out: str, crops: int = CROPS) -> str:
    """What makes the paper's labels from the training images."""
    return (f"vitq labels make --teacher timm:{TEACHER} --data {data} --crops {crops} --top-k 5 \\\n"
            f"  --device cuda --precision bf16 --out {out}")


def offer(data: str = "/path/to/imagenet", out: str = "/path/to/labels", seen: int = 0) -> str:
    """How to come by the labels: the command, disk and hours, estimated.

    Args:
        data: the ImageNet folder.
        out: where to put a store.
        seen: crops of an image that the run draws; with less than 500, a smaller store is offered too.
    """
    label, (speed, kernels) = LabelFormat(), teacher_speed()
    lines = ["published labels, nothing to compute (the files of github.com/szq0214/FKD):",
             f"  -p labels_path /path/to/{FKD_FOLDER}",
             f"  {FKD_BYTES * CROPS * IMAGENET_IMAGES / 1e9:.1f} GB, {FKD_BYTES} bytes a crop"]
    for crops in (CROPS, seen) if 0 < seen < CROPS else (CROPS,):
        lines += [f"labels made here, {crops} crops an image:", f"  {make_command(data, out, crops)}",
                  f"  then -p labels_path {out}",
                  f"  {total_bytes(IMAGENET_IMAGES, crops, label) / 1e9:.1f} GB, {bytes_per_crop(label)} bytes a crop; "
                  f"{teacher_hours(crops):,.0f} hours of one {BF16.name}"]
    return "\n".join([*lines, f"hours: estimated, {speed:.0f} crops/s of the teacher from {kernels} kernels a forward "
                              "pass"])


def at(row: Row, path: str | Path) -> Row:
    """The row with its soft labels in a folder."""
    return row.changed(soft_labels=dataclasses.replace(row.config.soft_labels, path=str(path)))


def check(row: Row, state: State, out: Path | str, folder: str, scale: str) -> Row:
    """Look at the soft labels of a run, print what is there, or how to come by them.

    At scale "smoke" a run without labels gets some of an untrained network, in ``out``/labels.

    Args:
        row: what to run, from ``rows.resolve``.
        state: of ``report.check``; gets a reason not to start, at scale "small", where labels are missing.
        out: folder of the run.
        folder: of the images.
        scale: of the notebook.

    Returns:
        The row, with the folder of the labels.

    Raises:
        MissingError: at scale "full" or "smoke", no labels or not all of them; names the parameter.
        InputError: labels of other images, or a batch that cannot be shared so; names the parameter.
    """
    given = row.config.soft_labels
    if given is None:
        print("soft labels: none, this run learns from the labels of the images")
        return row
    if state.done:
        return row
    if scale == "smoke" and not given.path and not state.reason:
        row = at(row, _for_a_try(row, Path(out) / "labels"))
    if not row.config.soft_labels.path or state.reason:
        _missing(row, state, folder, scale)
        return row
    config = row.config
    try:
        images = load_data(config)[0]
        labels = load_soft_labels(config, images)
    except (InputError, MissingError) as error:
        raise type(error)(f"parameter labels_path: {error}") from None
    shared = given.crops * state.processes * config.train.accumulation
    if config.train.batch_size % shared:
        raise InputError(f"parameter gpus: the batch of {config.train.batch_size} crops is no multiple of {shared}, "
                         f"{given.crops} crops of an image on {state.processes} GPUs; give another number")
    print(f"soft labels: {len(labels):,} images, {labels.crops} crops each, {labels.label.kind}, top "
          f"{labels.label.top_k} of {labels.num_classes} classes")
    return row


def _missing(row: Row, state: State, folder: str, scale: str) -> None:
    seen = sum(part.crops for part in _plan(row.config))
    text = offer(folder or "/path/to/imagenet", seen=seen)
    if not state.reason and scale != "small":
        raise MissingError(f"parameter labels_path: no soft labels given. {' '.join(text.split())}")
    state.reason = state.reason or "no soft labels given (labels_path)"
    print(f"soft labels: none given (labels_path)\n{text}")


def _plan(config: RunConfig) -> list:
    from vitq.papers.vvtq2023.mckd import epoch_plan

    train = config.train
    return epoch_plan(IMAGENET_IMAGES, train.batch_size, train.epochs, config.soft_labels.crops, train.warmup_epochs)


def _for_a_try(row: Row, out: Path) -> Path:
    """A store from an untrained network of the run's own kind."""
    images, _ = load_data(row.config)
    torch.manual_seed(0)
    teacher = zoo.load(row.config.model, pretrained=False, num_classes=images.num_classes)
    label = LabelFormat(top_k=min(5, images.num_classes - 1))
    make(out, images, teacher.eval(), CropSettings(crops=TRY_CROPS, label=label), workers=0, progress=False)
    return out


def reading_speed(config: RunConfig, batches: int = 3) -> float:
    """Crops a second that the readers of a run with soft labels deliver here, after the first batch."""
    images, _ = load_data(config)
    labels = load_soft_labels(config, images)
    images = preprocessed(images, load_model(config, images), config)
    source, _ = training_data(config, images, labels, Ranks("cpu"))
    reader = iter(source.iterate())
    next(reader)
    began, count = time.perf_counter(), 0
    for _, (pixels, _) in zip(range(batches), reader, strict=False):
        count += len(pixels)
    return count / (time.perf_counter() - began)
