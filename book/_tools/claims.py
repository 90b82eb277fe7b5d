"""Make the tables of the claims page from the records and the published numbers; nothing in them is typed by hand."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path

import pandas as pd
from contents import ROOT

from vitq import comparison, records

TABLES = ROOT / "book" / "results" / "tables"
PRIMARY = ("top1", "kl_max")  # the metric that the overview shows, the first that a table has


def figure(value: float, std: float = math.nan, sign: bool = False) -> str:
    """A number as tables show it, with its standard deviation in brackets."""
    if math.isnan(value):
        return ""
    text = f"{value:+.3g}" if sign else f"{value:.4g}"
    return text if math.isnan(std) else f"{text} ({std:.3g})"


def compared(claim: str, row: pd.Series) -> pd.DataFrame:
    """Published and measured figures of one claim, with verdicts and the file of each record, a block a network."""
    published = records.published(row["published"])
    published = published[published["model"] == row["model"]]
    measured = records.load_records(claim=claim)
    measured = measured[measured["scale"] != "smoke"]
    done = measured[measured["status"] == "done"]
    networks = list(dict.fromkeys(done["model"])) or [""]
    keys, blocks = list(comparison.KEYS), []
    for network in networks:
        mine = measured[measured["model"] == network] if network else measured
        table = records.compare(mine, published, baseline=row["baseline"] or None)
        found = mine[mine["status"] == "done"].set_index(keys)[["file", "own_setting"]].to_dict("index")
        lines = [found.get(tuple(line[k] for k in keys), {}) for line in table.to_dict("records")]
        blocks.append(table.assign(network=network, record=[line.get("file", "") for line in lines],
                                   own_setting=[line.get("own_setting", "") for line in lines]))
    return pd.concat(blocks, ignore_index=True)


def rows(table: pd.DataFrame) -> pd.DataFrame:
    """The table of one claim as the page shows it, one row a figure."""
    lines = [
        {
            **{key: line[key] for key in comparison.KEYS},
            "measured on": line["network"],
            "our setting": "" if line["own_setting"] == line["setting"] else line["own_setting"],
            "published": figure(line["reported"], line["reported_std"]),
            "measured": figure(line["mean"], line["std"]),
            "seeds": str(line["n"] or ""),
            "published difference": figure(line["reported_difference"], sign=True),
            "measured difference": figure(line["difference"], sign=True),
            "verdict": line["verdict"],
            "scale": line["scale"],
            "record": line["record"].removesuffix(".json"),
            "source": line["source"],
        }
        for line in table.to_dict("records")
    ]
    return pd.DataFrame(lines)


def overall(verdicts: list[str]) -> str:
    """One verdict for the comparisons of a claim."""
    counts = Counter(verdict.split(":")[0] for verdict in verdicts)
    same, opposite = counts[comparison.SAME], counts[comparison.OPPOSITE]
    noise = counts[comparison.NOISE] + counts["inconclusive"]
    if not same + opposite + noise:
        reasons = [verdict for verdict in verdicts if verdict.startswith("not run")]
        return reasons[0] if len(reasons) == len(verdicts) and reasons else "measured: nothing to compare with"
    told = f"{same} same, {opposite} opposite, {noise} inconclusive"
    if same and opposite:
        return f"mixed: {told}"
    clear = comparison.SAME if same else comparison.OPPOSITE
    verdict = comparison.NOISE if noise > same + opposite else clear  # the word goes to the majority
    return f"{verdict}: {told}" if same + opposite + noise > 1 else verdict


def span(values: pd.Series, sign: bool) -> str:
    """Smallest to largest of some numbers."""
    values = values.dropna()
    if values.empty:
        return ""
    low, high = figure(values.min(), sign=sign), figure(values.max(), sign=sign)
    return low if low == high else f"{low} to {high}"


def summary(row: pd.Series, table: pd.DataFrame) -> dict[str, str]:
    """The row of one claim in the overview."""
    has_baseline = table["reported_difference"].notna().any()
    primary = next((metric for metric in PRIMARY if metric in set(table["metric"])), table["metric"].iloc[0])
    shown = table[table["metric"] == primary]
    columns = ("reported_difference", "difference") if has_baseline else ("reported", "mean")
    verdicts = table["verdict"][table["reported_difference"].notna()] if has_baseline else table["verdict"]
    files = sorted(set(table["record"]) - {""})
    return {
        "claim": row["statement"],
        "paper": row["source"].split(",")[0],
        "metric": primary,
        "published": span(shown[columns[0]], sign=has_baseline),
        "source": row["source"],
        "measured": span(shown[columns[1]], sign=has_baseline),
        "verdict": overall(list(verdicts)),
        "record": f"{len(files)} records" if len(files) > 1 else "".join(files).removesuffix(".json"),
    }


def made_tables() -> dict[str, pd.DataFrame]:
    """All tables of the claims page by name: the overview and one for each claim."""
    overview, made = [], {}
    for claim, row in comparison.claims().iterrows():
        table = compared(claim, row)
        overview.append(summary(row, table))
        made[claim] = rows(table)
    return {"claims": pd.DataFrame(overview), **made}


def write_tables(folder: Path = TABLES) -> list[Path]:
    """Write the tables whose content has changed, and return these files."""
    folder.mkdir(parents=True, exist_ok=True)
    changed = []
    for name, table in made_tables().items():
        path, text = folder / f"{name}.csv", table.to_csv(index=False, lineterminator="\n")
        if not path.is_file() or path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8")
            changed.append(path)
    return changed
