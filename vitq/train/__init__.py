"""Quantization-aware training: one loop, remedies as callbacks, checkpoints that resume bit for bit."""

import importlib

_HOME = {
    "Callback": "callbacks", "TrainState": "callbacks", "cosine_schedule": "schedules",
    "TrainConfig": "config", "RunConfig": "run_config", "fit": "loop", "TrainResult": "loop",
    "evaluate": "evaluation", "CrossEntropy": "losses", "Distillation": "losses", "HardAndSoftDistillation": "losses",
    "kl_divergence": "losses",
    "run": "runs", "register_remedy": "remedies", "DivergedError": "diagnosis",
}
__all__ = list(_HOME)


def __getattr__(name: str):
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
