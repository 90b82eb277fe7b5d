"""Quantizers, one a file. A new one is a small subclass of Quantizer and one line in ``QUANTIZERS``."""

from vitq.quantizers.base import Quantizer
from vitq.quantizers.lsq import LSQ
from vitq.quantizers.mdq import MDQ, MDQActivation
from vitq.quantizers.offset_lsq import OffsetLSQ
from vitq.quantizers.statsq import StatsQ
from vitq.quantizers.uniform import Uniform

QUANTIZERS: dict[str, type[Quantizer]] = {
    "lsq": LSQ,
    "offset_lsq": OffsetLSQ,
    "statsq": StatsQ,
    "uniform": Uniform,
    "mdq": MDQ,
    "mdq_activation": MDQActivation,
}

__all__ = ["LSQ", "MDQ", "MDQActivation", "QUANTIZERS", "OffsetLSQ", "Quantizer", "StatsQ", "Uniform"]
