"""Liu, Liu, Cheng: Oscillation-free Quantization for Low-bit Vision Transformers (ICML 2023)."""

from importlib import import_module as _import_module

_HOME = {
    "QueryKeyReparameterization": "qkr",
    "ConfidenceGuidedAnnealing": "cga",
    "inject_noise": "noise_injection",
    "ofq_spec": "recipe",
}

__all__ = list(_HOME)


def __getattr__(name: str):
    if name in _HOME:
        return getattr(_import_module(f"{__name__}.{_HOME[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
