"""`vitq labels make | info | check`: soft labels of stored crops, made once and read by many training runs."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .errors import InputError, MissingError


def add(labels: argparse.ArgumentParser) -> None:
    """Give the parser of `vitq labels` its commands."""
    commands = labels.add_subparsers(dest="labels_command", metavar="COMMAND", required=True, parser_class=type(labels))

    def command(name: str, function: Callable, help: str) -> argparse.ArgumentParser:
        found = commands.add_parser(name, help=help, description=help, allow_abbrev=False)
        found.set_defaults(function=function)
        return found

    make = command("make", _make, "ask a teacher for soft labels of random crops; run again, it goes on")
    make.add_argument("--teacher", required=True, metavar="NAME", help="a model of `vitq models`, or timm:NAME")
    make.add_argument("--checkpoint", metavar="FILE", help="weights of the teacher (default: the usual ones)")
    make.add_argument("--data", required=True, metavar="NAME|FOLDER",
                      help="glyphs, digits, photos, imagenet, or a folder with train/CLASS/, val/CLASS/")  # fmt: skip
    make.add_argument("--split", default="train", metavar="SPLIT", help="default: train")
    make.add_argument("--images", type=int, metavar="N", help="so many images (default: all)")
    make.add_argument("--data-seed", type=int, default=0, metavar="N", help="seed of generated images (default: 0)")
    make.add_argument("--out", required=True, metavar="DIR", help="folder of the store")
    make.add_argument("--crops", type=int, default=500, metavar="N", help="crops of each image (default: 500)")
    make.add_argument("--format", default="marginal_smoothing", metavar="FORMAT",
                      help="marginal_smoothing (default), marginal_renorm, smoothing, hard")  # fmt: skip
    make.add_argument("--top-k", type=int, metavar="K", help="classes kept of each crop (default: 5; 1 for smoothing, "
                      "hard)")  # fmt: skip
    make.add_argument("--scale", type=float, nargs=2, default=(0.08, 0.936), metavar=("LEAST", "MOST"),
                      help="share of the image's area that a crop has (default: 0.08 0.936)")  # fmt: skip
    make.add_argument("--size", type=int, metavar="PIXELS", help="side of a crop for the teacher (default: its own)")
    make.add_argument("--seed", type=int, default=0, metavar="N", help="seed of the crops (default: 0)")
    make.add_argument("--device", default="cpu", metavar="DEVICE", help="cpu (default), cuda, cuda:1")
    make.add_argument("--precision", default="no", metavar="HOW", help="no (float32, default) or bf16")
    make.add_argument("--batch-size", type=int, default=256, metavar="N", help="crops a forward pass (default: 256)")
    make.add_argument("--workers", type=int, metavar="N", help="reading processes of a folder (default: one a core)")
    make.add_argument("--processes", type=int, default=1, metavar="N", help="labelling processes; on cuda one a GPU")
    make.add_argument("--part", default="0/1", metavar="I/N", help="only this share of the shards, 0/4 to "
                      "3/4; parts made in several folders join when their .bin files are put into one")  # fmt: skip

    for name, function, help in (("info", _info, "what a store holds, its size, and that of all of ImageNet"),
                                 ("check", _check, "verify the checksum of every block")):  # fmt: skip
        command(name, function, help).add_argument("folder", metavar="DIR", help="folder of a store")


def make_one(arguments: dict[str, Any]) -> bool:
    """Do what `vitq labels make` says in one process; True if the store is whole afterwards.

    Args:
        arguments: The options of the command by name, and `progress`.
    """
    from . import zoo
    from .data.soft_labels.making import make

    given = argparse.Namespace(**arguments)
    settings, dataset = _settings(given), _dataset(given)
    teacher = zoo.load(given.teacher, checkpoint=given.checkpoint)
    store = make(given.out, dataset, teacher, settings, device=given.device, part=_part(given.part),
                 workers=given.workers, progress=given.progress)  # fmt: skip
    return store is not None


def _make(given: argparse.Namespace) -> int:
    from . import zoo
    from .data.soft_labels import layout, making, writing

    if given.processes < 1:
        raise InputError(f"processes must be at least 1, not {given.processes}")
    settings, out, (index, count) = _settings(given), Path(given.out).expanduser(), _part(given.part)
    dataset = _dataset(given)
    header = making.header_of(dataset, zoo.load(given.teacher, checkpoint=given.checkpoint), settings)
    size = layout.total_bytes(header.images, header.crops, header.label)
    writing.begin(out, header, layout.image_names(dataset))
    writing.check_space(out, header)
    done = writing.written(out, header)
    print(f"{header.images} images x {header.crops} crops, {_bytes(size)}; {done} images are there", flush=True)
    arguments = {key: value for key, value in vars(given).items() if not callable(value)} | {"progress": True}
    if given.processes == 1:
        whole = make_one(arguments)
    else:
        whole = _make_many(arguments, header, out, index, count)
    print(f"{out}: {writing.written(out, header)} of {header.images} images" + ("" if whole else ", not finished"))
    return 0


def _make_many(arguments: dict[str, Any], header: Any, out: Path, index: int, count: int) -> bool:
    """Several spawned processes, each with its own share of the shards and, on cuda, its own GPU in turn."""
    from .data.soft_labels import layout, making
    from .workers import SweepError, sweep

    processes = min(arguments["processes"], header.shards)
    devices = [arguments["device"]] * processes
    if arguments["device"] == "cuda":
        import torch

        devices = [f"cuda:{i % max(1, torch.cuda.device_count())}" for i in range(processes)]
    configs = [arguments | {"progress": False, "device": device, "part": f"{index + i * count}/{count * processes}"}
               for i, device in enumerate(devices)]  # fmt: skip
    bar = making.ProgressBar(out, header)
    try:
        sweep(make_one, configs, workers=processes, progress=False)
    except SweepError as error:
        reason = next(iter(error.failures.values()))
        kind = MissingError if reason.startswith("MissingError") else InputError
        raise kind(reason.split(": ", 1)[-1]) from None
    finally:
        bar.close()
    return all(layout.shard_file(out, shard).is_file() for shard in range(header.shards))


def _settings(given: argparse.Namespace) -> Any:
    from .data.soft_labels.formats import LabelFormat
    from .data.soft_labels.making import CropSettings

    top_k = given.top_k if given.top_k is not None else 1 if given.format in ("smoothing", "hard") else 5
    return CropSettings(
        crops=given.crops, label=LabelFormat(given.format, top_k), scale=tuple(given.scale), size=given.size,
        seed=given.seed, precision=given.precision, batch_size=given.batch_size,
    )  # fmt: skip


def _dataset(given: argparse.Namespace) -> Any:
    from . import data

    if given.data in data.NAMES:
        return data.load(given.data, given.split, images=given.images, seed=given.data_seed)
    if not Path(given.data).expanduser().is_dir():
        raise InputError(f"data must be one of {', '.join(data.NAMES)} or a folder, got {given.data!r}")
    return data.load("imagenet", given.split, images=given.images, path=given.data)


def _part(text: str) -> tuple[int, int]:
    index, _, count = text.partition("/")
    if not (index.isdecimal() and count.isdecimal() and int(index) < int(count)):
        raise InputError(f"part must be I/N with I from 0 to N - 1, got {text!r}")
    return int(index), int(count)


def _info(given: argparse.Namespace) -> int:
    from .data.soft_labels import layout, writing

    folder = Path(given.folder).expanduser()
    header = layout.Header.read(folder)
    done, block = writing.written(folder, header), header.block.itemsize
    print(f"images       {done} of {header.images} ({header.data})")
    print(f"crops        {header.crops} an image, scale {header.scale[0]:g} to {header.scale[1]:g}, seed {header.seed}")
    print(f"labels       {header.kind}, top {header.top_k} of {header.num_classes} classes")
    print(f"teacher      {header.teacher} (weights {header.weights}), {header.size} pixels, {header.interpolation}")
    print(f"size         {_bytes(done * block)}: {layout.bytes_per_crop(header.label)} bytes a crop, "
          f"{block} an image, {header.shards} shards")  # fmt: skip
    for crops in sorted({header.crops, 500}):
        size = layout.total_bytes(layout.IMAGENET_IMAGES, crops, header.label)
        print(f"ImageNet     {layout.IMAGENET_IMAGES} images x {crops} crops would be {_bytes(size)}")
    return 0


def _check(given: argparse.Namespace) -> int:
    from .data.soft_labels import writing
    from .data.soft_labels.store import SoftLabelStore

    store = SoftLabelStore(given.folder, partial=True)
    bad = store.corrupt()
    for line in bad[1:11]:
        print(line)
    if bad:
        raise InputError(bad[0] + (f" ({len(bad)} in all)" if len(bad) > 1 else ""))
    done = writing.written(store.folder, store.header)
    print(f"{given.folder}: {done} of {store.header.images} images, every checksum of the finished shards is right")
    return 0


def _bytes(count: int) -> str:
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count} bytes"
