"""Static variation of activations: the inputs of all layers, and query, key and value, streamed over batches."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from vitq.convert import LAYERS
from vitq.errors import InputError
from vitq.papers.vvtq2023.parts import QUERY_KEY_VALUE, Part, parts
from vitq.papers.vvtq2023.statistics import Sums, outliers, sdam
from vitq.train.evaluation import evaluation_mode

if TYPE_CHECKING:
    import pandas

Visit = Callable[[str, Tensor], None]


def _channels(x: Tensor, layer: nn.Module) -> Tensor:
    """Values of each channel, (C, values)."""
    return x.movedim(1 if isinstance(layer, nn.Conv2d) else -1, 0).flatten(1)


@contextmanager
def _watched(model: nn.Module, visit: Visit) -> Iterator[None]:
    """Call ``visit(site, values (C, n))`` for each input of a layer and for query, key and value."""
    by_layer: dict[str, list[Part]] = {}
    for part in parts(model):
        by_layer.setdefault(part.layer, []).append(part)
    handles = []
    for name, found in by_layer.items():
        layer = model.get_submodule(name)
        if not isinstance(layer, LAYERS):
            continue

        def on_input(layer, args, name=name) -> None:
            visit(f"{name} input", _channels(args[0], layer))

        def on_output(layer, args, output, found=found) -> None:
            pieces = output.chunk(3, dim=-1) if len(found) == 3 else (output,)
            for part, piece in zip(found, pieces, strict=True):
                visit(part.name, _channels(piece, layer))

        handles.append(layer.register_forward_pre_hook(on_input, prepend=True))  # before an input quantizer
        if found[0].kind in QUERY_KEY_VALUE:
            handles.append(layer.register_forward_hook(on_output))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@torch.no_grad()
def _run(model: nn.Module, batches: Iterable[Tensor], visit: Visit) -> None:
    device, seen = next(model.parameters()).device, False
    with evaluation_mode(model), _watched(model, visit):
        for images in batches:
            seen = True
            model(images.to(device))
    if not seen:
        raise InputError("batches is empty: give at least one batch of images")


def activation_variation(model: nn.Module, batches: Iterable[Tensor]) -> "pandas.DataFrame":
    """Variation of the activations, one row a site; memory does not grow with the number of batches.

    The images are read twice: first for the moments, then to count outliers beyond three standard deviations.

    Args:
        model: Any timm network; of a quantized one the values before quantization.
        batches: Images (N, C, H, W) that can be gone through twice: a list or a loader, not a generator.

    Returns:
        Columns site (``"blocks.0.attn.qkv input"``, or ``"blocks.0.attn.query"`` for the operand itself), kind, values;
        mean_abs, max_mean, outliers, kurtosis of the site as a whole; outliers_channel (each channel with its own
        moments); sdam_channel, sdam_head, relative_channel, relative_head as for weights, NaN without heads.
    """
    import pandas

    if iter(batches) is batches:
        raise InputError("batches is a generator, which can be read only once: give a list or a loader")
    sums: dict[str, Sums] = {}
    counted: dict[str, Tensor] = {}

    def add(site: str, rows: Tensor) -> None:
        own = Sums.of(rows)
        sums[site] = sums[site] + own if site in sums else own

    def count(site: str, rows: Tensor) -> None:
        whole, own = sums[site].merged(1), sums[site]
        pair = [outliers(rows.reshape(1, -1), whole.mean, whole.std).sum(), outliers(rows, own.mean, own.std).sum()]
        counted[site] = counted.get(site, 0) + torch.stack(pair)

    _run(model, batches, add)
    _run(model, batches, count)
    kinds = {part.layer: part for part in parts(model)} | {part.name: part for part in parts(model)}
    return pandas.DataFrame([_row(site, kinds[site.removesuffix(" input")], own, counted[site])
                             for site, own in sums.items()])


def _row(site: str, part: Part, own: Sums, counted: Tensor) -> dict[str, object]:
    is_input, values = site.endswith(" input"), own.count * len(own.absolute)
    kind = "qkv" if is_input and part.kind in QUERY_KEY_VALUE else part.kind
    heads = part.heads if (part.kind == "projection") == is_input else None
    whole, share = own.merged(1).columns(), (counted.double() / values).tolist()
    channel = sdam(own.absolute_mean)
    head = sdam(own.merged(heads).absolute_mean) if heads else (float("nan"),) * 2
    return {
        "site": site, "kind": f"{kind} input" if is_input else kind, "values": values,
        "mean_abs": whole["mean_abs"].item(), "max_mean": whole["max_mean"].item(), "outliers": share[0],
        "kurtosis": whole["kurtosis"].item(), "outliers_channel": share[1],
        "sdam_channel": channel[0], "relative_channel": channel[1], "sdam_head": head[0], "relative_head": head[1],
    }  # fmt: skip
