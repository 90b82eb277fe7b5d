"""Rows of published tables as runs: a parameter file holds the configuration, the rows that it reruns and its seeds."""

import dataclasses
import hashlib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vitq import comparison, environment, provenance
from vitq.errors import InputError
from vitq.records import Record, records_folder
from vitq.train.run_config import RunConfig

if TYPE_CHECKING:
    import pandas

KEYS = ("table", "model", "method", "setting", "bits")
SHARED = {"config": ("model", "quant"), "train": ("optimizer", "decay", "scale_learning_rate")}  # of two stages


@dataclass(frozen=True)
class Row:
    """What one parameter file of `notebooks/params/full/` says.

    Args:
        name: of the file, without its ending.
        config: the run.
        published: the rows that it reruns, each a mapping with the keys of `KEYS`, `table` being the name of a file
            in book/results/published/. The first is the one that it is made for.
        seeds: one run each.
        before: the row whose finished run this one continues, with the same seeds.
        unpublished: the rows have no published figure, as the first of two stages, say.

    Raises:
        InputError: a published row that does not exist, no row or seed, or a `before` that cannot be continued so.
    """

    name: str
    config: RunConfig
    published: tuple[dict[str, str], ...]
    seeds: tuple[int, ...] = (0,)
    before: "Row | None" = None
    unpublished: bool = False

    def __post_init__(self) -> None:
        if not self.published or not self.seeds:
            raise InputError(f"{self.name}: give at least one published row and one seed")
        for entry in self.published:
            if not isinstance(entry, dict) or set(entry) != set(KEYS):
                raise InputError(f"{self.name}: published: {entry!r}; give a mapping with {', '.join(KEYS)}")
            if figures(entry).empty != self.unpublished:
                how = "has a row" if self.unpublished else "has no row"
                raise InputError(f"{self.name}: published: the table {entry['table']} {how} {entry}")
        if any(isinstance(seed, bool) or not isinstance(seed, int) or seed < 0 for seed in self.seeds):
            raise InputError(f"{self.name}: seeds={list(self.seeds)}: give whole numbers of at least 0")
        if self.before is not None:
            self._check_before()

    def _check_before(self) -> None:
        for section, names in SHARED.items():
            for name in names:
                mine, its = (getattr(row.config if section == "config" else row.config.train, name)
                             for row in (self, self.before))
                if mine != its:
                    raise InputError(f"{self.name}: continues: {name}={mine!r}, but {self.before.name} has {its!r}: a "
                                     "run continues one of the same network, quantization and optimizer")

    @property
    def main(self) -> dict[str, str]:
        """The published row that the run is made for."""
        return self.published[0]

    def runs(self) -> dict[int, RunConfig]:
        """The configuration of each seed."""
        return {seed: dataclasses.replace(self.config, seed=seed) for seed in self.seeds}

    def changed(self, train: dict[str, Any] | None = None, data: dict[str, Any] | None = None, **fields: Any) -> "Row":
        """The same row with some fields of its configuration changed."""
        config, before = self.config, self.before and self.before.changed(train, data, **fields)
        fields["train"] = dataclasses.replace(config.train, **(train or {}))
        fields["data"] = dataclasses.replace(config.data, **(data or {}))
        return dataclasses.replace(self, config=dataclasses.replace(config, **fields), before=before)

    def stages(self) -> list["Row"]:
        """The runs that this row takes, in their order, itself last, all with its seeds."""
        earlier = [] if self.before is None else self.before.stages()
        return [*(dataclasses.replace(row, seeds=self.seeds) for row in earlier), self]


def folder() -> Path:
    """Where the parameter files of the full runs lie."""
    return environment.home() / "notebooks" / "params" / "full"


def make(config: dict[str, Any], published: list[dict[str, str]], seeds: list[int], name: str = "",
         continues: str = "", unpublished: bool = False) -> Row:
    """A row from what a parameter file holds; without a name it is called after the published row.

    `continues` names the parameter file of the run that this one goes on from.
    """
    if not name and published and isinstance(published[0], dict):
        parts = (str(published[0].get(key, "")) for key in KEYS)
        name = "-".join(re.sub(r"[^a-z0-9.]+", "_", part.lower()).strip("_") for part in parts if part)
    before = read(continues) if continues else None
    return Row(name, RunConfig.from_dict(config), tuple(published), tuple(seeds), before, unpublished)


