"""Soft labels of stored crops: a teacher is asked once, before training (VVTQ 2023, section 3; FKD).

`SoftLabelStore` reads what `vitq labels make` (`make`) writes, `FKDLabels` reads the published label folders as they
are; `load` tells them apart.
"""

import importlib

_HOME = {
    "CropLabels": "store", "SoftLabelStore": "store", "SoftLabels": "store", "LabelFormat": "formats",
    "Header": "layout", "bytes_per_crop": "layout", "total_bytes": "layout",
    "draw_crops": "crops", "crop_resize": "crops", "pixel_boxes": "crops",
    "CropSettings": "making", "make": "making", "FKDLabels": "fkd", "load": "fkd",
}  # fmt: skip
__all__ = list(_HOME)


def __getattr__(name: str):
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
