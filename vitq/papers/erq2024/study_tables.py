"""Tables of the small-scale study of ERQ: rows of jobs in, means over draws and verdicts out."""

from collections.abc import Iterable, Sequence

import numpy as np
import pandas as pd

COLUMNS = {"error": ("error", 3), "sqnr_db": ("SQNR (dB)", 2), "cosine": ("cosine", 3),
           "probe_top1": ("probe top-1 (%)", 1), "agreement": ("agreement (%)", 1), "top1": ("top-1 (%)", 1),
           "seconds": ("seconds", 1)}  # label and digits of each metric


def told(values: pd.Series, digits: int) -> str:
    """Mean (standard deviation) of the known values."""
    known = values.dropna()
    if known.empty:
        return ""
    return f"{known.mean():.{digits}f}" + (f" ({known.std():.{digits}f})" if len(known) > 1 else "")


def summarized(table: pd.DataFrame, columns: Sequence[str], by: Sequence[str] = ("bits", "method")) -> pd.DataFrame:
    """Each metric as mean (standard deviation over draws), one row a group, with the number of draws.

    Args:
        table: Columns ``draw``, those of ``by``, and metrics out of :data:`COLUMNS`.
        columns: Metrics to show; those that the table lacks are left out.
        by: What makes a group.
    """
    columns, rows = [c for c in columns if c in table], []
    for key, group in table.groupby(list(by), sort=False):
        row = dict(zip(by, key, strict=True)) | {"draws": group["draw"].nunique()}
        rows.append(row | {COLUMNS[c][0]: told(group[c], COLUMNS[c][1]) for c in columns})
    return pd.DataFrame(rows)


def bar(table: pd.DataFrame, share: float = 0.8) -> pd.DataFrame:
    """ERQ's mean error over that of RepQ-ViT (at most ``share`` wanted) and of GPTQ (at most 1), by bits."""
    rows = []
    for bits, part in table.groupby("bits", sort=False):
        mean = part.groupby("method")["error"].mean()
        repq, gptq = mean["ERQ"] / mean["RepQ-ViT"], mean["ERQ"] / mean["GPTQ"]
        rows.append({"bits": bits, "draws": part["draw"].nunique(), "ERQ / RepQ-ViT": repq, "ERQ / GPTQ": gptq,
                     f"at most {share} of RepQ-ViT": "yes" if repq <= share else "no",
                     "at most GPTQ": "yes" if gptq <= 1 else "no"})
    return pd.DataFrame(rows)


def reductions(layers: pd.DataFrame) -> pd.DataFrame:
    """Layers with a quantized input and what Aqer and Wqer take off their errors, in percent.

    Args:
        layers: Rows of :func:`vitq.papers.erq2024.study_shared.layer_errors`.
    """
    found = layers[layers["inputs"] > 1e-9]  # the first layer sees the image itself
    return found.assign(kind=found["layer"].str.rsplit(".", n=1).str[-1],
                        Aqer=100 * (1 - found["aqer"] / found["inputs"]),
                        Wqer=100 * (1 - found["rounding_wqer"] / found["rounding_nearest"]))


def by_kind(found: pd.DataFrame) -> pd.DataFrame:
    """Mean reductions over all layers and over those of each kind, on both sets of images."""
    columns = ["Aqer", "Wqer"]
    whole = found.groupby("images", sort=False)[columns].mean().reset_index().assign(kind="all layers")
    kinds = found.groupby(["kind", "images"], sort=False)[columns].mean().reset_index()
    table = pd.concat([whole, kinds])[["kind", "images", *columns]]
    return table.rename(columns={"kind": "layers", "Aqer": "Aqer (%)", "Wqer": "Wqer (%)"})


def proxies(found: dict) -> pd.DataFrame:
    """How near inputs are to a Gaussian, and how near the proxy is to the error on other images, layer by layer.

    Args:
        found: Of :func:`vitq.papers.erq2024.study_layers.layers`.
    """
    rows = []
    for inputs in found["inputs"]:
        own = {row["rule"]: row for row in found["proxy"] if row["layer"] == inputs["layer"]}
        ranks = pd.DataFrame({key: own["nearest"][key] for key in ("proxy", "true")}).corr("spearman")
        rows.append({"layer": inputs["layer"], "excess kurtosis, inputs": inputs["input_kurtosis"],
                     "outputs": inputs["output_kurtosis"], "rank correlation": ranks.loc["proxy", "true"],
                     **{f"error / proxy, {label}": np.sum(own[rule]["true"]) / np.sum(own[rule]["proxy"])
                        for rule, label in (("nearest", "nearest"), ("exact_gain", "refined"))}})
    return pd.DataFrame(rows)


