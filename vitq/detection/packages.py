"""Packages that only detection needs; they are imported when they are used."""

from importlib import import_module
from types import ModuleType

from vitq.errors import MissingError

PACKAGES = {"cv2": "opencv-python-headless", "pycocotools": "pycocotools"}


def need(module: str) -> ModuleType:
    """Import a module of ``PACKAGES`` or of one below it.

    Raises:
        MissingError: It is not installed; the message names the package.
    """
    try:
        return import_module(module)
    except ImportError as error:
        package = PACKAGES[module.partition(".")[0]]
        raise MissingError(f"{package} is needed here and cannot be imported ({error}); "
                           f"install it with pip install {package}") from None
