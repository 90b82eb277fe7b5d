"""The paper's tables beside ours: records of the small-scale study, and published figures with verdicts."""

from pathlib import Path
from typing import TYPE_CHECKING

from vitq import comparison, records

if TYPE_CHECKING:
    import pandas
    from pandas.io.formats.style import Styler


def side_by_side(folder: Path, claim: str, metrics: list[str], model: str = "mobilenet_micro") -> "pandas.DataFrame":
    """Published and measured figures of one claim, with the differences to the baseline and a verdict.

    Args:
        folder: Where the records lie; smoke records are left out.
        claim: Claim id, such as ``nagel2022_t4``.
        metrics: Metrics to show.
        model: The network whose records count.

    Returns:
        method, setting, bits, metric, published, published difference, measured, std, seeds, measured difference and
        verdict; one row a figure.
    """
    facts = comparison.claims().loc[claim]
    published = records.published(facts["published"])
    published = published[(published["model"] == facts["model"]) & published["metric"].isin(metrics)]
    measured = records.load_records(folder, claim)
    measured = measured[(measured["model"] == model) & measured["metric"].isin(metrics)]
    table = records.compare(measured, published, baseline=facts["baseline"] or None, smoke="drop")
    names = {"reported": "published", "reported_difference": "published difference", "mean": "measured", "n": "seeds",
             "difference": "measured difference"}
    columns = [*comparison.KEYS, "reported", "reported_difference", "mean", "std", "n", "difference", "verdict"]
    return table[columns].rename(columns=names)


def narrow(table: "pandas.DataFrame", digits: int = 2, keep: tuple[str, ...] = ("setting", "metric")) -> "Styler":
    """The table as a page shows it: few columns, ``value (std)``, differences to the baseline as Δ."""

    def number(value: float, sign: bool = False) -> str:
        return "" if value != value else f"{value:{'+' if sign else ''}.{digits}f}"

    shown = table[list(keep)].copy()
    shown["published"] = [number(v) for v in table["published"]]
    shown["Δ published"] = [number(v, True) for v in table["published difference"]]
    spread = [f" ({number(s)})" if s == s else "" for s in table["std"]]
    shown["measured"] = [number(v) + s for v, s in zip(table["measured"], spread, strict=True)]
    shown["Δ measured"] = [number(v, True) for v in table["measured difference"]]
    shown["verdict"] = table["verdict"].str.replace("inconclusive within noise", "within noise").str.replace(
        " direction", "")
    return shown.style.hide(axis="index")


def count_verdicts(table: "pandas.DataFrame", claim: str, metric: str, method: str | None = None) -> dict:
    """How many rows of a table bring the published direction, for the summary."""
    rows = table[(table["metric"] == metric) & table["measured difference"].notna()]
    rows = rows if method is None else rows[rows["method"] == method]
    found = rows["verdict"].value_counts()
    columns = {"same": "same direction", "opposite": "opposite direction", "within noise": "inconclusive within noise"}
    return {"claim": claim, "rows": len(rows), **{name: int(found.get(text, 0)) for name, text in columns.items()}}
