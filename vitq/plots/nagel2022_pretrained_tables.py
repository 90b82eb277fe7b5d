"""Tables of the study on a pretrained network, Nagel 2022: what its figures show, as numbers with a verdict."""

import pandas as pd

from vitq import comparison, records

SETS = {"unseen": "unseen regions", "fresh": "new crops of seen regions"}
SHORT = {"unseen": "unseen", "fresh": "seen"}
ORDER = ("running", "held still", "re-estimated")
SOURCE = "Nagel 2022, Table {}"


def spread(values: pd.Series) -> str:
    """Mean over the seeds, and their standard deviation in brackets."""
    return f"{values.mean():.3g}" + (f" ({values.std():.2g})" if len(values) > 1 else "")


def pooled(oscillation: pd.DataFrame, column: str) -> pd.Series:
    """Share over all weights of all layers in percent, by seed.

    Args:
        oscillation: One run's rows, with ``seed``, ``weights`` and the share of each layer.
        column: Name of that share.
    """
    flagged = oscillation.assign(flagged=oscillation[column] * oscillation["weights"])
    sums = flagged.groupby("seed")[["flagged", "weights"]].sum()
    return sums["flagged"] / sums["weights"]


def by_kind(oscillation: pd.DataFrame, levels: dict[float, str]) -> pd.DataFrame:
    """Share of weights above each threshold, one row a run, seed, kind of layer and threshold.

    Args:
        oscillation: One row a run, seed and layer.
        levels: Column of the share by threshold.
    """
    groups = oscillation.groupby(["run", "seed", "kind"], sort=False)
    rows = [{"run": run, "seed": seed, "kind": kind, "threshold": threshold, "percent": pooled(part, column).iloc[0]}
            for (run, seed, kind), part in groups for threshold, column in levels.items()]
    return pd.DataFrame(rows)


def faithfulness(faithful: pd.DataFrame) -> pd.DataFrame:
    """Agreement and KL of each run with each kind of statistics, over seeds; empty where it was not measured."""
    table = faithful.groupby(["set", "run", "statistics"], sort=False)[["agreement", "kl"]].agg(spread)
    table = table.unstack("statistics").reindex(columns=pd.MultiIndex.from_product([["agreement", "kl"], ORDER]))
    table.columns = [f"{'KL' if measure == 'kl' else measure}, {name}" for measure, name in table.columns]
    return table.fillna("").reset_index().rename(columns={"set": "crops"}).replace({"crops": SHORT})


def divergence(means: pd.DataFrame) -> pd.DataFrame:
    """Largest and mean KL by run and kind of layer in thousandths of a nat, over seeds.

    Args:
        means: One row a run, statistics, kind and seed, with ``max_kl`` and ``mean_kl``.
    """
    scaled = means.assign(max_kl=1000 * means["max_kl"], mean_kl=1000 * means["mean_kl"])
    table = scaled.groupby(["run", "kind", "statistics"], sort=False)[["max_kl", "mean_kl"]].agg(spread)
    table = table.unstack("statistics")
    table.columns = [f"{'largest' if name == 'max_kl' else 'mean'} KL, {kind}" for name, kind in table.columns]
    return table.fillna("").reset_index()


def single_layers(divergence: pd.DataFrame, places: dict[str, str]) -> pd.DataFrame:
    """Our layers beside those of MobileNetV2 that the paper prints.

    Args:
        divergence: Rows of one run and one kind of statistics: ``layer``, ``kind``, ``max_kl``, ``mean_kl``.
        places: Our layer by the paper's name.
    """
    paper = records.published("nagel2022_t1")
    paper = paper[paper["model"] == "MobileNetV2"].assign(place=lambda t: t["setting"].str.split(" ").str[0])
    paper, rows = paper.pivot(index="place", columns="metric", values="value"), []
    for place, layer in places.items():
        part = divergence[divergence["layer"] == layer]
        rows.append({"paper's layer": place, "our layer": layer, "kind": part["kind"].iloc[0],
                     "largest KL, ours": spread(part["max_kl"]), "mean KL, ours": spread(part["mean_kl"]),
                     "largest KL, MobileNetV2": f"{paper['kl_max'][place]:.4g}",
                     "mean KL, MobileNetV2": f"{paper['kl_mean'][place]:.4g}", "source": SOURCE.format(1)})
    return pd.DataFrame(rows)


def metrics(faithful: pd.DataFrame, run: str, kind: str) -> dict[str, list[float]]:
    """Metrics of a record, one value a seed: after re-estimation, before it (``_pre_bn``) and ``_held_still``."""
    part = faithful[(faithful["run"] == run) & (faithful["set"] == kind)].sort_values("seed").groupby("statistics")
    suffixes = {"re-estimated": "", "running": "_pre_bn", "held still": "_held_still"}
    return {name + suffixes[kind]: rows[name].tolist() for kind, rows in part for name in ("agreement", "kl")}


