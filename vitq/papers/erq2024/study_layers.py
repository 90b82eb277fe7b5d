"""Single layers of a real network: their inputs, the proxy of rounding refinement, its search, the exact program."""

import time

import torch
from torch import Tensor, nn

from vitq import data, zoo
from vitq.convert import INPUT
from vitq.papers.erq2024.collect import collect, rebatch
from vitq.papers.erq2024.grid import Grid
from vitq.papers.erq2024.images import calibration_images
from vitq.papers.erq2024.mipq import brute_force, solve_mipq
from vitq.papers.erq2024.options import ErqOptions
from vitq.papers.erq2024.prepare import floating, weight_quantizer
from vitq.papers.erq2024.refinement import FLIP_RULES, refine_rounding
from vitq.papers.erq2024.schedule import half_sizes
from vitq.papers.erq2024.study_probe import size
from vitq.papers.erq2024.study_shared import Layer, with_ranges

BINS = 61
SPAN = 4.0  # of the histograms, in standard deviations


class Problem:
    """The first half of a layer: rounding errors of its rows, their candidates, and the second moment of the inputs.

    Attributes:
        error, low, high: (rows, n), float64.
        moment: (n, n).
        inputs: Quantized inputs on other images, (N, n).
    """

    def __init__(self, layer: Layer, bits: int, held_out: Tensor, columns: int | None = None) -> None:
        options = ErqOptions(weight_bits=bits, aqer=False)
        weight = layer.module.weight.detach()
        quantizer = weight_quantizer(layer.name, layer.module, options)
        quantizer.initialize(weight)
        n = half_sizes(weight.shape[1], layer.module.bias is not None)[0] if columns is None else columns
        own, values = Grid.of(quantizer, weight).columns(slice(n)), weight[None, :, :n].double()
        low, high = own.candidates(values)
        self.error, self.low, self.high = (t[0] for t in (own.nearest(values) - values, low - values, high - values))
        self.moment = layer.moments.second_moment[0, :n, :n]
        self.inputs = held_out[:, :n].double()

    def proxy(self, error: Tensor) -> Tensor:
        """d C d^T of each row."""
        return ((error @ self.moment) * error).sum(-1)

    def true_error(self, error: Tensor) -> Tensor:
        """Mean of (d x)^2 of each row on the other images."""
        return (error @ self.inputs.mT).square().mean(-1)

    def refined(self, rule: str, k: int = 1, rounds: int = 100):
        return refine_rounding(self.error, self.low, self.high, self.moment, rule, k, rounds)


def _problems(job: dict) -> tuple[list[Layer], dict[str, tuple[Tensor, Tensor]]]:
    """Layers with moments, and their inputs (N, I) on held-out photographs: in full precision and quantized."""
    model = zoo.load(job["model"], image_size=job.get("image_size"))
    options = ErqOptions()
    images = calibration_images(job["source"], model, job["images"], seed=job["draw"])
    model = with_ranges(model, images, options)
    layers = [Layer.of(n, d) for n, d in collect(model, job["layers"], rebatch(images, options.chunk)).items()]
    test = data.load(job["source"], "test", size=size(model), images=job["test_images"]).for_model(model)
    with floating(model), torch.no_grad():
        found = _inputs(model, job["layers"], test.normalize(test.images))
    return layers, {n: (x, getattr(model.get_submodule(n), INPUT).fake_quantize(x)) for n, x in found.items()}


def _inputs(model: nn.Module, names: list[str], images: Tensor) -> dict[str, Tensor]:
    found = {}

    def hook(name: str):
        return lambda module, args, output: found.__setitem__(name, args[0].flatten(0, -2))

    handles = [model.get_submodule(name).register_forward_hook(hook(name)) for name in names]
    try:
        model(images)
    finally:
        for handle in handles:
            handle.remove()
    return found


