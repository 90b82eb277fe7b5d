"""Mask R-CNN and Cascade Mask R-CNN on Swin with MMDetection 2.11's semantics; names load on first use."""

from importlib import import_module as _import_module

_HOME = {
    "load": "checkpoint", "MODELS": "config", "DetectorConfig": "config", "Detector": "model", "Detections": "model",
    "ImageBatch": "images", "load_image": "images", "prepare_image": "images", "read_image": "images",
    "save": "saving", "open_saved": "saving", "CocoSet": "coco", "evaluate": "evaluation", "make_shapes": "shapes",
    "train": "training", "DetectionLoss": "losses", "quantize": "quantization",
}
__all__ = list(_HOME)


def __getattr__(name: str):
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(_import_module(f"{__name__}.{_HOME[name]}"), name)
