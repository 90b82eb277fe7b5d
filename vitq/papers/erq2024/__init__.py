"""Zhong, Hu, Huang, Zhang, Ji: error reduction for post-training quantization of vision transformers (ERQ, 2024)."""

from vitq.papers.erq2024.aqer import aqer, ridge_strength
from vitq.papers.erq2024.gptq import gptq
from vitq.papers.erq2024.grid import Grid
from vitq.papers.erq2024.methods import (
    METHODS,
    Quantized,
    quantize_aqer,
    quantize_erq,
    quantize_erq_plus,
    quantize_gptq,
    quantize_nearest,
    quantize_repq,
    quantize_wqer,
    run,
)
from vitq.papers.erq2024.mipq import brute_force, solve_mipq
from vitq.papers.erq2024.moments import Moments
from vitq.papers.erq2024.options import PAPER_CODE, ErqOptions
from vitq.papers.erq2024.refinement import refine_rounding
from vitq.papers.erq2024.repq import norm_pairs, reparameterize_layernorm
from vitq.papers.erq2024.saving import save_erq
from vitq.papers.erq2024.wqer import wqer

__all__ = [
    "METHODS",
    "PAPER_CODE",
    "ErqOptions",
    "Grid",
    "Moments",
    "Quantized",
    "aqer",
    "brute_force",
    "gptq",
    "norm_pairs",
    "quantize_aqer",
    "quantize_erq",
    "quantize_erq_plus",
    "quantize_gptq",
    "quantize_nearest",
    "quantize_repq",
    "quantize_wqer",
    "refine_rounding",
    "reparameterize_layernorm",
    "ridge_strength",
    "run",
    "save_erq",
    "solve_mipq",
    "wqer",
]
