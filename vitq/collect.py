"""`vitq collect`: records of finished full runs, as the notebooks write them, from the folders of the runs alone.

A run leaves `ROW/seed-N/result.json`, wherever it was trained: by a notebook that was interrupted before it wrote its
record, by a job array, on several nodes, on another machine. Each folder is matched with the parameter file whose
configuration it has; the folder's name is only a hint. What is not finished, was a try, or was run with other settings
gets no record, and one line that says so. Collecting twice changes nothing.

A result does not hold the library versions and the code that it was made with: those of its record are the ones at
hand when it is collected. Its hardware is what the result tells, device and number of ranks.
"""

import argparse
import dataclasses
import datetime
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import InputError, MissingError

if TYPE_CHECKING:
    from .records import Record
    from .train.rows import Row
    from .train.run_config import RunConfig

# What may differ from the parameter file: how a run is computed and watched, not what is computed.
FREE = {"seed", "continue_from", "data.path", "soft_labels.path", "train.device", "train.log_every",
        "train.checkpoint_every", "train.accumulation", "train.compile", "train.channels_last"}
NEEDED = {"metrics", "test_images", "data_version", "fingerprint", "seconds", "peak_memory_mb", "device", "ranks"}
RECORDED, KEPT, REFUSED = "recorded", "already recorded", "not recorded"


@dataclass(frozen=True)
class Collected:
    """What became of one run folder: `state` is RECORDED, KEPT or REFUSED, `reason` says why it was refused."""

    folder: Path
    row: str
    state: str
    reason: str = ""
    files: tuple[Path, ...] = ()
    broken: bool = False

    def __str__(self) -> str:
        name = f"{self.folder}{f' ({self.row})' if self.row and self.row != self.folder.name else ''}"
        return f"{name}: {self.state}{f': {self.reason}' if self.reason else ''}"


@dataclass(frozen=True)
class Seed:
    """One seed of a run: its result, or why there is none."""

    number: int
    result: dict[str, Any] | None
    reason: str = ""
    broken: bool = False


def collect(folders: Iterable[str | Path], params: str | Path | None = None, records: str | Path | None = None,
            replace: bool = False) -> list[Collected]:
    """Write the records of all finished runs in and below some folders.

    Args:
        folders: run folders, or folders that hold them, such as runs/full.
        params: folder of the parameter files; None for notebooks/params/full.
        records: folder of the records; None for the book's.
        replace: write over a record of another run of the same row.

    Returns:
        One entry a run folder.

    Raises:
        MissingError: a folder does not exist, or there is no run in any.
        InputError: a parameter file is wrong.
    """
    from .records import records_folder
    from .train import rows
    from .train.plan import parameter_files

    found: dict[Path, list[Path]] = {}
    for folder in map(Path, folders):
        if not folder.is_dir():
            raise MissingError(f"there is no folder {folder}")
        for place in _seed_folders(folder):
            found.setdefault(place.parent if place.name.startswith("seed-") else place, []).append(place)
    if not found:
        raise MissingError(f"there is no run in {', '.join(map(str, folders))}: no seed-N folder with a config.yml, "
                           "checkpoints or a result.json")
    place = Path(params) if params is not None else rows.folder()
    known = [rows.read(file) for file in parameter_files(place)]
    if not known:
        raise MissingError(f"there is no parameter file in {place}")
    target = Path(records) if records is not None else records_folder()
    return [_one(folder, sorted(set(places)), known, target, replace) for folder, places in sorted(found.items())]


def _seed_folders(folder: Path) -> list[Path]:
    marks = (mark for name in ("result.json", "config.yml", "checkpoints") for mark in folder.rglob(name))
    return sorted({mark.parent for mark in marks})


