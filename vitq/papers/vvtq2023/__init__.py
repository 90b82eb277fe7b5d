"""Huang, Shen, Dong, Cheng: Variation-aware Vision Transformer Quantization (2023; Quantization Variation, TMLR 2024)."""

from vitq.papers.vvtq2023.activations import activation_variation
from vitq.papers.vvtq2023.mckd import (
    MultiCropDistillation,
    Pass,
    SoftCrossEntropy,
    epoch_plan,
    pass_learning_rate,
)
from vitq.papers.vvtq2023.variation import compare_networks, variation

__all__ = [
    "MultiCropDistillation",
    "Pass",
    "SoftCrossEntropy",
    "activation_variation",
    "compare_networks",
    "epoch_plan",
    "pass_learning_rate",
    "variation",
]