def direction(measured: pd.DataFrame, faithful: pd.DataFrame) -> pd.DataFrame:
    """Table 2: what re-estimation adds, beside what it added in the paper on another network and metric.

    Args:
        measured: Records of plain LSQ, from ``records.load_records``.
        faithful: One row a run, seed, set and statistics.
    """
    paper = records.published("nagel2022_t2")
    paper = paper[paper["model"] == "MobileNetV2"]
    paper = paper.replace({"metric": {"top1": "agreement", "top1_pre_bn": "agreement_pre_bn"}})
    rows = []
    for kind, title in SETS.items():
        ours = measured[(measured["setting"] == title) & measured["metric"].isin(set(paper["metric"]))]
        table = records.compare(ours.assign(setting=""), paper, baseline={"metric": "agreement_pre_bn"})
        for line in table[table["metric"] == "agreement"].to_dict("records"):
            part = faithful[(faithful["run"] == line["bits"]) & (faithful["set"] == kind)]
            pairs = part.pivot(index="seed", columns="statistics", values="agreement")
            rows.append({"crops": SHORT[kind], "bits": line["bits"],
                         "re-estimated minus running": f"{line['difference']:+.2f}",
                         "in each seed": signs(pairs["re-estimated"] - pairs["running"]),
                         "published, MobileNetV2 top-1": f"{line['reported_difference']:+.2f}",
                         "source": line["source"], "verdict on the direction": line["verdict"]})
    return pd.DataFrame(rows)


def signs(differences: pd.Series) -> str:
    """The difference of each seed."""
    return ", ".join(f"{value:+.2g}" for value in differences)


def findings(faithful: pd.DataFrame, means: pd.DataFrame, oscillation: pd.DataFrame, column: str) -> pd.DataFrame:
    """Differences within a seed, on new crops of seen regions, each with a verdict on its sign.

    Args:
        faithful: One row a run, seed, set and statistics.
        means: One row a run, statistics, kind and seed.
        oscillation: One row a run, seed and layer.
        column: Share of oscillating weights to compare.
    """
    fresh = faithful[faithful["set"] == "fresh"].set_index(["run", "statistics", "seed"])
    fresh = fresh[["agreement", "kl"]].sort_index()
    level = means[means["run"] == "W3"].set_index(["kind", "statistics", "seed"])["mean_kl"].sort_index()
    depthwise, runs = level["depthwise", "running"], set(oscillation["run"])
    share = {run: pooled(oscillation[oscillation["run"] == run], column) for run in runs}
    after = {run: fresh.loc[(run, "re-estimated")] for run in runs}
    gain = {run: after[run] - fresh.loc[(run, "running")] for run in runs}
    return pd.DataFrame([
        judged("mean KL: depthwise minus pointwise", 1, depthwise - level["pointwise", "running"], 1),
        judged("mean KL, depthwise: trained minus held still", 1, depthwise - level["depthwise", "held still"], 1),
        judged("agreement: re-estimated minus running", 2, gain["W3"]["agreement"], 1),
        judged("output KL: re-estimated minus running", 2, gain["W3"]["kl"], -1),
        judged("agreement gained: 3 minus 8 bits", 2, (gain["W3"] - gain["W8"])["agreement"], 1),
        *(line for number, name in ((4, "Dampen"), (5, "Freeze")) if f"W3 + {name}" in runs for line in (
            judged(f"oscillating weights (%): {name} minus LSQ", number, share[f"W3 + {name}"] - share["W3"], -1),
            judged(f"agreement, re-estimated: {name} minus LSQ", number,
                   (after[f"W3 + {name}"] - after["W3"])["agreement"], 1))),
    ])


def judged(finding: str, number: int, differences: pd.Series, expected: int) -> dict[str, str]:
    """One line of the findings.

    Args:
        finding: What is compared.
        number: Of the paper's table that claims it.
        differences: One a seed.
        expected: Sign that the paper reports, 1 or -1.
    """
    error = differences.std() / len(differences) ** 0.5 if len(differences) > 1 else float("nan")
    told = comparison.verdict(differences.mean(), error, expected)
    return {"at 3 bits": finding, "difference": f"{differences.mean():+.3g}", "in each seed": signs(differences),
            "standard error": f"{error:.2g}", "paper's sign": "+" if expected > 0 else "-",
            "source": SOURCE.format(number),
            "verdict": told + (": contradicts the paper" if told == comparison.OPPOSITE else "")}