def read(name: str | Path) -> Row:
    """A row from its parameter file, named by its path (also from the checkout) or, if it lies in `folder()`, its stem.

    Raises:
        InputError: there is no such file (the message lists those that exist), or it is wrong.
    """
    import yaml

    file = Path(name) if Path(name).suffix == ".yml" else folder() / f"{name}.yml"
    if not file.is_file() and not file.is_absolute():
        file = environment.home() / file
    if not file.is_file():
        known = ", ".join(path.stem for path in sorted(folder().glob("*.yml"))) or "none"
        raise InputError(f"row={str(name)!r}: there is no such parameter file; there are {known}")
    try:
        text = file.read_text(encoding="utf-8")
        content = yaml.safe_load(text)
        row = make(content["config"], content["published"], content["seeds"], file.stem,
                   content.get("continues", ""), content.get("unpublished", False))
    except (yaml.YAMLError, TypeError, KeyError) as error:
        raise InputError(f"{file} is no parameter file of a full run: {' '.join(str(error).split())}") from None
    except InputError as error:
        raise InputError(f"{file}: {error}") from None
    provenance.note_data(file.stem, hashlib.sha256(text.encode()).hexdigest()[:16])
    return row


def resolve(row: str, config: dict[str, Any], published: list[dict[str, str]], seeds: list[int], scale: str,
            data_path: str, device: str, limit_batches: int, continues: str = "", unpublished: bool = False,
            labels_path: str = "") -> Row:
    """The run that a notebook's parameters ask for.

    Args:
        row: name of a parameter file, used where `config` is empty.
        config: fields of `RunConfig`.
        published: the rows that `config` reruns.
        seeds: one run each; empty for those of the file, or 0.
        scale: "smoke" marks the run as no result; a run that is cut short is none either.
        data_path: folder of the images.
        device: "auto" leaves the configuration's.
        limit_batches: 0 for no limit.
        continues: name of the parameter file of the run that `config` goes on from.
        unpublished: `published` has no figures.
        labels_path: folder of the soft labels, for a run that trains on such.
    """
    found = make(config, published, seeds or [0], "", continues, unpublished) if config else read(row)
    if limit_batches < 0:
        raise InputError(f"parameter limit_batches={limit_batches}: give 0 for no limit, or a positive number")
    if seeds:
        found = dataclasses.replace(found, seeds=tuple(seeds))
    if limit_batches:
        found = _renamed(found, f"-limit{limit_batches}")
    if labels_path and found.config.soft_labels is None:
        raise InputError(f"parameter labels_path={labels_path!r}: {found.name} does not train on soft labels; leave it "
                         "out")
    if labels_path:
        found = found.changed(soft_labels=dataclasses.replace(found.config.soft_labels, path=labels_path))
    return found.changed(
        scale="smoke" if limit_batches or scale == "smoke" else "full", limit_batches=limit_batches or None,
        train={} if device == "auto" else {"device": device}, data={"path": data_path or found.config.data.path})


def _renamed(row: Row, ending: str) -> Row:
    return dataclasses.replace(row, name=row.name + ending, before=row.before and _renamed(row.before, ending))


def figures(entry: dict[str, str]) -> "pandas.DataFrame":
    """The published figures of one row, one line a metric."""
    table = comparison.published(entry["table"])
    for key in KEYS[1:]:
        table = table[table[key] == entry[key]]
    return table


def published_top1(row: Row) -> dict[str, Any] | None:
    """Published accuracy of a row, as a record's `paper`; None if it has none."""
    return _paper(row.main)


