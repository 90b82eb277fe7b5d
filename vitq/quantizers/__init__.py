"""Quantizers, one a file. A new one is a small subclass of Quantizer and one line in ``QUANTIZERS``."""

from vitq.quantizers.base import Quantizer
from vitq.quantizers.lsq import LSQ
from vitq.quantizers.uniform import Uniform

QUANTIZERS: dict[str, type[Quantizer]] = {"lsq": LSQ, "uniform": Uniform}

__all__ = ["LSQ", "QUANTIZERS", "Quantizer", "Uniform"]
