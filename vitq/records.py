"""One JSON file a result. Pages, tables and verdicts are made from these records and from nothing else.

A record says what was measured (claim, model, method, bits, data), what came out (each metric with its mean, standard
deviation and the value of every seed) and what it came from (checkpoint, source hash, versions, hardware, time). A
row that was not run is a record too: its status says so and its reason stays visible.
"""

from __future__ import annotations

import datetime
import math
import re
import statistics
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import environment, provenance
from .comparison import compare, published, verdict
from .errors import InputError
from .files import read_json, write_json
from .parameters import SCALES

if TYPE_CHECKING:
    import pandas

__all__ = ["Record", "bits_name", "compare", "load_records", "published", "records_folder", "summarize", "verdict"]

SCHEMA = 1
STATUSES = ("done", "not run", "failed")


def bits_name(weight_bits: int | None, activation_bits: int | None = None) -> str:
    """Bit widths as records name them: "W4A4", "W3" (weights only), "A8" (activations only) or "FP32"."""
    widths = (("W", weight_bits), ("A", activation_bits))
    return "".join(f"{letter}{bits}" for letter, bits in widths if bits is not None) or "FP32"


def summarize(values: Iterable[float]) -> dict[str, Any]:
    """One metric over its seeds as `{"mean", "std", "values"}`; std is the sample deviation, None for one seed."""
    values = [float(value) for value in values]
    if not values:
        raise InputError("a metric needs at least one value")
    if not all(map(math.isfinite, values)):
        raise InputError(f"a metric needs finite numbers, not {values}")
    return {
        "mean": statistics.fmean(values),
        "std": statistics.stdev(values) if len(values) > 1 else None,
        "values": values,
    }


@dataclass
class Record:
    """One result, over all its seeds.

    `metrics` maps a name (published tables use the same, such as `top1`) to `{"mean", "std", "values"}`, one
    value a seed in the order of `seeds`; plain numbers or lists of numbers are summarized. `paper` is `{"value",
    "source"}` of the published figure this reruns. `counterpart` is the setting of the published row that a run stands
    for where our own `setting` has to differ (a strength that suits a smaller network, say). What is left empty in
    the second half is filled in by `write`.

    Raises:
        InputError: a field has the wrong type, a number is not finite, or a scale, status or bit width is unknown.
    """

    claim: str
    model: str
    method: str
    bits: str
    data: str
    metrics: dict[str, Any] = field(default_factory=dict)
    seeds: list[int] = field(default_factory=list)
    scale: str = "small"
    variant: str = ""
    setting: str = ""
    counterpart: str = ""
    images: int | None = None
    data_version: str = ""
    checkpoint: str = ""
    paper: dict[str, Any] | None = None
    status: str = "done"
    reason: str = ""
    config: dict[str, Any] = field(default_factory=dict)
    source_hash: str = ""
    versions: dict[str, str] = field(default_factory=dict)
    hardware: dict[str, Any] = field(default_factory=dict)
    seconds: float | None = None
    peak_memory_mb: float | None = None
    date: str = ""
    schema: int = SCHEMA

    def __post_init__(self) -> None:
        self.metrics = {name: _metric(name, value) for name, value in dict(self.metrics).items()}
        self.seeds = list(self.seeds)
        self.check()

    def check(self) -> None:
        """Raise InputError if anything in the record is not as the schema says."""
        for name in ("claim", "model", "method", "bits", "data"):
            if not isinstance(getattr(self, name), str) or not getattr(self, name):
                raise InputError(f"record field {name} must be a non-empty string, not {getattr(self, name)!r}")
        if not re.fullmatch(r"FP32|(?=.)(W\d+)?(A\d+)?", self.bits):
            raise InputError(f"record field bits must be like W4A4, W3, A8 or FP32, not {self.bits!r}")
        if self.scale not in SCALES:
            raise InputError(f"record field scale must be one of {', '.join(SCALES)}, not {self.scale!r}")
        if self.status not in STATUSES:
            raise InputError(f"record field status must be one of {', '.join(STATUSES)}, not {self.status!r}")
        if self.status == "done" and not self.metrics:
            raise InputError("a record with status 'done' needs metrics")
        if self.status != "done" and not self.reason:
            raise InputError(f"a record with status {self.status!r} needs a reason")
        if self.schema != SCHEMA:
            raise InputError(f"record schema {self.schema!r} is not {SCHEMA}, the one that this version reads")
        for name, metric in self.metrics.items():
            if self.seeds and len(metric["values"]) not in (1, len(self.seeds)):
                raise InputError(f"metric {name} has {len(metric['values'])} values for {len(self.seeds)} seeds")
        if self.paper is not None and (set(self.paper) != {"value", "source"} or not self.paper["source"]):
            raise InputError("record field paper must hold a value and its source, such as 'Nagel 2022, Table 4'")
        _all_finite("", asdict(self))

    @property
    def filename(self) -> str:
        """File name, from what distinguishes this record from others, so that a rerun replaces it; ERQ+ is not ERQ."""
        parts = (self.claim, self.model, self.method, self.setting, self.variant, self.bits, self.data, self.scale)
        named = (part.lower().removesuffix("+") + "_plus" * part.endswith("+") for part in parts if part)
        return "-".join(re.sub(r"[^a-z0-9.]+", "_", part).strip("_") for part in named) + ".json"

    def write(self, folder: str | Path) -> Path:
        """Write the record atomically, with source hash, versions, hardware, time and date filled in.

        Args:
            folder: a folder, where the record gets its own `filename`, or a path that ends in `.json`.

        Returns:
            the path of the file.

        Raises:
            InputError: the record is not valid.
            MissingError: the file cannot be written (a full disk, say); a record written before is unchanged.
        """
        self.source_hash = self.source_hash or provenance.source_hash()
        self.versions = self.versions or environment.versions()
        self.hardware = self.hardware or environment.hardware()
        if self.seconds is None:
            self.seconds = round(provenance.seconds(), 1)
        if self.peak_memory_mb is None:
            self.peak_memory_mb = round(environment.peak_memory_mb())
        self.date = self.date or datetime.date.today().isoformat()
        self.check()
        path = Path(folder)
        return write_json(path if path.suffix == ".json" else path / self.filename, asdict(self))

    @classmethod
    def read(cls, path: str | Path) -> Record:
        """Read one record.

        Raises:
            InputError: the file is absent, not strict JSON, lacks a field, has one too many, or is not valid.
        """
        content = read_json(path)
        names = {item.name for item in fields(cls)}
        if not isinstance(content, dict):
            raise InputError(f"{path} is not a result record: it holds a {type(content).__name__}")
        if missing := sorted(names - set(content)):
            raise InputError(f"{path} is not a result record: it lacks {', '.join(missing)}")
        if unknown := sorted(set(content) - names):
            raise InputError(f"{path} has unknown fields: {', '.join(unknown)}")
        try:
            return cls(**content)
        except (InputError, TypeError) as error:
            raise InputError(f"{path}: {error}") from None


