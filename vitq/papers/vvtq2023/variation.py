"""Static variation of weights (VVTQ 2023, second of its three levels): tables by group, by layer, and by network."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from vitq.numerics import check_choice
from vitq.papers.vvtq2023.parts import Part, parts
from vitq.papers.vvtq2023.statistics import Sums, outliers, sdam

if TYPE_CHECKING:
    import pandas

LEVELS = ("layer", "head", "channel")


def _rows(part: Part, weight: Tensor, level: str) -> Tensor | None:
    """Values (groups, members); None where the level does not exist."""
    if level == "layer":
        return weight.reshape(1, -1)
    if level == "channel":
        return weight.flatten(1)  # one row an output channel
    return None if part.heads is None else part.by_head(weight)


def groups(model: nn.Module, level: str = "head") -> "pandas.DataFrame":
    """Statistics of the weights, one row a group.

    Args:
        model: Any timm network, float or quantized (then of the latent weights).
        level: ``"layer"``, ``"channel"`` (output channels) or ``"head"`` (query, key, value and projection only).

    Returns:
        Columns layer, kind, group, weights, mean_abs, std, max_mean, outliers (share), kurtosis; see
        :mod:`vitq.papers.vvtq2023.statistics`.
    """
    import pandas

    check_choice("level", level, LEVELS)
    tables = []
    for part in parts(model):
        rows = _rows(part, part.weight(model), level)
        if rows is None:
            continue
        sums = Sums.of(rows)
        values = sums.columns() | {"outliers": outliers(rows, sums.mean, sums.std) / rows.shape[1]}
        names = {"layer": part.name, "kind": part.kind, "group": range(len(rows)), "weights": rows.shape[1]}
        tables.append(pandas.DataFrame(names | {key: value.cpu().numpy() for key, value in values.items()}))
    columns = ["layer", "kind", "group", "weights", "mean_abs", "std", "max_mean", "outliers", "kurtosis"]
    return pandas.concat(tables, ignore_index=True)[columns] if tables else pandas.DataFrame(columns=columns)


def variation(model: nn.Module) -> "pandas.DataFrame":
    """Variation of the weights, one row a layer.

    Args:
        model: As in :func:`groups`.

    Returns:
        Columns layer, kind, weights; mean_abs, max_mean, outliers, kurtosis of the layer as a whole; sdam_channel,
        sdam_head and both as relative_channel, relative_head (NaN without heads).
    """
    table = groups(model, "layer").drop(columns=["group", "std"])
    for level in ("channel", "head"):
        found = groups(model, level).groupby("layer")["mean_abs"]
        values = {name: sdam(torch.tensor(column.to_numpy(float))) for name, column in found}
        for number, name in enumerate(("sdam", "relative")):
            table[f"{name}_{level}"] = [values[n][number] if n in values else float("nan") for n in table["layer"]]
    return table


def compare_networks(models: Mapping[str, nn.Module]) -> "pandas.DataFrame":
    """Variation of whole networks, one row a network (its index is the name).

    A transformer's embedding and the classifier are left out: the rest is what is quantized to few bits. Figures of
    layers are averaged, each layer counting once; ``sdam_layer`` is the SDAM over the layers of a network.

    Args:
        models: Networks by the name to show.
    """
    import pandas

    rows = {}
    for name, model in models.items():
        inner = variation(model)
        inner = inner[~inner["kind"].isin(["embedding", "classifier"])]
        names = ["sdam_channel", "relative_channel", "sdam_head", "relative_head", "max_mean", "outliers", "kurtosis"]
        over_layers = sdam(torch.tensor(inner["mean_abs"].to_numpy(float)))
        rows[name] = {"layers": len(inner), "weights": int(inner["weights"].sum()), "sdam_layer": over_layers[0],
                      "relative_layer": over_layers[1], **inner[names].mean()}  # fmt: skip
    return pandas.DataFrame.from_dict(rows, orient="index").astype({"layers": int, "weights": int})
