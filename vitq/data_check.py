"""`vitq data check`: what an image folder holds, and what is wrong with it, before a long run finds out.

All files are counted, and a sample of each split, spread evenly over the classes, is read and decoded. A folder that
training would refuse or misread is an error (exit status 2; 3 if it is not there); what it would silently live with,
such as classes whose order cannot be checked, is a warning.
"""

import argparse
import json
import os
import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from .errors import InputError, MissingError

WNID = re.compile(r"n\d{8}")
IMAGENET = {"train": 1_281_167, "val": 50_000}
ORIENTATION = 0x0112  # tag of EXIF; 1 is upright
SHOWN = 5  # lines of one kind


@dataclass
class Split:
    """Of train or val: classes, images, those read, and the fewest and most images of a class."""

    classes: int = 0
    images: int = 0
    read: int = 0
    fewest: int = 0
    most: int = 0


@dataclass
class Report:
    """What was found. `smallest` is width, height and file of the read image with the shortest side.

    `status` is 0, or 2 if the folder cannot be used, 3 if it is not there.
    """

    path: str
    status: int = 0
    splits: dict[str, Split] = field(default_factory=dict)
    gray: int = 0
    cmyk: int = 0
    other_modes: int = 0
    rotated: int = 0
    smallest: tuple[int, int, str] | None = None
    errors: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    def error(self, *lines: str) -> None:
        self.errors += _shortened(lines)
        self.status = self.status or (2 if lines else 0)

    def warn(self, *lines: str) -> None:
        self.warnings += _shortened(lines)

    def lines(self) -> list[str]:
        """The report for people."""
        found = [f"{name}: {part.classes:,} classes, {part.images:,} images, {part.fewest:,} to {part.most:,} a class; "
                 f"{part.read:,} read" for name, part in self.splits.items()]
        if self.smallest:
            found.append(f"of those read: {self.gray} gray, {self.cmyk} CMYK, {self.other_modes} of other modes, "
                         f"{self.rotated} rotated by EXIF; smallest {'{} x {} pixels ({})'.format(*self.smallest)}")
        found += [f"error: {line}" for line in self.errors] + [f"warning: {line}" for line in self.warnings]
        return [*found, "can be used" if self.status == 0 else "cannot be used"]


def check(path: str | Path, sample: int = 200, classes: int | None = 1000) -> Report:
    """Look at the folders train and val of an ImageFolder, or at tar shards or parquet files of both.

    Args:
        path: The folder that holds train/CLASS/ and val/CLASS/, or the files.
        sample: Images of each split to read.
        classes: Number of classes that must be there; None for any.
    """
    from .data import _reader, folder
    from .data.folder import require

    report = Report(str(path))
    if (reader := _reader(path)) is not folder:
        return _check_packed(reader, path, sample, classes, report)
    try:
        folders = require(path)
    except MissingError as error:
        report.error(str(error))
        report.status = 3
        return report
    found = {name: _files(folder, report) for name, folder in folders.items()}
    _compare(found, folders, classes, report)
    for name, per_class in found.items():
        counts = [len(files) for files in per_class.values()]
        part = Split(len(counts), sum(counts), 0, min(counts, default=0), max(counts, default=0))
        report.splits[name] = part
        report.error(*(f"class folder {folders[name] / cls} holds no image" for cls, files in per_class.items()
                       if not files))
        _read(part, [file for files in per_class.values() for file in files], folders[name].parent, sample, report)
    if report.rotated:
        report.warn(f"{report.rotated:,} images ask to be rotated (EXIF); they are used as they are stored")
    if list(found["train"]) == _imagenet():
        report.warn(*(f"{name} holds {part.images:,} images, ImageNet {IMAGENET[name]:,}"
                      for name, part in report.splits.items() if part.images != IMAGENET[name]))
    return report


def _check_packed(reader: Any, path: str | Path, sample: int, classes: int | None, report: Report) -> Report:
    """The same for tar shards and parquet files: the first thing that loading refuses, and a sample of images."""
    from collections import Counter

    try:
        found = {name: reader.load("imagenet", name, path, num_classes=classes) for name in ("train", "val")}
    except (InputError, MissingError) as error:
        report.error(str(error))
        report.status = 3 if isinstance(error, MissingError) else 2
        return report
    for name, part in found.items():
        counts = Counter(label for _, label in part.samples).values()
        report.splits[name] = Split(part.num_classes, len(part), 0, min(counts), max(counts))
        _read(report.splits[name], [file for file, _ in part.samples], part.root, sample, report, part.opened)
    return report


def _shortened(lines: tuple[str, ...]) -> list[str]:
    """The first few lines of one kind, and how many more there are."""
    more = len(lines) - SHOWN
    return list(lines) if more <= 0 else [*lines[:SHOWN], f"{more:,} more like the line before"]