def _metric(name: str, value: Any) -> dict[str, Any]:
    if isinstance(value, Mapping):
        if set(value) != {"mean", "std", "values"}:
            raise InputError(f"metric {name} must hold mean, std and values, not {', '.join(value) or 'nothing'}")
        value = dict(value)
        if not value["values"] or not math.isclose(value["mean"], statistics.fmean(value["values"]), abs_tol=1e-9):
            raise InputError(f"metric {name}: the mean is not that of its values")
        return value
    if isinstance(value, bool) or isinstance(value, str):
        raise InputError(f"metric {name} must be a number, not {value!r}")
    return summarize(value if isinstance(value, Iterable) else [value])


def _all_finite(name: str, value: Any) -> None:
    if isinstance(value, float) and not math.isfinite(value):
        raise InputError(f"record field {name} is {value}, not a finite number")
    if isinstance(value, dict):
        for key, item in value.items():
            _all_finite(f"{name}.{key}".lstrip("."), item)
    elif isinstance(value, list | tuple):
        for item in value:
            _all_finite(name, item)


def records_folder() -> Path:
    """Folder of the committed records: book/results/records in the checkout."""
    return environment.home() / "book" / "results" / "records"


def load_records(folder: str | Path | None = None, claim: str = "") -> pandas.DataFrame:
    """All records of a folder as a table, one row a metric; a record without metrics keeps one row.

    Args:
        folder: where the JSON files lie; `records_folder()` if None. A folder that does not exist holds none.
        claim: only records of this claim, all if empty.

    Returns:
        columns claim, model, method, setting, variant, bits, data, metric, mean, std, n, values, scale, status,
        reason, images, seconds, peak_memory_mb, date, file. `setting` is that of the published counterpart where the
        record names one; `own_setting` is always that of the run.

    Raises:
        InputError: a file is not a valid record; the message names it.
    """
    import pandas as pd

    folder = records_folder() if folder is None else Path(folder)
    shared = ("claim", "model", "method", "setting", "variant", "bits", "data")
    trailing = ("scale", "status", "reason", "images", "seconds", "peak_memory_mb", "date")
    rows = []
    for path in sorted(folder.glob("*.json")):
        record = Record.read(path)
        if claim and record.claim != claim:
            continue
        nothing = {"mean": math.nan, "std": None, "values": []}
        for metric, found in (record.metrics or {"": nothing}).items():
            measured = {
                "metric": metric,
                "mean": found["mean"],
                "std": found["std"],
                "n": len(found["values"]),
                "values": tuple(found["values"]),
            }
            rows.append(
                {name: getattr(record, name) for name in shared}
                | {"setting": record.counterpart or record.setting, "own_setting": record.setting}
                | measured
                | {name: getattr(record, name) for name in trailing}
                | {"file": path.name}
            )
    columns = [*shared, "own_setting", "metric", "mean", "std", "n", "values", *trailing, "file"]
    return pd.DataFrame(rows, columns=columns).astype({"mean": float, "std": float})
