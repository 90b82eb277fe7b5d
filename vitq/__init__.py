"""Low-bit quantization of vision networks: four papers on one small package.

The names below load on first use, so that ``import vitq`` costs next to nothing.
"""

from importlib import import_module as _import_module

__version__ = "0.1.0"

_HOME = {
    "QuantSpec": "vitq.spec",
    "quantize": "vitq.convert",
    "calibrate": "vitq.convert",
    "describe": "vitq.description",
    "weight_quantizers": "vitq.convert",
    "activation_quantizers": "vitq.convert",
    "scale_parameters": "vitq.convert",
    "save": "vitq.saving",
    "load": "vitq.saving",
}

__all__ = ["__version__", *_HOME]


def __getattr__(name: str):
    if name in _HOME:
        return getattr(_import_module(_HOME[name]), name)
    raise AttributeError(f"module 'vitq' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOME])
