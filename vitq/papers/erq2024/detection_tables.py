"""Tables of the small-scale study of detection: rows of jobs in, means over draws and paired verdicts out."""

import math
from collections.abc import Sequence

import numpy as np
import pandas as pd

from vitq import comparison
from vitq.papers.erq2024.study_tables import told

TABLE = "erq2024_coco"
PUBLISHED = {"mask_rcnn_swin_micro": "Mask R-CNN Swin-T", "cascade_mask_rcnn_swin_micro": "Cascade Mask R-CNN Swin-T"}
METHODS = {"Nearest": "uniform"}  # our name and that of the published table, where they differ
LABELS = {"box_ap": "box AP", "mask_ap": "mask AP", "box_ap50": "box AP50", "box_ap75": "box AP75",
          "detections": "detections", "seconds": "seconds"}
SUMMARY = "third-party summary of ERQ 2024; it does not name the other method"
GAIN_OVER_OTHERS = {"box_ap": 0.5, "mask_ap": 0.3}  # points at W4A4 on Mask R-CNN, as that summary has it
WORDS = {comparison.SAME: "same direction", comparison.NOISE: "within noise", comparison.OPPOSITE: "opposite",
         comparison.ONE_SEED: "one draw"}
UNPUBLISHED = WORDS | {comparison.SAME: "above", comparison.OPPOSITE: "below"}
METRICS = ("box_ap", "mask_ap")
KEYS = ["detector", "bits", "setting", "draw"]


def collected(jobs: Sequence[dict], found: Sequence[dict], names: dict[str, str]) -> pd.DataFrame:
    """One row a case of :func:`vitq.papers.erq2024.detection.studied`, with what its job says."""
    return pd.DataFrame([{**{key: job[key] for key in KEYS}, **row, "method": names.get(row["method"], "FP32")}
                         for job, own in zip(jobs, found, strict=True) for row in own["rows"]])


def kept_pictures(jobs: Sequence[dict], found: Sequence[dict], detector: str, bits: str,
                  names: dict[str, str]) -> dict[str, list[dict]]:
    """Results that jobs kept of some images, in COCO's format, of full precision and of each method at these bits."""
    kept = {}
    for width in ("FP32", bits):
        for job, own in zip(jobs, found, strict=True):
            if (job["detector"], job["bits"]) == (detector, width) and job.get("pictures"):
                kept |= {names.get(method, "full precision"): results for method, results in own["pictures"].items()}
    return kept


def strengths(chosen: pd.DataFrame) -> tuple[pd.DataFrame, dict[str, float]]:
    """Mean of box and mask AP by detector and strength of the ridge, and the best strength of each detector."""
    wide = chosen.assign(mean=chosen[list(METRICS)].mean(axis=1)).pivot(index="detector", columns="coe", values="mean")
    best = wide.idxmax(axis=1).to_dict()
    return wide.rename(columns="{:g}".format).reset_index(), best


def summarized(table: pd.DataFrame, by: Sequence[str], columns: Sequence[str] = METRICS) -> pd.DataFrame:
    """Each metric in percent as mean (standard deviation over draws), one row a group in the order of the table."""
    rows = []
    for key, part in table.groupby(list(by), sort=False):
        rows.append(dict(zip(by, key, strict=True)) | {"draws": part["draw"].nunique()} |
                    {LABELS[column]: told(part[column], 1) for column in columns})
    return pd.DataFrame(rows)


def differences(left: pd.DataFrame, right: pd.DataFrame, metric: str, same: Sequence[str]) -> np.ndarray:
    """Left minus right, matched by the columns ``same``, which tell rows apart on both sides."""
    sides = [table.set_index(list(same))[metric] for table in (left, right)]
    return (sides[0] - sides[1]).dropna().to_numpy()


def verdict(gains: np.ndarray, reported: float) -> str:
    """The book's verdict on paired differences: their mean against two of its standard errors.

    Args:
        gains: One a draw.
        reported: The published difference; NaN where there is none: then "above", "below" or "within noise".
    """
    if not len(gains):
        return "not measured"
    error = gains.std(ddof=1) / math.sqrt(len(gains)) if len(gains) > 1 else math.nan
    words, reported = (UNPUBLISHED, 1.0) if math.isnan(reported) else (WORDS, reported)
    return words[comparison.verdict(float(gains.mean()), error, reported)]


def told_gain(gains: np.ndarray) -> str:
    """Mean with its sign (standard deviation)."""
    if not len(gains):
        return ""
    return f"{gains.mean():+.1f}" + (f" ({gains.std(ddof=1):.1f})" if len(gains) > 1 else "")


def published_gain(detector: str, bits: str, one: str, other: str, metric: str) -> tuple[float, str]:
    """Published AP of one method minus that of another, in points, and its source; NaN where there is none."""
    if (one, other, bits) == ("ERQ", "GPTQ", "W4A4") and "cascade" not in detector:
        return GAIN_OVER_OTHERS[metric], SUMMARY
    table = comparison.published(TABLE)
    table = table[(table["model"] == PUBLISHED[detector]) & (table["metric"] == metric)]
    wanted = [(METHODS.get(name, name), "FP32" if name == "FP32" else bits) for name in (one, other)]
    sides = [table[(table["method"] == method) & (table["bits"] == width)] for method, width in wanted]
    if any(side.empty for side in sides):
        return math.nan, ""
    sources = dict.fromkeys(text for side in sides for text in side["source"].iloc[0].split("; "))
    return sides[0]["value"].iloc[0] - sides[1]["value"].iloc[0], "; ".join(sources)


