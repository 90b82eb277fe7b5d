"""Huang, Shen, Dong, Cheng: Variation-aware Vision Transformer Quantization (2023; Quantization Variation, TMLR 2024)."""

from vitq.papers.vvtq2023.activations import activation_variation
from vitq.papers.vvtq2023.variation import compare_networks, variation

__all__ = ["activation_variation", "compare_networks", "variation"]
