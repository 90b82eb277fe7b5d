"""Huang, Shen, Dong, Cheng: Variation-aware Vision Transformer Quantization (2023; revised for TMLR, 2024)."""

from vitq.papers.vvtq2023.activations import activation_variation
from vitq.papers.vvtq2023.mckd import (
    MultiCropDistillation,
    Pass,
    PassConfig,
    SoftCrossEntropy,
    epoch_plan,
    pass_learning_rate,
)
from vitq.papers.vvtq2023.mdq import mdq_spec, quantize_mdq
from vitq.papers.vvtq2023.obr import BinRegularization, bin_regularization, found_by_float_test
from vitq.papers.vvtq2023.one_head import one_head_at, one_head_sensitivity
from vitq.papers.vvtq2023.sensitivity import leave_one_out, leave_one_out_sensitivity, spec_without
from vitq.papers.vvtq2023.variation import compare_networks, variation

__all__ = [
    "BinRegularization",
    "MultiCropDistillation",
    "Pass",
    "PassConfig",
    "SoftCrossEntropy",
    "activation_variation",
    "bin_regularization",
    "compare_networks",
    "epoch_plan",
    "found_by_float_test",
    "leave_one_out",
    "leave_one_out_sensitivity",
    "mdq_spec",
    "one_head_at",
    "one_head_sensitivity",
    "pass_learning_rate",
    "quantize_mdq",
    "spec_without",
    "variation",
]