@torch.no_grad()
def layers(job: dict) -> dict:
    """Inputs, proxy and refinement of some linear layers.

    Args:
        job: ``model``, ``image_size``, ``source``, ``images``, ``draw``, ``layers`` (module paths), ``test_images``
            (held out), ``bits`` of the weights, ``searches``: list of ``[rule, k, rounds]``.

    Returns:
        ``inputs``: layer, excess kurtosis of the quantized inputs (median over channels; 0 for a Gaussian) and of the
        layer's outputs from them, and histograms of both, each standardized by channel; ``proxy``: layer, rule, for
        each row its proxy on the calibration images and its error on the others; ``searches``: layer, rule, k, rounds,
        ratio (summed proxy to that of rounding to nearest), held_out_ratio, flips (a row), used rounds, stuck
        (percent), seconds.
    """
    found, held_out = _problems(job)
    result = {"inputs": [], "proxy": [], "searches": []}
    for layer in found:
        quantized = held_out[layer.name][1]
        result["inputs"].append({"layer": layer.name, **_shape(quantized, "input"), **_shape(
            quantized @ layer.module.weight.detach().mT, "output")})
        problem = Problem(layer, job["bits"], quantized)
        before = problem.proxy(problem.error).sum()
        for rule, k, rounds in job["searches"]:
            begin = time.perf_counter()
            search = problem.refined(rule, k, rounds)
            seconds = time.perf_counter() - begin
            result["searches"].append({
                "layer": layer.name, "rule": rule, "k": k, "limit": rounds, "seconds": seconds,
                "ratio": (search.proxy.sum() / before).item(), "flips": search.flips / len(problem.error),
                "held_out_ratio": _ratio(problem, search.error), "rounds": search.rounds, "stuck": 100 * search.stuck})
            if (k, rounds) == (1, 100) and rule == FLIP_RULES[0]:
                for name, error in (("nearest", problem.error), (rule, search.error)):
                    result["proxy"].append({"layer": layer.name, "rule": name, "proxy": problem.proxy(error).tolist(),
                                            "true": problem.true_error(error).tolist()})
    return result


def _ratio(problem: Problem, error: Tensor) -> float:
    return (problem.true_error(error).sum() / problem.true_error(problem.error).sum()).item()


def _shape(x: Tensor, name: str) -> dict:
    """Median excess kurtosis of the channels, and the density of all values, each channel standardized."""
    x = x.double()
    spread = x.std(0)
    x = (x[:, spread > 0] - x[:, spread > 0].mean(0)) / spread[spread > 0]
    heights = torch.histc(x.float(), BINS, -SPAN, SPAN) / (x.numel() * 2 * SPAN / BINS)
    return {f"{name}_kurtosis": (x.pow(4).mean(0) - 3).median().item(), f"{name}_density": heights.tolist()}


@torch.no_grad()
def mipq(job: dict) -> dict:
    """Refinement against the exact program on the first n weights of some rows of one layer.

    Args:
        job: As for :func:`layers`, with one layer, and ``sizes``: list of ``[n, rows, seconds]``, the largest time for
            a row.

    Returns:
        ``rows``: n, row, the proxy of rounding to nearest, of each flip rule and of the program, whether that was
        proven optimal, ``optimum`` by trying all roundings (None beyond n = 20), and seconds of each.
    """
    (layer,), held_out = _problems(job)
    result = []
    for n, rows, limit in job["sizes"]:
        problem = Problem(layer, job["bits"], held_out[layer.name][1], n)
        found = {}
        for rule in FLIP_RULES:
            begin = time.perf_counter()
            found[rule] = problem.refined(rule), (time.perf_counter() - begin) / len(problem.error)
        nearest = problem.proxy(problem.error)
        for row in torch.linspace(0, len(problem.error) - 1, rows).long().tolist():
            line = {"n": n, "row": row, "nearest": nearest[row].item()}
            for rule, (search, seconds) in found.items():
                line |= {rule: search.proxy.flatten()[row].item(), f"{rule}_seconds": seconds}
            begin = time.perf_counter()
            solved = solve_mipq(problem.low[row], problem.high[row], problem.moment, limit)
            line |= {"mipq": solved.value, "optimal": solved.optimal, "mipq_seconds": time.perf_counter() - begin}
            exact = brute_force(problem.low[row], problem.high[row], problem.moment).value if n <= 20 else None
            result.append(line | {"optimum": exact})
    return {"rows": result, "layer_rows": len(layer.module.weight)}
