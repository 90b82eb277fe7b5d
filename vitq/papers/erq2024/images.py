"""Calibration images: drawn at random from an embedded set or from a folder, as the model's evaluation sees them."""

from pathlib import Path

import torch
from torch import Tensor, nn

from vitq.errors import InputError, MissingError

EMBEDDED = ("digits", "glyphs", "photos")
SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")


def calibration_images(source: str | Path, model: nn.Module, count: int = 32, seed: int = 0) -> Tensor:
    """Normalized images (count, 3, H, W) of the size that the model takes.

    Args:
        source: ``"digits"``, ``"glyphs"`` or ``"photos"`` (their training split), or a folder with image files in it or
            in folders below it.
        model: From ``vitq.zoo``, or of timm's.
        count: Number of images; a folder may hold more, of which a random choice is taken.
        seed: Of the choice and of generated images.

    Raises:
        InputError: The folder holds fewer images, or one that cannot be read.
        MissingError: There is no such folder.
    """
    files = check_source(source, count)
    size = _size(model)
    if str(source) in EMBEDDED:
        from vitq import data

        found = data.load(str(source), "train", size=size, images=count, seed=seed).for_model(model)
        return found.normalize(found.images)
    return _read(files, model, size, count, seed)


def check_source(source: str | Path, count: int) -> list[Path]:
    """The image files of a folder, in order; none for an embedded set. Errors as in :func:`calibration_images`."""
    if count < 1:
        raise InputError(f"count={count!r}: give at least one image")
    if str(source) in EMBEDDED:
        return []
    folder = Path(source).expanduser()
    if not folder.is_dir():
        raise MissingError(f"images={str(source)!r}: there is no such folder; give one with images, or one of "
                           f"{', '.join(EMBEDDED)}")
    files = sorted(file for file in folder.rglob("*") if file.suffix.lower() in SUFFIXES)
    if len(files) < count:
        raise InputError(f"images={str(source)!r} holds {len(files)} images, fewer than the {count} that are asked for")
    return files


def _size(model: nn.Module) -> int:
    patches = getattr(model, "patch_embed", None)
    size = getattr(patches, "img_size", None) or model.pretrained_cfg["input_size"][-1]
    return size[0] if isinstance(size, (tuple, list)) else size


def _read(files: list[Path], model: nn.Module, size: int, count: int, seed: int) -> Tensor:
    from PIL import Image, UnidentifiedImageError
    from timm.data import create_transform, resolve_model_data_config

    chosen = torch.randperm(len(files), generator=torch.Generator().manual_seed(seed))[:count]
    config = resolve_model_data_config(model) | {"input_size": (3, size, size)}
    transform = create_transform(**config, is_training=False)
    images = []
    for index in chosen.tolist():
        try:
            with Image.open(files[index]) as image:
                images.append(transform(image.convert("RGB")))
        except (OSError, UnidentifiedImageError) as error:
            raise InputError(f"{files[index]} cannot be read ({error}); remove or replace it") from None
    return torch.stack(images)