def program_ratios(rows: list[dict], names: dict[str, str]) -> pd.DataFrame:
    """Proxy over the optimum (the best known, where that was not found) and seconds, one line a problem and method.

    Args:
        rows: Of :func:`vitq.papers.erq2024.study_layers.mipq`.
        names: Label of each method.
    """
    lines = []
    for row in rows:
        best = row["optimum"] if row["optimum"] is not None else min(row[name] for name in names)
        lines += [{"n": row["n"], "method": label, "ratio": row[name] / max(best, 1e-300), "optimal": row["optimal"],
                   "seconds": row.get(f"{name}_seconds", np.nan)} for name, label in names.items()]
    return pd.DataFrame(lines)


def program_summary(ratios: pd.DataFrame, search: str, program: str) -> pd.DataFrame:
    """Mean ratios by size, and how much slower the program is than the search."""
    by = ratios.groupby(["n", "method"], sort=False)
    table, seconds = by["ratio"].mean().unstack(), by["seconds"].mean().unstack()
    table = table[list(dict.fromkeys(ratios["method"]))]
    exact = ratios[ratios["method"] == program].groupby("n")["optimal"]
    costs = {"problems": exact.count(), "proven optimal": exact.sum(), f"{search}, seconds a row": seconds[search],
             f"{program}, seconds a row": seconds[program], "times slower": seconds[program] / seconds[search]}
    return table.assign(**costs).reset_index()


def differences(table: pd.DataFrame, reference: pd.DataFrame) -> pd.DataFrame:
    """Difference of top-1 and ratio of the error to the same method, bits and draw of ``reference``."""
    keys = ["method", "bits", "draw"]
    found = table.merge(reference[[*keys, "top1", "error"]], on=keys, suffixes=("", " of the reference"))
    return found.assign(top1_difference=found["top1"] - found["top1 of the reference"],
                        error_ratio=found["error"] / found["error of the reference"])


def beyond(values: Iterable[float], centre: float = 0.0) -> bool:
    """Whether a mean is more than two standard errors away from ``centre``."""
    values = np.asarray(list(values))
    return len(values) > 1 and abs(values.mean() - centre) > 2 * values.std(ddof=1) / np.sqrt(len(values))


def costs(found: pd.DataFrame) -> pd.DataFrame:
    """Means over draws of what departures cost, see :func:`differences`."""
    rows = []
    for setting, part in found.groupby("setting", sort=False):
        rows.append({"departure": setting, "levels of the inputs": part["levels"].max(),
                     "rows stuck (%)": part["stuck"].mean(), "top-1 (points)": told(part["top1_difference"], 2),
                     "error ratio": told(part["error_ratio"], 3),
                     "beyond two standard errors": "yes" if beyond(part["error_ratio"], 1) else "no"})
    return pd.DataFrame(rows)


def paired(table: pd.DataFrame, a: str, b: str, metric: str = "error") -> list[list[float]]:
    """By how much a is better than b, draw by draw: a list for each network and bits that have both.

    Args:
        table: Columns ``network``, ``method``, ``bits``, ``draw`` and the metric.
        a: A method.
        b: Another.
        metric: ``"error"`` (less is better) or one of which more is better.
    """
    if metric not in table:
        return []
    sides = [table[table["method"] == m].set_index(["network", "bits", "draw"])[metric] for m in (a, b)]
    gain = (sides[1] - sides[0] if metric == "error" else sides[0] - sides[1]).dropna()
    return [values.tolist() for _, values in gain.groupby(level=["network", "bits"])]


def count(claim: str, gains: Iterable[Sequence[float]]) -> dict:
    """In how many of several comparisons (a list over draws each) the gain is above 0, below it, or neither."""
    words = {"as claimed": 0, "opposite": 0, "within noise": 0}
    for values in (np.asarray(v) for v in gains if len(v) > 1):
        words["within noise" if not beyond(values) else "as claimed" if values.mean() > 0 else "opposite"] += 1
    return {"claim": claim, "comparisons": sum(words.values()), **words}
