"""Reported against reproduced: the published tables as data, and the rule that turns seeds into a verdict.

The rule. A paper says that a run differs from its baseline by d. We have the same two runs with n and m seeds, whose
means differ by D with Welch's standard error SE = sqrt(s1^2/n + s2^2/m). If |D| > 2 SE the difference counts: "same
direction" when D and d have the same sign, else "opposite direction". If not, "inconclusive within noise". Two
standard errors are about 95 % confidence for many seeds; with three a side chance alone exceeds them in about 12 % of
comparisons, so a verdict on a single row is weaker than one that a whole table shares. One seed gives no noise to
compare with: "inconclusive: one seed". A row without a measurement reads "not run: <reason>".
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from . import environment
from .errors import InputError

if TYPE_CHECKING:
    import pandas

KEYS = ("method", "setting", "bits", "metric")
PUBLISHED_COLUMNS = ("table", "model", "method", "setting", "bits", "metric", "value", "std", "source", "note")
SAME, OPPOSITE, NOISE = "same direction", "opposite direction", "inconclusive within noise"
ONE_SEED, NO_DIRECTION, BASELINE = "inconclusive: one seed", "no direction reported", "baseline"


def published_folder() -> Path:
    """Folder of the published numbers: book/results/published in the checkout."""
    return environment.home() / "book" / "results" / "published"


def published(name: str, folder: str | Path | None = None) -> pandas.DataFrame:
    """A published table, one row a figure, every row with its source.

    Args:
        name: file name without `.csv`, such as `nagel2022_t4`.
        folder: where to look, `published_folder()` if None.

    Raises:
        InputError: no such table (the message lists those that exist), a column is missing, a row has no source, or
            a value is not a number.
    """
    import pandas as pd

    folder = published_folder() if folder is None else Path(folder)
    path = folder / f"{name}.csv"
    if not path.is_file():
        known = ", ".join(sorted(file.stem for file in folder.glob("*.csv") if file.stem != "claims")) or "none"
        raise InputError(f"no published table {name!r}; there are: {known}")
    table = pd.read_csv(path, dtype=str, keep_default_na=False)
    if missing := [column for column in PUBLISHED_COLUMNS if column not in table.columns]:
        raise InputError(f"{path} lacks the columns {', '.join(missing)}")
    if (table["source"].str.strip() == "").any():
        row = int((table["source"].str.strip() == "").idxmax()) + 2
        raise InputError(f"{path}, line {row}: a published figure without a source")
    for column in ("value", "std"):
        try:
            table[column] = pd.to_numeric(table[column].replace("", math.nan))
        except ValueError as error:
            raise InputError(f"{path}, column {column}: {error}") from None
    return table


def claims(folder: str | Path | None = None) -> pandas.DataFrame:
    """The claims that the book tests, one row each, indexed by claim id.

    Returns:
        columns published (table name), model, baseline (a dict for `compare`, empty for none), statement, source.
    """
    import pandas as pd

    table = pd.read_csv((folder or published_folder()) / "claims.csv", dtype=str, keep_default_na=False)
    pairs = [[part.split("=", 1) for part in text.split(";") if part] for text in table["baseline"]]
    table["baseline"] = pd.Series([dict(pair) for pair in pairs], dtype=object)
    return table.set_index("claim")


def standard_error(std: float, n: int, baseline_std: float, baseline_n: int) -> float:
    """Welch's standard error of a difference of two means, from sample deviations and seed counts."""
    return math.sqrt(std**2 / n + baseline_std**2 / baseline_n)


def verdict(difference: float, error: float, reported_difference: float, factor: float = 2.0) -> str:
    """Verdict on one difference, by the rule at the top of this module.

    Args:
        difference: measured mean minus the measured mean of the baseline.
        error: standard error of that difference; NaN where there is one seed only.
        reported_difference: the published one.
        factor: how many standard errors a difference must exceed to count.
    """
    if math.isnan(reported_difference) or reported_difference == 0:
        return NO_DIRECTION
    if math.isnan(error):
        return ONE_SEED
    if abs(difference) <= factor * error:
        return NOISE
    return SAME if (difference > 0) == (reported_difference > 0) else OPPOSITE


