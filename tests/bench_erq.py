"""ERQ: what a pretrained ViT-S costs, how the time grows with images and layers, and the refinement against loops.

Exit status 1 if a bar is missed. `rows()` gives the figures to other programs. Times that are compared are taken in
turn in one run; the figure is the median of the ratios of neighbours. Two threads, or `--threads`.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable

import timm
import torch
from bench_report import printed

from vitq import data, environment, zoo
from vitq.errors import MissingError
from vitq.papers.erq2024 import Grid, Moments, quantize_erq, refine_rounding
from vitq.quantizers.affine import Affine

IMAGES, SIZE = 32, 224
SECONDS_BAR, MEMORY_BAR, LOOP_BAR, IMAGES_BAR, LAYERS_BAR = 60, 4096, 10, 1.0, 1.3


def seconds(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def whole_network() -> tuple[float, float, str]:
    """Seconds and largest memory of ERQ W4A4 on DINOv2 ViT-S with photographs, and its phases."""
    model = zoo.load("dinov2_vits14")
    photos = data.load("photos", "train", size=SIZE, images=IMAGES).for_model(model)
    images = photos.normalize(photos.images)
    found = quantize_erq(model, images, 4, 4)
    phases = ", ".join(f"{name} {value:.1f}" for name, value in found.seconds.items() if name != "total")
    return found.seconds["total"], environment.peak_memory_mb(), phases


def growth(rounds: int, images: tuple[int, int] = (8, 32), depths: tuple[int, int] = (2, 6)) -> tuple[float, float]:
    """Time over what proportion would give: four times the images, three times the blocks (random weights)."""
    torch.manual_seed(0)
    few, many = (timm.create_model("vit_small_patch16_224", depth=depth, num_classes=0).eval() for depth in depths)
    pixels = torch.randn(images[1], 3, SIZE, SIZE)

    def cost(model, count):
        return seconds(lambda: quantize_erq(model, pixels[:count], 4, 4))

    cost(few, images[0])
    times = [(cost(few, images[0]), cost(few, images[1]), cost(many, images[0])) for _ in range(rounds)]
    by_images = statistics.median(more / one for one, more, _ in times) / (images[1] / images[0])
    return by_images, statistics.median(deep / one for one, _, deep in times) / (depths[1] / depths[0])


def first_half(rows: int, inputs: int) -> tuple[torch.Tensor, ...]:
    """Errors, candidates and moments of the first half of a layer's columns, correlated inputs, W4A4."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape):
        return torch.randn(*shape, dtype=torch.float64, generator=generator)

    x = normal(2000, inputs) + 0.7 * normal(2000, inputs // 4) @ normal(inputs // 4, inputs) + 0.3 * normal(inputs)
    weight, half = 0.1 * normal(rows, inputs), inputs // 2
    moments = Moments(inputs, 1).update(Affine(4).double()(x), x[:, :1])
    own = Affine(4, 0).double()
    own.initialize(weight)
    values, grid = weight[None, :, :half], Grid.of(own, weight).columns(slice(0, half))
    low, high = grid.candidates(values)
    return grid.nearest(values) - values, low - values, high - values, moments.second_moment[:, :half, :half]


def loop_row(error, low, high, moment, rounds: int = 100):
    """One row by the same rule, with a gradient that is updated; tensors or arrays."""
    gradient, diagonal = 2 * error @ moment, moment.diagonal()
    for _ in range(rounds):
        change = low + high - 2 * error
        gains = change * (gradient + change * diagonal)
        best = gains.argmin()
        if gains[best] >= 0:
            break
        gradient += 2 * change[best] * moment[best]
        error[best] += change[best]
    return error


def refinement(rounds: int, rows: int = 1536, inputs: int = 384, sample: int = 48) -> tuple[float, float, float]:
    """Time of loops over rows in torch and in NumPy over that of the batched search, and its milliseconds."""
    error, low, high, moment = first_half(rows, inputs)
    plain = [part[0].numpy() for part in (error, low, high, moment)]

    def loop(error, low, high, moment, copy):
        for row in range(sample):
            loop_row(copy(error[row]), low[row], high[row], moment)

    def batched():
        refine_rounding(error, low, high, moment)

    batched()
    times = [(seconds(batched),
              seconds(lambda: loop(error[0], low[0], high[0], moment[0], torch.clone)),
              seconds(lambda: loop(*plain, lambda part: part.copy()))) for _ in range(rounds)]  # fmt: skip
    share = rows / sample
    return (statistics.median(share * slow / own for own, slow, _ in times),
            statistics.median(share * slow / own for own, _, slow in times),
            1e3 * statistics.median(own for own, _, _ in times))  # fmt: skip


def rows(rounds: int = 3, threads: int = 2) -> list[dict]:
    """Every figure as `figure`, `measured`, `bound`, `good` and `note`; `bound` is None where there is no bar."""
    torch.set_num_threads(threads)
    found = []
    try:
        total, memory, phases = whole_network()
        found += [(f"ERQ W4A4, DINOv2 ViT-S, {IMAGES} images at {SIZE} (s)", total, SECONDS_BAR, False, phases),
                  ("largest memory of the process (MB)", memory, MEMORY_BAR, False, "")]  # fmt: skip
    except MissingError as error:
        print(f"DINOv2 was not timed: {error}", file=sys.stderr)
    by_images, by_depth = growth(rounds)
    found += [("4 times the images, time over 4 times", by_images, IMAGES_BAR, False, "2 blocks of a ViT-S"),
              ("3 times the blocks, time over 3 times", by_depth, LAYERS_BAR, False, "8 images")]  # fmt: skip
    in_torch, in_numpy, own = refinement(3 * rounds)
    found += [("refinement 1536 x 384: loop over rows / ours", in_torch, LOOP_BAR, True, f"ours {own:.0f} ms"),
              ("the same loop over NumPy arrays / ours", in_numpy, None, True, "")]  # fmt: skip
    names = ("figure", "measured", "bound", "note", "good")
    return [dict(zip(names, (figure, value, bound, note, bound is None or (value >= bound) == high), strict=True))
            for figure, value, bound, high, note in found]  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    measured = rows(options.rounds, options.threads)
    return printed(f"ERQ, {options.threads} threads, {environment.hardware()}", measured, (52, 8, 14))


if __name__ == "__main__":
    sys.exit(main())
