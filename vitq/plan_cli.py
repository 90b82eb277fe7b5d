"""`vitq plan`: every full run that has a parameter file, what it costs, and whether the book has its result."""

from __future__ import annotations

import argparse
import csv
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .train.rows import Row

COSTS = ("GPU hours", "memory in GB", "disk in GB")
SAME = ("epochs", "seeds")  # where these differ, a kept estimate is of another run
SHOWN = ("file", "network", "method", "bits", "published top-1", "GPU hours", "disk in GB", "status", "reason")


def add(parser: argparse.ArgumentParser) -> None:
    """Give the parser of `vitq plan` its options."""
    parser.add_argument("--paper", metavar="NAME", help="of one paper only, such as nagel2022")
    parser.add_argument("--out", metavar="CSV", help="write the list there, with all columns")
    parser.add_argument("--params", metavar="DIR", help="parameter files (default: notebooks/params/full)")
    parser.add_argument("--estimate", action="store_true",
                        help="count the cost of runs that have no kept estimate (up to a minute each)")  # fmt: skip
    parser.add_argument("--all", action="store_true", help="published rows without a parameter file too, and why")
    parser.set_defaults(function=run)


def run(given: argparse.Namespace) -> int:
    """Do what `vitq plan` says."""
    from .files import write_text
    from .train.plan import as_csv

    lines = plan(given.params, given.paper, given.estimate, given.all)
    if given.out:
        write_text(given.out, as_csv(lines))
    _show(lines)
    hours, disk = (sum(float(entry[name]) for entry in lines if entry[name]) for name in (COSTS[0], COSTS[2]))
    files = [entry for entry in lines if entry["file"]]
    done = sum(entry["status"] == "done" for entry in files)
    print(f"{len(files)} runs, {done} done; estimated {hours:.0f} GPU hours on one A100 80 GB, {disk:.0f} GB of disk")
    if missing := sum(bool(entry["epochs"]) and not entry[COSTS[0]] for entry in files):
        print(f"{missing} without an estimate: vitq plan --estimate counts them")
    return 0


def plan(folder: str | Path | None = None, paper: str | None = None, estimate: bool = False,
         without_file: bool = False) -> list[dict[str, str]]:  # fmt: skip
    """One line a run: published value, estimated GPU hours, memory and disk of all seeds, status and its reason.

    Args:
        folder: parameter files, those of the checkout if None.
        paper: of this paper only.
        estimate: count what has no kept estimate; otherwise its costs are empty.
        without_file: list published accuracies that no file reruns, too.

    Raises:
        InputError: a file is no parameter file of a full run, or there is no run of this paper.
        MissingError: there are no parameter files.
    """
    from .errors import InputError, MissingError
    from .train import rows
    from .train.plan import cost_of, line, parameter_files

    folder = Path(folder) if folder else rows.folder()
    found = [rows.read(file) for file in parameter_files(folder)]
    if not found:
        raise MissingError(f"there is no parameter file in {folder}")
    others = _other_jobs(folder, dict.fromkeys(["paper", *line(found[0], None)], ""))
    papers = sorted({_paper(row) for row in found} | {entry["paper"] for entry in others})
    if paper is not None and paper not in papers:
        raise InputError(f"paper={paper!r}: there are parameter files of {', '.join(papers)}")
    found = [row for row in found if paper in (None, _paper(row))]
    kept, known, lines = _kept(), {}, []
    for row in found:
        entry = line(row, None)
        old = kept.get(row.name)
        if old is not None and all(old[name] == entry[name] for name in SAME):
            entry |= {name: old[name] for name in COSTS}
        elif estimate:
            entry = line(row, cost_of(row, known))
        lines.append({"paper": _paper(row)} | entry)
    lines += [entry for entry in others if paper in (None, entry["paper"])]
    return lines + (_without_file(found, folder, lines[0], paper) if without_file else [])


def _paper(row: Row) -> str:
    return row.main["table"].partition("_")[0]