def _one(folder: Path, places: list[Path], known: Sequence["Row"], target: Path, replace: bool) -> Collected:
    seeds = [_seed(place) for place in places]
    done = sorted((seed for seed in seeds if seed.result is not None), key=lambda seed: seed.number)
    rest = [f"seed {seed.number}: {seed.reason}" for seed in seeds if seed.result is None]
    broken = any(seed.broken for seed in seeds)
    if not done:
        return Collected(folder, "", REFUSED, "; ".join(rest), broken=broken)
    row, reason = _row(folder, [seed.result["config"] for seed in done], known)
    if row is None:
        return Collected(folder, "", REFUSED, reason, broken=broken)
    numbers = tuple(seed.number for seed in done)
    rest += [f"seed {seed}: never started" for seed in row.seeds if seed not in {seed.number for seed in seeds}]
    if not set(row.seeds) <= set(numbers):
        return Collected(folder, row.name, REFUSED, "; ".join(rest), broken=broken)
    row = dataclasses.replace(row, seeds=numbers, config=_config(row, done[0].result["config"]))
    made = _records(row, done, [place / "result.json" for place in places])
    state, reason, files = _write(made, target, replace)
    return Collected(folder, row.name, state, "; ".join([reason, *rest] if reason else rest), files, broken)


def _seed(place: Path) -> Seed:
    """A seed folder's result, with its configuration checked, or why there is none."""
    from .files import read_json
    from .train.fields import config_hash
    from .train.run_config import RunConfig

    number = place.name.removeprefix("seed-")
    number = int(number) if number.isdigit() else 0
    if not (place / "result.json").is_file():
        return Seed(number, None, _unfinished(place))
    try:
        result = read_json(place / "result.json")
        config = RunConfig.from_dict(result["config"])
        if missing := sorted(NEEDED - set(result)):
            raise InputError(f"it lacks {', '.join(missing)}")
        if result["config_hash"] != config_hash(result["config"]):
            raise InputError("its configuration was changed")
    except (InputError, KeyError, TypeError) as error:
        return Seed(number, None, f"result.json is no result of a run ({' '.join(str(error).split())})", broken=True)
    return Seed(config.seed, result)


def _unfinished(place: Path) -> str:
    """How far a run without a result has come."""
    from .files import read_json
    from .train.checkpoints import META, list_checkpoints
    from .train.lock import _alive, _parse
    from .train.run_config import RunConfig

    epochs = ""
    try:
        total = _epochs(RunConfig.from_yaml(place / "config.yml"))
        meta = read_json(list_checkpoints(place / "checkpoints")[-1] / META)
        epochs = f"at step {meta['step']:,}, in epoch {meta['epoch'] + 1} of {total}"
    except (InputError, MissingError, IndexError, KeyError, TypeError):
        pass
    lock = place / ".lock"
    owner = _parse(lock.read_text()) if lock.is_file() else None
    if owner is not None and _alive(owner, lock):
        return f"running on {owner['host']} (process {owner['pid']}), last checkpoint {epochs or 'not written yet'}"
    return f"stopped {epochs}; the same command goes on" if epochs else "no checkpoint yet, and no process at work"


def _epochs(config: "RunConfig") -> int:
    """Epochs as training counts them: with soft labels a pass over ImageNet with several crops of each image is one."""
    if config.soft_labels is None:
        return config.train.total_steps(1)
    from .papers.vvtq2023.mckd import epoch_plan
    from .train.full import IMAGENET

    plan = epoch_plan(IMAGENET["train"], config.train.batch_size, config.train.epochs, config.soft_labels.crops,
                      config.train.warmup_epochs)
    return math.ceil(sum(part.steps for part in plan) / max(part.steps for part in plan))


def _row(folder: Path, configs: list[dict[str, Any]], known: Sequence["Row"]) -> tuple["Row | None", str]:
    """The parameter file that has this configuration, or why none has."""
    config = configs[0]
    if any(_differences(config, other) for other in configs):
        return None, "its seeds were run with different settings"
    if config["limit_batches"] is not None:
        return None, f"a try of {config['limit_batches']} batches, no result"
    if config["scale"] != "full":
        return None, f"scale {config['scale']}, not a full run"
    fits = {row.name: row for row in known if not _differences(config, row.config.to_dict())}
    if len(fits) == 1:
        return next(iter(fits.values())), ""
    if folder.name in fits:
        return fits[folder.name], ""
    if fits:
        return None, f"several parameter files have its configuration: {', '.join(fits)}; name the folder after one"
    by_name = [row for row in known if folder.name in (row.name, _default_name(row))]
    if not by_name:
        return None, "no parameter file has its configuration"
    name = _differences(config, by_name[0].config.to_dict())[0]
    return None, f"{name} differs from {by_name[0].name}.yml"