def verdicts(table: pd.DataFrame, pairs: Sequence[tuple[str, str]]) -> pd.DataFrame:
    """Differences between methods, draw by draw, beside the published ones.

    Args:
        table: Rows of one setting, with those of full precision.
        pairs: Methods: the first minus the second.
    """
    rows, floats = [], table[table["method"] == "FP32"].set_index("detector")
    quantized = table[table["method"] != "FP32"]
    for (detector, bits), part in quantized.groupby(["detector", "bits"], sort=False):
        for one, other in pairs:
            left, right = (part[part["method"] == name] for name in (one, other))
            for metric in METRICS:
                gains = (left[metric] - floats.loc[detector, metric]).to_numpy() if other == "FP32" else differences(
                    left, right, metric, KEYS)
                reported, source = published_gain(detector, bits, one, other, metric)
                rows.append({"detector": detector, "bits": bits, "difference": f"{one} - {other}",
                             "metric": LABELS[metric], "published": "" if math.isnan(reported) else f"{reported:+.1f}",
                             "measured": told_gain(gains), "draws": len(gains), "verdict": verdict(gains, reported),
                             "sense": verdict(gains, math.nan), "source": source})
    return pd.DataFrame(rows)


def changes(table: pd.DataFrame, settings: Sequence[str], reference: str, methods: Sequence[str]) -> pd.DataFrame:
    """What settings change, draw by draw, against the same method and draw in another setting.

    Args:
        table: Rows of one detector at one width.
        settings: Settings, a row each for each method that has it.
        reference: The setting that they are compared with.
        methods: Methods to show.
    """
    rows = []
    for setting in settings:
        for method in methods:
            part = table[table["method"] == method].set_index("setting", drop=False)
            if setting not in part.index:
                continue
            gains = {metric: differences(part.loc[[setting]], part.loc[[reference]], metric, ["draw"])
                     for metric in METRICS}
            rows.append({"setting": setting, "method": method, "draws": len(gains["box_ap"]),
                         **{LABELS[name]: told_gain(own) for name, own in gains.items()},
                         **{f"{LABELS[name]}: verdict": verdict(own, math.nan) for name, own in gains.items()}})
    return pd.DataFrame(rows)


def near_float(table: pd.DataFrame, method: str = "ERQ", bits: str = "W6A6", points: float = 1.0) -> pd.DataFrame:
    """Whether a method stays within some points of full precision, in the mean over draws; a row a metric."""
    rows = []
    for detector, part in table.groupby("detector", sort=False):
        exact, own = part[part["method"] == "FP32"], part[(part["method"] == method) & (part["bits"] == bits)]
        if own.empty or exact.empty:
            continue
        for metric in METRICS:
            gap = exact[metric].iloc[0] - own[metric]
            rows.append({"detector": detector, "metric": LABELS[metric], "full precision": exact[metric].iloc[0],
                         f"{method}, {bits}": told(own[metric], 1), "below full precision": gap.mean(),
                         "within": f"{points:g} point", "holds": "yes" if gap.mean() <= points else "no"})
    return pd.DataFrame(rows)


def conclusions(found: pd.DataFrame, settings: pd.DataFrame) -> list[str]:
    """What verdicts and settings say, a sentence each; nothing in them is decided beforehand.

    Args:
        found: Of :func:`verdicts`.
        settings: Of :func:`changes`.
    """
    lines = []
    for difference, part in found[found["draws"] > 0].groupby("difference", sort=False):
        one, _, other = difference.partition(" - ")
        counts = part["sense"].value_counts()
        told_of = part[part["published"] != ""]["verdict"].value_counts()
        line = (f"{one} against {other.replace('FP32', 'full precision')}: of {len(part)} comparisons {one} is above "
                f"in {counts.get('above', 0)}, below in {counts.get('below', 0)}, within noise in "
                f"{counts.get('within noise', 0)}")
        if len(told_of):
            line += "; of those with a published figure " + ", ".join(f"{n} {word}" for word, n in told_of.items())
        lines.append(line + ".")
    for setting, part in settings.groupby("setting", sort=False) if len(settings) else ():
        moved = [f"{row['method']} {row['box AP']} ({row['box AP: verdict']})" for row in part.to_dict("records")]
        lines.append(f"{setting}, change of box AP: {'; '.join(moved)}.")
    return lines


def published_table() -> pd.DataFrame:
    """The published figures, a row a method and bits, a column a detector and metric."""
    paper = comparison.published(TABLE)
    wide = paper.pivot_table(index=["method", "bits"], columns=["model", "metric"], values="value", sort=False)
    short = {model: model.replace(" R-CNN", "").replace("Cascade Mask", "Cascade") for model in set(paper["model"])}
    wide.columns = [f"{short[model]}, {metric.removesuffix('_ap')}" for model, metric in wide.columns]
    return wide.reset_index()


def published_notes() -> list[str]:
    """Sources of the published figures, and what is said of single ones, one line each."""
    paper = comparison.published(TABLE)
    noted = paper[paper["note"] != ""].drop_duplicates(["method", "note"])
    return [*(f"source: {text}" for text in dict.fromkeys(paper["source"])),
            *(f"{row.method}, {row.bits}, {row.model}, {row.metric}: {row.note}" for row in noted.itertuples())]
