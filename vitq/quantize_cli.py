"""`vitq quantize`: post-training quantization of a pretrained network by ERQ or a baseline, without training."""

from __future__ import annotations

import argparse
from pathlib import Path

from .errors import InputError, MissingError


def add(quantize: argparse.ArgumentParser) -> None:
    """Give the parser of `vitq quantize` its options."""
    quantize.set_defaults(function=_quantize)
    quantize.add_argument("--model", required=True, metavar="NAME", help="a model of `vitq models`, or timm:NAME")
    quantize.add_argument("--checkpoint", metavar="FILE", help="weights of the model (default: the usual ones)")
    quantize.add_argument("--image-size", type=int, metavar="PIXELS", help="side of the images (default: its own)")
    quantize.add_argument("--method", default="erq", metavar="METHOD",
                          help="nearest, repq, gptq, aqer, wqer, erq (default), erq_plus")  # fmt: skip
    quantize.add_argument("--wbits", type=int, default=4, metavar="N", help="bits of the weights (default: 4)")
    quantize.add_argument("--abits", type=int, default=4, metavar="N", help="bits of the activations (default: 4)")
    quantize.add_argument("--images", required=True, metavar="FOLDER|NAME",
                          help="folder of calibration images, or photos, glyphs, digits")  # fmt: skip
    quantize.add_argument("--count", type=int, default=32, metavar="N", help="calibration images (default: 32)")
    quantize.add_argument("--coe", type=float, default=1e4, metavar="X", help="strength of the ridge (default: 1e4)")
    quantize.add_argument("--seed", type=int, default=0, metavar="N", help="of the choice of images (default: 0)")
    quantize.add_argument("--device", default="cpu", metavar="DEVICE", help="cpu (default) or cuda")
    quantize.add_argument("--out", required=True, metavar="FILE", help="the quantized model, a .safetensors file")


def _quantize(given: argparse.Namespace) -> int:
    import torch

    from . import zoo
    from .numerics import check_bits
    from .papers.erq2024 import METHODS, save_erq
    from .papers.erq2024.images import calibration_images, check_source

    if given.method not in METHODS:
        raise InputError(f"method={given.method!r}: choose one of {', '.join(METHODS)}")
    check_bits("wbits", given.wbits), check_bits("abits", given.abits)
    if not given.coe >= 0:
        raise InputError(f"coe={given.coe!r}: give a positive number")
    check_source(given.images, given.count)
    if not Path(given.out).absolute().parent.is_dir():
        raise MissingError(f"out={given.out!r}: there is no folder {Path(given.out).absolute().parent}; make it first")
    if given.device != "cpu" and not torch.cuda.is_available():
        raise MissingError(f"device={given.device!r}: no such device here; use cpu")
    sized = {} if given.image_size is None else {"image_size": given.image_size}
    model = zoo.load(given.model, checkpoint=given.checkpoint, **sized)
    images = calibration_images(given.images, model, given.count, given.seed)
    print("output error of each layer over its output: quantized inputs alone, all to nearest, after the correction")
    found = METHODS[given.method](model.to(given.device), images, given.wbits, given.abits, coe=given.coe,
                                  progress=_show)  # fmt: skip
    save_erq(found.model, given.out, **sized)
    phases = ", ".join(f"{name} {seconds:.1f} s" for name, seconds in found.seconds.items())
    print(f"{found.images} images; {phases}; at most {found.peak_memory:.0f} MB")
    print(given.out)
    return 0


def _show(layer) -> None:
    print(f"{layer.name:32s} {layer.error_inputs:.2e} {layer.error_nearest:.2e} {layer.error:.2e} "
          f"{layer.seconds_aqer + layer.seconds_weights:6.2f} s", flush=True)  # fmt: skip