def _default_name(row: "Row") -> str:
    """How the notebook calls the folder of a run that was given as a parameter file."""
    from .train import rows

    return rows.make(row.config.to_dict(), list(row.published), list(row.seeds), unpublished=row.unpublished).name


def _differences(one: Any, other: Any, where: str = "") -> list[str]:
    """Dotted names of what two configurations have not in common, but for FREE."""
    if where in FREE or one == other:
        return []
    if isinstance(one, dict) and isinstance(other, dict):
        names = [*one, *(name for name in other if name not in one)]
        return [found for name in names
                for found in _differences(one.get(name), other.get(name), f"{where}.{name}".lstrip("."))]
    return [where]


def _config(row: "Row", given: dict[str, Any]) -> Any:
    """The configuration that a notebook would have recorded."""
    from .train.run_config import RunConfig

    return RunConfig.from_dict(given | {"continue_from": None, "seed": row.config.seed})


def _records(row: "Row", done: list[Seed], files: list[Path]) -> list["Record"]:
    from .train.rows import make_records

    made = make_records(row, [seed.result for seed in done], "full")
    made = made[: len(row.published)] if row.unpublished else made  # of two stages the last one tells of the start
    newest = max(file.stat().st_mtime for file in files if file.is_file())
    for record in made:
        record.hardware = {name: done[0].result[name] for name in ("device", "ranks")}
        record.date = datetime.datetime.fromtimestamp(newest, datetime.UTC).date().isoformat()
    return made


def _write(made: list["Record"], target: Path, replace: bool) -> tuple[str, str, tuple[Path, ...]]:
    """Write what is not there; a record of another run stays unless `replace`."""
    from .records import Record
    from .train.rows import write_records

    fresh, other = [], []
    for record in made:
        file = target / record.filename
        old = Record.read(file) if file.is_file() else None
        if old is None or old.status != "done":
            fresh.append(record)
        elif not _same(old, record) and record.method != "FP32":
            other.append(file.name)
    if other and not replace:
        return REFUSED, f"there is a record of another run, {other[0]}; --replace writes over it", ()
    fresh += [record for record in made if record.filename in other]
    if not fresh:
        return KEPT, "", tuple(target / record.filename for record in made)
    return RECORDED, "", tuple(write_records(fresh, str(target)))


def _same(old: "Record", new: "Record") -> bool:
    names = ("seeds", "metrics", "images", "data_version", "checkpoint", "config")
    return all(getattr(old, name) == getattr(new, name) for name in names)


def add(parser: argparse.ArgumentParser) -> None:
    """Give the parser of `vitq collect` its options."""
    parser.add_argument("folders", nargs="+", metavar="FOLDER", help="run folders, or what holds them (runs/full)")
    parser.add_argument("--params", metavar="DIR", help="parameter files (default: notebooks/params/full)")
    parser.add_argument("--records", metavar="DIR", help="folder of records (default: the book's)")
    parser.add_argument("--replace", action="store_true", help="write over records of other runs of the same rows")
    parser.set_defaults(function=run)


def run(given: argparse.Namespace) -> int:
    """Do what `vitq collect` says."""
    found = collect(given.folders, given.params, given.records, given.replace)
    for entry in found:
        print(entry)
    counts = (f"{sum(entry.state == state for entry in found)} {state}" for state in (RECORDED, KEPT, REFUSED))
    print(", ".join(counts))
    return 2 if any(entry.broken for entry in found) else 0
