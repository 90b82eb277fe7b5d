"""How the benchmarks print their figures and write their tables."""

import csv
from pathlib import Path


def printed(title: str, rows: list[dict], widths: tuple[int, int, int]) -> int:
    """Print `figure`, `measured`, `bound` and `note` of each row under a title; 1 if a bar is missed, as exit status.

    Args:
        title: First line.
        rows: `good` says whether the bar is met; a `bound` of None is no bar.
        widths: Of the first three columns.
    """
    print(title)
    name, number, verdict = widths
    for row in rows:
        bound = row["bound"]
        bar = "" if bound is None else f"{'within' if row['good'] else 'MISSES'} {bound:,}"
        value = f"{row['measured']:,.0f}" if row["measured"] >= 100 else f"{row['measured']:.3g}"
        print(f"{row['figure']:<{name}} {value:>{number}}  {bar:<{verdict}} {row['note']}")
    return int(not all(row["good"] for row in rows))


def write_table(file: str | Path, rows: list[dict]) -> None:
    """Write rows of the same keys as CSV."""
    with open(file, "w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