def _kept() -> dict[str, dict[str, str]]:
    """Estimates that `python -m vitq.train.cost` has written, by parameter file."""
    from . import environment

    found = {}
    for file in (environment.home() / "book" / "results" / "tables").glob("*_full_runs.csv"):
        with open(file, encoding="utf-8", newline="") as text:
            found |= {entry["file"]: entry for entry in csv.DictReader(text)}
    return found


def _other_jobs(folder: Path, like: dict[str, str]) -> list[dict[str, str]]:
    """Jobs that are no training runs, such as those of ERQ: what they cost, their notebooks say."""
    import yaml

    from .train.plan import parameter_files

    lines = []
    for file in sorted(set(folder.glob("*.yml")) - set(parameter_files(folder))):
        given = yaml.safe_load(file.read_text(encoding="utf-8"))
        job = given.get("job", {})
        bits = f"W{job['weight_bits']}A{job['act_bits']}" if "weight_bits" in job else ""
        lines.append(dict.fromkeys(like, "") | {
            "paper": _long_name(file.stem.partition("_")[0]), "run": _run_name(file.stem),
            "table": "COCO" if "_coco_" in file.stem else "", "file": file.stem, "network": job.get("network", ""),
            "method": ", ".join(job.get("methods", [])), "bits": bits, "seeds": str(len(given.get("seeds", []))),
            "status": "not run",
            "reason": "no training run; its notebook says what it costs"})  # fmt: skip
    return lines


def _run_name(stem: str) -> str:
    """The file's name without paper and data set."""
    return stem.partition("_imagenet_")[2] or stem.partition("_coco_")[2] or stem


def _long_name(short: str) -> str:
    """Name of a paper with its year, such as erq2024 for erq."""
    folders = sorted((Path(__file__).parent / "papers").glob(f"{short}[0-9]*"))
    return folders[0].name if folders else short


def _without_file(found: list[Row], folder: Path, like: dict[str, str], paper: str | None) -> list[dict[str, str]]:
    """Published accuracies of the tables that have runs or reasons, which no run is made for."""
    from . import comparison

    with open(folder / "without_file.csv", encoding="utf-8", newline="") as text:
        reasons = list(csv.DictReader(text))
    made = {tuple(entry[key] for key in ("table", "model", "method", "setting", "bits"))
            for row in found for entry in row.published}  # fmt: skip
    lines = []
    for name in sorted({key[0] for key in made} | {entry["table"] for entry in reasons}):
        table = comparison.published(name)
        if paper not in (None, name.partition("_")[0]):
            continue
        for entry in table[table["metric"] == "top1"].to_dict("records"):
            if (name, *(entry[key] for key in ("model", "method", "setting", "bits"))) not in made:
                lines.append(dict.fromkeys(like, "") | {
                    "paper": name.partition("_")[0], "table": name.partition("_")[2].upper(),
                    "network": entry["model"], "source": entry["source"], "published top-1": f"{entry['value']:g}",
                    **{key: entry[key] for key in ("method", "setting", "bits")},
                    "status": "no run", "reason": _reason(name, entry, reasons)})  # fmt: skip
    return lines


def _reason(table: str, entry: dict[str, str], reasons: list[dict[str, str]]) -> str:
    for given in reasons:
        same = all(given[key] in ("*", entry[key]) for key in ("model", "method", "setting"))
        if given["table"] == table and same:
            return given["reason"]
    return "no parameter file"


def _show(lines: list[dict[str, str]]) -> None:
    shown = [{name: entry[name] for name in SHOWN} for entry in lines]
    for entry in shown:
        entry["GPU hours"] = entry["GPU hours"] or ("?" if entry["file"] else "")
    widths = {name: max(len(name), *(len(entry[name]) for entry in shown)) for name in SHOWN[:-1]}
    for entry in [dict(zip(SHOWN, SHOWN, strict=True)), *shown]:
        print("  ".join([*(entry[name].ljust(width) for name, width in widths.items()), entry["reason"]]).rstrip())