def full_precision(row: Row) -> dict[str, Any] | None:
    """The published full-precision accuracy of a row's network, from any table of its paper; None if there is none."""
    paper = row.main["table"].rpartition("_")[0]
    for file in sorted(comparison.published_folder().glob(f"{paper}_*.csv")):
        table = comparison.published(file.stem)
        table = table[(table["model"] == row.main["model"]) & (table["method"] == "FP32") & (table["metric"] == "top1")]
        for line in table.to_dict("records"):
            return {"value": line["value"], "source": line["source"], "table": file.stem}
    return None


def make_records(row: Row, results: list[dict[str, Any]], scale: str, reason: str = "") -> list[Record]:
    """The records of a row: one for each published row that it reruns, and one for the network in full precision.

    Args:
        row: what was asked for.
        results: of `vitq.train.run`, one a seed; none if it was not run.
        scale: "smoke" or "full".
        reason: why it was not run.
    """
    config = row.config.to_dict()
    config["data"] |= {"path": None}
    if config["soft_labels"] is not None:
        config["soft_labels"] |= {"path": None}
    has_variants = any(entry["name"] == "freezing" for entry in row.config.remedies)
    shared = {"data": row.config.data.name, "scale": scale, "config": config, "checkpoint": row.config.model,
              "variant": row.config.variant if has_variants else ""}
    if not results:
        shared |= {"status": "not run", "reason": reason}
        return [Record(**_names(entry), **shared, paper=_paper(entry)) for entry in row.published]
    metrics = {name: [result["metrics"][name] for result in results] for name in results[0]["metrics"]}
    if "oscillating" in metrics:
        metrics["oscillating_percent"] = [100 * share for share in metrics.pop("oscillating")]
    first = results[0]
    shared |= {
        "seeds": list(row.seeds), "images": first["test_images"], "data_version": first["data_version"],
        "checkpoint": f"{row.config.model} {first['fingerprint']}",
        "seconds": round(sum(result["seconds"] for result in results), 1),
        "peak_memory_mb": max(result["peak_memory_mb"] for result in results),
    }
    made = [Record(**_names(entry), **shared, metrics=metrics, paper=_paper(entry)) for entry in row.published]
    return made + _parity(row, shared, metrics)


def write_records(made: list[Record], record: str = "", keep_done: bool = True) -> list[Path]:
    """Write records, the first to `record` if given and the others beside it; by default where the book keeps them.

    A record of a run that was done is not replaced by one that says "not run".
    """
    target = Path(record) if record else records_folder()
    places = [target.parent if target.suffix == ".json" else target] * len(made)
    places = [place / item.filename for place, item in zip(places, made, strict=True)]
    if target.suffix == ".json":
        places[0] = target
    for place, item in zip(places, made, strict=True):
        if not (keep_done and item.status != "done" and place.is_file() and Record.read(place).status == "done"):
            item.write(place)
    return places


def status(row: Row) -> str:
    """Whether the book has a result of this row, and why not."""
    (record,) = make_records(dataclasses.replace(row, published=(row.main,)), [], "full", "no GPU")
    file = records_folder() / record.filename
    found = Record.read(file) if file.is_file() else record
    return {"done": "done", "failed": f"failed: {found.reason}"}.get(found.status, f"not run: {record.reason}")


def _names(entry: dict[str, str]) -> dict[str, str]:
    return {"claim": entry["table"], **{key: entry[key] for key in KEYS[1:]}}


def _paper(entry: dict[str, str]) -> dict[str, Any] | None:
    found = figures(entry)
    found = found[(found["metric"] == "top1") & found["value"].notna()]
    return None if found.empty else {"value": float(found["value"].iloc[0]), "source": found["source"].iloc[0]}


def _parity(row: Row, shared: dict[str, Any], metrics: dict[str, list[float]]) -> list[Record]:
    """How our full-precision network does beside the published one, whose checkpoint is another file."""
    paper = full_precision(row)
    if paper is None or "top1_float" not in metrics:
        return []
    config = {"model": row.config.model, "data": shared["config"]["data"]}
    return [Record(claim=paper.pop("table"), model=row.main["model"], method="FP32", bits="FP32", paper=paper,
                   **shared | {"config": config, "variant": "", "seeds": []},
                   metrics={"top1": metrics["top1_float"][0]})]
