"""Tar shards as WebDataset has them (KEY.jpg beside KEY.cls): indexed once, then any image is read at its place.

Order, augmentation and resuming are those of a folder of images, which a stream of shards could not give.
"""

import hashlib
import io
import os
import tarfile
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from vitq.data.cache import cache_folder
from vitq.data.folder import MEAN, STD, FolderSet
from vitq.errors import InputError, MissingError
from vitq.files import read_json, write_json

SPLITS = {"train": ("train",), "val": ("val", "validation")}
FORMAT = "vitq shards 1"


@dataclass(frozen=True)
class ShardSet(FolderSet):
    """A `FolderSet` whose images lie in tar files; a sample is called SHARD/MEMBER.

    Attributes:
        places: Shard, offset and size in bytes of each image, by the name of its sample.
    """

    places: dict[str, tuple[str, int, int]] = field(default_factory=dict, repr=False)

    def opened(self, file: str) -> io.BytesIO:
        """The bytes of one image."""
        shard, offset, size = self.places[file]
        with open(shard, "rb") as tar:
            tar.seek(offset)
            return io.BytesIO(tar.read(size))


def shards(path: str | Path) -> dict[str, list[Path]]:
    """The tar files of train and val: in folders of these names, or told by these words in their own names."""
    root = Path(path).expanduser()
    found = {}
    for split, words in SPLITS.items():
        inside = [tar for word in words for tar in root.glob(f"{word}/*.tar")]
        named = [tar for tar in root.glob("*.tar") if any(word in tar.name for word in words)]
        found[split] = sorted(inside or named)
    return found


def require(path: str | Path) -> dict[str, list[Path]]:
    """The shards of train and val, or MissingError."""
    found = shards(path)
    for part, tars in found.items():
        if not tars:
            raise MissingError(f"path={str(path)!r} holds tar files, but none of {part}: name them *{part}*.tar")
    return found


def load(
    name: str,
    split: str,
    path: str | Path,
    size: int | None = None,
    images: int | None = None,
    num_classes: int | None = None,
) -> ShardSet:
    """Arguments and errors of `vitq.data.folder.load`; `path` holds the shards of train and val.

    Raises:
        InputError: A shard is damaged, an image has no label, a class of 0 to the highest one has no image, a name
            tells of another class of ImageNet than its label, or there are not `num_classes`.
    """
    found = require(path)
    here = "train" if split == "train" else "val"
    entries = {part: _index(tars) for part, tars in found.items()}
    classes = _classes(entries, path, num_classes)
    listed = entries[here]
    _check_names(listed, len(classes))
    samples = [(name, label) for name, _, _, _, label in listed]
    digest = hashlib.sha256("\n".join(f"{name} {size}" for name, _, _, size, _ in listed).encode()).hexdigest()[:8]
    dataset = ShardSet(
        name=name, split=split, root=found[here][0].parent, samples=samples, classes=classes, size=size or 224,
        mean=MEAN, std=STD, version=f"{name}-{digest}-{split}-{len(samples)}",
        places={name: (shard, offset, length) for name, shard, offset, length, _ in listed})  # fmt: skip
    return dataset.subset(images) if images else dataset


def _index(tars: list[Path]) -> list[tuple[str, str, int, int, int]]:
    """Name, shard, offset, size and label of every image, from the cache if the shards are those of then."""
    state = [[str(tar.resolve()), tar.stat().st_size, tar.stat().st_mtime_ns] for tar in tars]
    key = hashlib.sha256(repr([FORMAT, state]).encode()).hexdigest()[:16]
    file = cache_folder() / "shards" / f"{key}.json"
    try:
        return [tuple(entry) for entry in read_json(file)]
    except (OSError, ValueError):
        found = [entry for tar in tars for entry in _read(tar)]
    try:
        write_json(file, found)
    except OSError as error:
        warnings.warn(f"{file} could not be written ({error}); the shards will be indexed again", stacklevel=3)
    return found


def _read(tar: Path) -> Iterator[tuple[str, str, int, int, int]]:
    """The images of one shard with their labels."""
    from timm.data import get_img_extensions

    endings, images, labels = tuple(get_img_extensions()), {}, {}
    try:
        with tarfile.open(tar, "r:") as content:
            for member in content:
                key, ending = os.path.splitext(member.name)
                if member.isfile() and ending.lower() in endings:
                    images[key] = member
                elif member.isfile() and ending == ".cls":
                    labels[key] = int(content.extractfile(member).read())
    except (tarfile.TarError, OSError, ValueError) as error:
        raise InputError(f"{tar} is damaged or no shard ({error}); replace it") from None
    for key, member in images.items():
        if member.offset_data + member.size > tar.stat().st_size:
            raise InputError(f"{tar} is cut off in {member.name}; replace it")
        if key not in labels:
            raise InputError(f"{tar}: {member.name} has no label; each image needs a file {key}.cls beside it")
        yield f"{tar}/{member.name}", str(tar), member.offset_data, member.size, labels[key]


def _classes(entries: dict[str, list], path: str | Path, num_classes: int | None) -> tuple[str, ...]:
    """ImageNet's names if there are as many classes, otherwise their numbers."""
    seen = {part: {entry[-1] for entry in listed} for part, listed in entries.items()}
    count = max(seen["train"], default=-1) + 1
    for part, labels in seen.items():
        if wrong := sorted(labels ^ set(range(count))):
            raise InputError(f"path={str(path)!r}: class {wrong[0]} of 0 to {count - 1} "
                             f"{'has no image' if 0 <= wrong[0] < count else 'is too high'} in {part}")
    if not count or num_classes not in (None, count):
        raise InputError(f"path={str(path)!r} holds {count} classes, expected {num_classes or 'at least 1'}")
    return tuple(_imagenet()) if count == len(_imagenet()) else tuple(map(str, range(count)))


def _check_names(listed: list, classes: int) -> None:
    """Where names begin with a WordNet id and the classes are ImageNet's, names and labels have to agree."""
    if classes != len(_imagenet()):
        return
    order = {wnid: label for label, wnid in enumerate(_imagenet())}
    for name, *_, label in listed:
        wnid = os.path.basename(name)[:9]
        if order.get(wnid, label) != label:
            raise InputError(f"{name} has label {label}, but {wnid} is class {order[wnid]} of ImageNet: the shards "
                             "number the classes in another order")


def _imagenet() -> list[str]:
    from timm.data import ImageNetInfo

    return ImageNetInfo("imagenet-1k").label_names()