def compare(
    records: pandas.DataFrame,
    published: pandas.DataFrame,
    keys: Sequence[str] = KEYS,
    baseline: Mapping[str, str] | None = None,
    smoke: str = "refuse",
) -> pandas.DataFrame:
    """Published figures beside measured ones, with a verdict on every difference to the baseline.

    Args:
        records: from `load_records`. Where several match a row the result is ambiguous and refused: filter first.
        published: from `published`, filtered to one model if the table has several.
        keys: columns by which a record belongs to a published figure.
        baseline: key columns and values of the row that others are compared with, such as `{"method": "LSQ"}`; the
            other keys stay as they are. Without one nothing is compared and the verdict is "measured".
        smoke: what to do with smoke records, which are no results: "refuse" or "drop".

    Returns:
        the keys and: reported, reported_std, mean, std, n, delta (measured minus reported), reported_difference,
        difference (each to the baseline), error (its standard error), scale, verdict, source, note. Published rows
        come first and all stay; measured rows that nothing was published for follow.

    Raises:
        InputError: smoke records among the results, two records or two figures for one row, or no baseline row.
    """
    import pandas as pd

    keys = list(keys)
    records = _results_only(records, smoke)
    for name, table in (("records", records), ("published figures", published)):
        table = table[table["metric"] != ""] if "metric" in table else table
        if (double := table[table.duplicated(keys)]).size:
            row = ", ".join(f"{key}={double.iloc[0][key]}" for key in keys)
            raise InputError(f"more than one of the {name} for {row}; filter them or add a key")
    reported = published.rename(columns={"value": "reported", "std": "reported_std"})
    reported = reported[[*keys, "reported", "reported_std", "source", "note"]]
    done = records[records["status"] == "done"]
    table = reported.merge(done[[*keys, "mean", "std", "n", "scale"]], on=keys, how="outer", sort=False)
    table = _published_order(table, reported, keys)
    table["delta"] = table["mean"] - table["reported"]
    table = pd.concat([table, _differences(table, keys, baseline)], axis=1)
    table["verdict"] = [_row_verdict(row, records, keys, baseline) for row in table.to_dict("records")]
    ordered = ["reported", "reported_std", "mean", "std", "n", "delta", "reported_difference", "difference", "error"]
    return table[[*keys, *ordered, "scale", "verdict", "source", "note"]]


def _results_only(records: pandas.DataFrame, smoke: str) -> pandas.DataFrame:
    if smoke not in ("refuse", "drop"):
        raise InputError(f"smoke must be 'refuse' or 'drop', not {smoke!r}")
    marked = records["scale"] == "smoke"
    if marked.any() and smoke == "refuse":
        raise InputError(f"smoke records are no results: {', '.join(sorted(set(records[marked]['file'])))}")
    return records[~marked]


def _published_order(table: pandas.DataFrame, reported: pandas.DataFrame, keys: list[str]) -> pandas.DataFrame:
    order = {tuple(row): place for place, row in enumerate(reported[keys].itertuples(index=False, name=None))}
    place = [order.get(tuple(row), len(order)) for row in table[keys].itertuples(index=False, name=None)]
    table = table.assign(_place=place).sort_values("_place", kind="stable").drop(columns="_place")
    return table.fillna({"source": "", "note": "", "scale": "", "n": 0}).astype({"n": int}).reset_index(drop=True)


def _differences(table: pandas.DataFrame, keys: list[str], baseline: Mapping[str, str] | None) -> pandas.DataFrame:
    import pandas as pd

    columns = ["reported_difference", "difference", "error"]
    if not baseline:
        return pd.DataFrame(math.nan, index=table.index, columns=columns)
    if unknown := [key for key in baseline if key not in keys]:
        raise InputError(f"baseline names {', '.join(unknown)}, which is not among the keys {', '.join(keys)}")
    rows = {tuple(row[key] for key in keys): row for row in table.to_dict("records")}
    if not any(_is_baseline(row, baseline) for row in rows.values()):
        raise InputError(f"no row for the baseline {dict(baseline)}")
    found = []
    for row in rows.values():
        other = rows.get(tuple(baseline.get(key, row[key]) for key in keys))
        if other is None or _is_baseline(row, baseline):
            found.append((math.nan,) * 3)
            continue
        known = min(row["n"], other["n"]) > 1
        error = standard_error(row["std"], row["n"], other["std"], other["n"]) if known else math.nan
        found.append((row["reported"] - other["reported"], row["mean"] - other["mean"], error))
    return pd.DataFrame(found, index=table.index, columns=columns)


def _is_baseline(row: Mapping, baseline: Mapping[str, str]) -> bool:
    return all(row[key] == value for key, value in baseline.items())


def _row_verdict(row: Mapping, records: pandas.DataFrame, keys: list[str], baseline: Mapping[str, str] | None) -> str:
    if math.isnan(row["mean"]):
        return f"not run: {_reason(row, records, keys)}"
    if not baseline:
        return "measured"
    if _is_baseline(row, baseline):
        return BASELINE
    if math.isnan(row["difference"]):
        return "not run: its baseline has no record"
    return verdict(row["difference"], row["error"], row["reported_difference"])


def _reason(row: Mapping, records: pandas.DataFrame, keys: list[str]) -> str:
    """Why a row has no measurement; a record that was not run has no metric, so the metric is not compared."""
    same = records[records["status"] != "done"]
    for key in keys:
        if key != "metric":
            same = same[same[key] == row[key]]
    return str(same.iloc[0]["reason"]) if len(same) else "no record yet"
