"""`python -m vitq.train.stages ROW`: the runs behind a row, as files for `vitq.train` started by other means.

A notebook trains a row under torchrun on the machine that it runs on. Where something else starts the processes, such
as a cluster's own launcher on several nodes, this writes the same configurations into the same folders and prints the
folders, one a line, in the order in which they have to be trained:

    python -m vitq.train --config FOLDER/config.yml --out FOLDER

Afterwards `vitq collect`, or the row's notebook, makes the records.
"""

import argparse
import dataclasses
import os
import sys
from pathlib import Path

import yaml

from vitq import environment
from vitq.errors import InputError, MissingError
from vitq.files import write_text
from vitq.train import full, report, rows
from vitq.train.assembly import label_folder
from vitq.train.rows import Row


def write(row: Row, out: str | Path) -> list[Path]:
    """Write `config.yml` for each seed of each stage of a row that runs in `out`, the first stage first.

    Args:
        row: with the path of its data.
        out: folder of the last stage; those before lie beside it, as `vitq.train.full` has them.

    Returns:
        The folders of the runs that are not finished.

    Raises:
        MissingError: a file cannot be written.
    """
    found = []
    for stage, place in zip(row.stages(), report.folders(row, out), strict=True):
        for seed, config in full.runs(stage, place).items():
            folder = Path(place) / f"seed-{seed}"
            if not full.finished(dataclasses.replace(stage, seeds=(seed,)), place):
                write_text(folder / "config.yml", yaml.safe_dump(config.to_dict(), sort_keys=False))
                found.append(folder)
    return found


def main(arguments: list[str] | None = None) -> int:
    """Print the folders; exit status 0, 2 for wrong input, 3 for what is missing."""
    parser = argparse.ArgumentParser(prog="python -m vitq.train.stages", description=__doc__.partition("\n")[0])
    parser.add_argument("row", help="name of a parameter file in notebooks/params/full, or its path")
    parser.add_argument("--data-path", required=True, help="folder with train/CLASS/ and val/CLASS/")
    parser.add_argument("--labels-path", help="folder of soft labels, for a run that has such (default: VITQ_LABELS)")
    parser.add_argument("--out", help="folder of the row's runs (default: runs/full/ROW)")
    parser.add_argument("--limit-batches", type=int, default=0, help="try the path: so many batches, no result")
    given = parser.parse_args(arguments)
    try:
        config, labels = rows.read(given.row).config, given.labels_path
        if labels is None and config.soft_labels is not None:
            labels = os.environ.get("VITQ_LABELS")
        row = rows.resolve(given.row, {}, [], [], config.scale, str(Path(given.data_path).resolve()), "auto",
                           given.limit_batches,
                           labels_path=str(Path(labels).resolve()) if labels else "")
        full.check_data(row.config, whole=row.config.scale == "full")
        if row.config.soft_labels is not None:
            label_folder(row.config)
        out = Path(given.out) if given.out else environment.home() / "runs" / "full" / row.name
        for folder in write(row, out.resolve()):
            print(folder)
    except (InputError, MissingError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2 if isinstance(error, InputError) else 3
    return 0


if __name__ == "__main__":
    sys.exit(main())
