"""The list of full runs: what each parameter file reruns, what was published, what it costs, whether it was run."""

import argparse
import csv
import io
import math
import re
import sys
from pathlib import Path

from vitq.errors import InputError, MissingError
from vitq.files import write_text
from vitq.train import rows
from vitq.train.cost import Cost, Speed, count, estimate
from vitq.train.roofline import A100
from vitq.train.rows import Row
from vitq.train.run_config import RunConfig

START, END = "<!-- table {paper}: start -->", "<!-- table {paper}: end -->"
COMMAND = "vitq run notebooks/{paper}/imagenet.ipynb -f notebooks/params/full/{file}.yml -p data_path IMAGENET"
MORE = {"vvtq2023": " -p labels_path LABELS"}  # what a paper's runs need besides
LIST = "_full_runs"


def main(arguments: list[str] | None = None) -> int:
    """`python -m vitq.train.cost FOLDER --out CSV`: exit status 0, 2 for wrong input, 3 for what is missing."""
    parser = argparse.ArgumentParser(prog="python -m vitq.train.cost", description=__doc__)
    parser.add_argument("folder", help="parameter files of full runs")
    parser.add_argument("--out", required=True, help=f"CSV file to write, PAPER{LIST}.csv for the runs of a paper")
    parser.add_argument("--readme", help="Markdown file whose table, between two markers, is written too")
    given = parser.parse_args(arguments)
    paper = Path(given.out).stem.removesuffix(LIST)
    try:
        found = [rows.read(file) for file in parameter_files(given.folder)]
        found = [row for row in found if _paper(row) == paper]
        if not found:
            raise MissingError(f"folder={given.folder!r}: there is no parameter file of {paper}")
        known: dict[tuple, Speed] = {}
        lines = [line(row, cost_of(row, known)) for row in found]
        write_text(given.out, as_csv(lines))
        if given.readme:
            write_text(given.readme, with_table(Path(given.readme).read_text(encoding="utf-8"), lines, paper))
    except (InputError, MissingError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2 if isinstance(error, InputError) else 3
    total = sum(float(entry["GPU hours"]) for entry in lines)
    print(f"{len(lines)} runs, {total:.0f} GPU hours on one {A100.name}")
    return 0


def parameter_files(folder: Path | str) -> list[Path]:
    """The files of training runs in a folder; other full jobs have no `config` of a run."""
    files = sorted(Path(folder).glob("*.yml"))
    return [file for file in files if re.search(r"^config:", file.read_text(encoding="utf-8"), re.MULTILINE)]


def line(row: Row, cost: Cost | None) -> dict[str, str]:
    """One row of the list; without a cost its three columns are empty."""
    status, _, reason = rows.status(row).partition(": ")
    main = row.main
    paper = rows.published_top1(row) or {"value": math.nan, "source": ""}
    return {
        "run": row.name.partition("_imagenet_")[2] or row.name, "file": row.name,
        "table": main["table"].rpartition("_")[2].upper(), "network": main["model"],
        "method": main["method"], "setting": main["setting"], "bits": main["bits"],
        "published top-1": "" if math.isnan(paper["value"]) else f"{paper['value']:g}", "source": paper["source"],
        "epochs": str(row.config.train.total_steps(1)),
        "seeds": str(len(row.seeds)), "GPU hours": f"{cost.device_hours:.0f}" if cost else "",
        "memory in GB": f"{cost.memory_gb:.0f}" if cost else "", "disk in GB": f"{cost.disk_gb:.1f}" if cost else "",
        "status": status, "reason": reason,
    }


def cost_of(row: Row, known: dict[tuple, Speed]) -> Cost:
    """Estimated cost of all seeds of a row on one A100."""
    return estimate(row.config, speed_of(row.config, known), seeds=len(row.seeds))


def speed_of(config: RunConfig, known: dict[tuple, Speed]) -> Speed:
    """Counted speed, kept in `known`: configurations that differ only in bits, rates and strengths share it."""
    quant = config.quant or {}
    kinds = {name: value for name, value in quant.items() if name not in ("weight_bits", "act_bits")}
    key = (config.model, config.train.batch_size, config.quant is None, quant.get("act_bits") is None,
           str(sorted(kinds.items())), str(config.teacher), *sorted(entry["name"] for entry in config.remedies))
    if key not in known:
        known[key] = count(config)
    return known[key]


def as_csv(lines: list[dict[str, str]]) -> str:
    """The list as CSV."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(lines[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return text.getvalue()


def with_table(markdown: str, lines: list[dict[str, str]], paper: str) -> str:
    """The text with the list of a paper's runs, a command each, between its two markers.

    Raises:
        InputError: the markers are not there.
    """
    start, end = START.format(paper=paper), END.format(paper=paper)
    if start not in markdown or end not in markdown:
        raise InputError(f"the Markdown file needs the lines {start} and {end}")
    columns = ("file", "row", "published top-1, %", "seeds", "GPU hours", "status", "command")
    table = [columns, ("---",) * len(columns), *(_cells(entry, paper) for entry in lines)]
    before, after = markdown.split(start)[0], markdown.split(end)[1]
    return "\n".join([f"{before}{start}", *(f"| {' | '.join(cells)} |" for cells in table), f"{end}{after}"])


def _paper(row: Row) -> str:
    return row.main["table"].partition("_")[0]


def _cells(entry: dict[str, str], paper: str) -> tuple[str, ...]:
    row = f"{entry['table']}: {entry['network']} {entry['bits']}, {entry['method']}"
    row += f", {entry['setting']}" if entry["setting"] else ""
    shown = (entry[name] for name in ("published top-1", "seeds", "GPU hours", "status"))
    command = COMMAND.format(paper=paper, file=entry["file"]) + MORE.get(paper, "")
    return (f"`{entry['file']}.yml`", row, *shown, f"`{command}`")
