"""Nagel, Fournarakis, Bondarenko, Blankevoort: Overcoming Oscillations in Quantization-Aware Training (ICML 2022)."""

from vitq.papers.nagel2022.adaround import optimize_rounding
from vitq.papers.nagel2022.bn_reestimation import (
    BatchNormReestimation,
    batch_norm_divergence,
    gaussian_kl,
    reestimate_batch_norm,
)
from vitq.papers.nagel2022.dampening import Dampening, dampening_loss
from vitq.papers.nagel2022.freezing import FreezingTracker, IterativeFreezing
from vitq.papers.nagel2022.stochastic_rounding import sample_model, sample_rounding, with_codes
from vitq.papers.nagel2022.toy_regression import Trajectory, estimator_gradient, toy_regression

__all__ = [
    "BatchNormReestimation",
    "Dampening",
    "FreezingTracker",
    "IterativeFreezing",
    "Trajectory",
    "batch_norm_divergence",
    "dampening_loss",
    "estimator_gradient",
    "gaussian_kl",
    "optimize_rounding",
    "reestimate_batch_norm",
    "sample_model",
    "sample_rounding",
    "toy_regression",
    "with_codes",
]