def _files(folder: Path, report: Report) -> dict[str, list[str]]:
    """Image files of each class folder, in the order of the classes."""
    from timm.data import get_img_extensions
    from timm.utils.misc import natural_key

    endings, strange = tuple(get_img_extensions()), []
    names = sorted((entry.name for entry in os.scandir(folder) if entry.is_dir() and entry.name[0] != "."),
                   key=natural_key)
    if not names:
        report.error(f"{folder} is empty: it must hold one folder for each class")
    found = {}
    for name in names:
        files = list(_walk(folder / name))
        found[name] = sorted((file for file in files if file.lower().endswith(endings)), key=natural_key)
        strange += [file for file in files if not file.lower().endswith(endings)]
    if strange:
        report.warn(f"{folder} holds {len(strange):,} files that are no images by their names, such as {strange[0]}; "
                    "they are not read")
    return found


def _walk(folder: Path) -> Iterator[str]:
    for root, _, files in os.walk(folder, followlinks=True):
        yield from (os.path.join(root, file) for file in files)


def _compare(found: dict[str, dict], folders: dict[str, Path], classes: int | None, report: Report) -> None:
    """Both splits have the same classes, as many as asked for, and in ImageNet's order as far as names tell."""
    for name, other in (("train", "val"), ("val", "train")):
        report.error(*(f"class folder {folders[name] / cls} has no counterpart in {folders[other]}"
                       for cls in found[name] if cls not in found[other]))
    names = list(found["train"])
    if names and classes is not None and len(names) != classes:
        report.error(f"{folders['train']} holds {len(names):,} class folders, not {classes:,}")
    strange = [name for name in names if not WNID.fullmatch(name)]
    if strange:
        report.warn(f"{len(strange):,} class folders are not named by WordNet ids, such as {strange[0]}: that class 0 "
                    f"is {names[0]} and class {len(names) - 1} is {names[-1]} is taken on trust")
    elif len(names) == len(_imagenet()):
        unknown = sorted(set(names) - set(_imagenet()))
        report.error(*(f"class folder {folders['train'] / name} is none of ImageNet's 1,000 classes: "
                       "the classes after it would be shifted" for name in unknown))


def _imagenet() -> list[str]:
    """ImageNet's classes in their order, as timm has them."""
    from timm.data import ImageNetInfo

    return ImageNetInfo("imagenet-1k").label_names()


def _read(part: Split, files: list[str], root: Path, sample: int, report: Report, opened: Any = str) -> None:
    """Decode files spread evenly over the split."""
    from PIL import Image

    count = min(sample, len(files))
    chosen = [files[round(i * (len(files) - 1) / max(1, count - 1))] for i in range(count)]
    damaged = []
    for file in chosen:
        try:
            with Image.open(opened(file)) as image:
                image.load()
                _note(image, os.path.relpath(file, root), report)
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            damaged.append(f"{file} is damaged or no image ({' '.join(str(error).split())})")
        part.read += 1
    report.error(*damaged)


def _note(image: Any, file: str, report: Report) -> None:
    report.gray += image.mode in ("1", "L", "LA", "I", "I;16", "F")
    report.cmyk += image.mode == "CMYK"
    report.other_modes += image.mode not in ("1", "L", "LA", "I", "I;16", "F", "CMYK", "RGB")
    report.rotated += image.getexif().get(ORIENTATION, 1) not in (0, 1)
    if report.smallest is None or min(image.size) < min(report.smallest[:2]):
        report.smallest = (*image.size, file)


def add(parser: argparse.ArgumentParser) -> None:
    """Give the parser of `vitq data` its command."""
    commands = parser.add_subparsers(dest="data_command", metavar="COMMAND", required=True, parser_class=type(parser))
    help = "what an image folder holds, and what is wrong with it"
    found = commands.add_parser("check", help=help, description=help, allow_abbrev=False)
    found.add_argument("--data", required=True, metavar="NAME", help="imagenet, or any folder laid out like it")
    found.add_argument("--path", metavar="FOLDER", help="holds train/CLASS/, val/CLASS/ (default: VITQ_IMAGENET)")
    found.add_argument("--sample", type=int, default=200, metavar="N", help="images of each split to read (200)")
    found.add_argument("--classes", type=int, default=1000, metavar="N", help="classes to expect (1000); 0: any number")
    found.add_argument("--json", action="store_true", help="as JSON")
    found.set_defaults(function=run)


def run(given: argparse.Namespace) -> int:
    """Do what `vitq data check` says."""
    if given.data != "imagenet":
        raise InputError(f"data must be imagenet, got {given.data!r}: the other sets are made here, not read")
    for name, least in (("sample", 1), ("classes", 0)):
        if getattr(given, name) < least:
            raise InputError(f"{name} must be at least {least}, not {getattr(given, name)}")
    path = given.path or os.environ.get("VITQ_IMAGENET")
    if not path:
        raise MissingError("give the folder that holds train/ and val/ as --path, or in VITQ_IMAGENET")
    report = check(path, given.sample, given.classes or None)
    print(json.dumps(asdict(report), indent=1) if given.json else "\n".join(report.lines()))
    return report.status
