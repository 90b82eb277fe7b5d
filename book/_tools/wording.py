"""How times, sizes, verdicts, headings and published figures are worded on a page."""

from __future__ import annotations

from docutils import nodes

# verdict (start of the text) -> class of the badge, sign in front: the sign keeps them apart without colour
VERDICTS = {
    "same": ("agree", "✓"),
    "measured": ("base", "•"),
    "opposite": ("oppose", "✗"),
    "inconclusive": ("open", "≈"),
    "mixed": ("open", "±"),
    "baseline": ("base", "="),
    "not run": ("notrun", "○"),
}
# how columns and metrics are headed; what is not listed keeps its name
HEADINGS = {
    "kl_max": "largest KL",
    "kl_mean": "mean KL",
    "top1": "top-1 (%)",
    "top1_pre_bn": "top-1 before re-estimation (%)",
    "train_loss": "training loss",
    "oscillating_percent": "oscillating (%)",
    "top1_gain": "gain in top-1 (points)",
    "steps_until_constant": "steps until the scale is constant",
}
LETTERS = "ᵃᵇᶜᵈᵉᶠᵍʰ"


def duration(seconds: float) -> str:
    """A time as a person says it."""
    if seconds < 1:
        return "under 1 s"
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def memory(megabytes: float) -> str:
    """An amount of memory as a person says it."""
    return f"{megabytes:.0f} MB" if megabytes < 1000 else f"{megabytes / 1000:.1f} GB"


def hardware(facts: dict | str) -> str:
    """The machine of a run in a few words."""
    if isinstance(facts, str):
        return facts
    return ", ".join([f"{facts['cores']} CPU cores", *(facts.get("gpus") or ["no GPU"])])


def heading(column: str) -> str:
    """How a column is headed."""
    return HEADINGS.get(column, column.replace("_", " "))


def is_number(text: str) -> bool:
    """Whether a cell starts with a number: `70.1`, `70.1 (0.4)`, `12 %`."""
    try:
        float(text.split()[0].rstrip("%").replace("−", "-"))
    except (ValueError, IndexError):
        return False
    return True


def widen(rows: list[dict[str, str]], index: list[str], pivot: str) -> tuple[list[dict[str, str]], list[str]]:
    """Rows that agree in `index` become one row, with one column for each value of `pivot`; and the notes they had.

    A note that not all rows share is marked by a letter behind the number that it belongs to.
    """
    names = list(dict.fromkeys(row[pivot] for row in rows))
    notes = list(dict.fromkeys(row["note"] for row in rows if row.get("note")))
    marked = len(notes) > 1 or not all(row.get("note") for row in rows)
    wide: dict[tuple[str, ...], dict[str, str]] = {}
    for row in rows:
        line = wide.setdefault(tuple(row[c] for c in index), {c: row[c] for c in index} | dict.fromkeys(names, ""))
        mark = f" {LETTERS[notes.index(row['note'])]}" if marked and row.get("note") else ""
        line[row[pivot]] = row["value"] + (f" ({row['std']})" if row.get("std") else "") + mark
    last = [c for c in index if c == "source"]
    lines = [{c: line[c] for c in line if c not in last} | {c: line[c] for c in last} for line in wide.values()]
    return lines, [f"{LETTERS[i]} {note}" if marked else note for i, note in enumerate(notes)]


def badge(verdict: str) -> nodes.inline:
    """The inline node of a verdict; an unknown verdict gets the neutral look."""
    kind, sign = next((look for start, look in VERDICTS.items() if verdict.lower().startswith(start)), ("open", "·"))
    return nodes.inline("", f"{sign} {verdict}", classes=["vq-badge", f"vq-{kind}"])
