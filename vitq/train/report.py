"""What a notebook shows of a full run, stage by stage: configuration, checks, cost, records, comparison."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from vitq import records
from vitq.train import cost, full, rows
from vitq.train.rows import Row

if TYPE_CHECKING:
    import pandas


@dataclass
class State:
    """What is known of a run before it starts.

    Args:
        reason: why it cannot start; empty if it can.
        facts: number of classes, training and test images.
        processes: to start.
        done: results, if it is finished.
    """

    reason: str = ""
    facts: dict[str, Any] = field(default_factory=lambda: dict(full.IMAGENET))
    processes: int = 1
    done: list[dict[str, Any]] = field(default_factory=list)


def configuration(row: Row) -> str:
    """The stages of a run as YAML: the first whole, each later one as what differs from the one before."""
    texts, before = [], {}
    for stage in row.stages():
        shown = stage.config.to_dict()
        for section in shown.values():
            if isinstance(section, dict) and section.get("path"):
                section["path"] = "given"
        dumped = yaml.safe_dump(_difference(shown, before), sort_keys=False, default_flow_style=None, width=72)
        what = ", as before but for" if before else ""
        texts.append(f"# {stage.name}, seeds {', '.join(map(str, stage.seeds))}{what}\n{dumped}")
        before = shown
    return "\n".join(texts)


def check(row: Row, out: Path | str, folder: str, scale: str, gpus: int) -> State:
    """Look at data, classes and devices, print what is there, and read the results of a finished run.

    Args:
        row: what to run.
        out: its folder.
        folder: of the images; without one, scale "small" runs nothing and says so.
        scale: of the notebook.
        gpus: how many to use, 0 for all.

    Raises:
        MissingError: what is needed is not there; names the parameter.
        InputError: what is there is wrong; names the parameter.
    """
    if not folder and scale == "small":
        found = State("no ImageNet folder given (data_path)")
        print(f"status: not run: {found.reason}")
        return found
    whole = row.config.scale == "full"
    found = State(facts=full.check_data(row.config, whole), processes=full.processes(row.config, gpus, whole))
    found.done = full.finished(row, out)
    print("data: {train:,} training, {val:,} test images, {classes:,} classes".format(**found.facts))
    print(f"processes: {found.processes}")
    if found.done:
        print("this run is finished; its results are read, nothing is done again")
    return found


def costs(row: Row, state: State, out: Path | str) -> None:
    """Print the cost of every stage that is not finished, measured here and, without a GPU, estimated for one."""
    for stage, place in zip(row.stages(), folders(row, out), strict=True):
        print(stage.name)
        if not state.reason and full.finished(stage, place):
            print("  finished")
            continue
        speeds = [cost.measure(stage.config, steps=2, processes=state.processes, classes=state.facts["classes"])]
        if speeds[0].memory_gb is None:  # no GPU
            speeds.append(cost.count(stage.config, classes=state.facts["classes"]))
        for speed in speeds:
            print(cost.estimate(stage.config, speed, seeds=len(stage.seeds), train_images=state.facts["train"],
                                test_images=state.facts["val"]))
    if not state.reason:
        print(f"reading: {cost.reading_speed(row.config):.0f} images/s, measured here")


def folders(row: Row, out: Path | str) -> list[Path]:
    """The folder of each of `row.stages()`."""
    earlier = [] if row.before is None else folders(row.before, full.folder_before(row, out))
    return [*earlier, Path(out)]


def write(row: Row, out: Path | str, state: State, record: str = "") -> list[Path]:
    """Write and print the records of all stages, the last stage's first.

    Args:
        row: what was run.
        out: its folder.
        state: of `check`; its reason is that of records that say "not run".
        record: file of the first record; empty for where the book keeps them, or `out` for a try.
    """
    target, made = record or ("" if row.config.scale == "full" else str(out)), []
    for stage, place in reversed(list(zip(row.stages(), folders(row, out), strict=True))):
        results = [] if state.reason else full.finished(stage, place)
        found = rows.make_records(stage, results, stage.config.scale, state.reason)
        made += found if stage is row else found[: len(stage.published)]
    files = rows.write_records(made, target)
    for entry, file in zip(made, files, strict=True):
        print(f"{entry.method}, {entry.bits}: {entry.status} {entry.reason}\n  record: {file.name}")
        for metric, found in entry.metrics.items():
            if found == entry.metrics.get(metric.removesuffix("_pre_bn")) and metric.endswith("_pre_bn"):
                continue  # no batch norm: both accuracies are one
            spread = "" if found["std"] is None else f" ({found['std']:.2g})"
            print(f"  {metric:>20}: {found['mean']:.4g}{spread}")
    return files


def comparison(row: Row, folder: Path) -> "pandas.DataFrame":
    """The published figures of a run's row beside those of the records in `folder`."""
    main = row.main
    mine = records.load_records(folder, claim=main["table"])
    mine = mine[(mine["model"] == main["model"]) & (mine["scale"] != "small")]
    reported = records.published(main["table"])
    table = records.compare(mine, reported[reported["model"] == main["model"]], smoke="drop")
    table = table[(table["method"] == main["method"]) & (table["bits"] == main["bits"]) & table["reported"].notna()]
    return table[["method", "bits", "metric", "reported", "mean", "std", "n", "delta", "verdict", "source"]]


def _difference(new: dict[str, Any], old: dict[str, Any]) -> dict[str, Any]:
    """The entries of nested mappings that are not the same."""
    found = {}
    for name, value in new.items():
        if name not in old:
            found[name] = value
        elif isinstance(value, dict) and isinstance(old[name], dict):
            inner = _difference(value, old[name])
            found |= {name: inner} if inner else {}
        elif value != old[name]:
            found[name] = value
    return found
