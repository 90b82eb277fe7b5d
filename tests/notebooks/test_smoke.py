"""Every notebook at smoke scale, with the parameters that are committed for it, and a look at what it wrote."""

import hashlib
import json
import math
from pathlib import Path

import pytest
from contents import ROOT, notebooks

from vitq import parameters
from vitq.launch import run_notebook
from vitq.records import Record

PARAMS = ROOT / "notebooks" / "params"
SMOKE = sorted((PARAMS / "smoke").glob("*.yml"))
OTHERS = sorted([*(PARAMS / "small").glob("*.yml"), *(PARAMS / "full").glob("*.yml")])


def notebook_of(file: Path) -> Path:
    """`nagel_small.yml` belongs to notebooks/nagel2022/small.ipynb, and so does `nagel_small_anything.yml`."""
    paper, _, rest = file.stem.partition("_")
    fits = [path for path in notebooks() if path.parent.name.startswith(paper) and rest.split("_")[0] == path.stem]
    assert len(fits) == 1, f"{file.name} should be named PAPER_NOTEBOOK.yml or PAPER_NOTEBOOK_ROW.yml"
    return fits[0]


def declared(path: Path) -> dict[str, parameters.Parameter]:
    return parameters.of_notebook(json.loads(path.read_text()))


def results() -> dict[str, str]:
    folder = ROOT / "book" / "results"
    return {str(file): hashlib.sha256(file.read_bytes()).hexdigest() for file in folder.rglob("*") if file.is_file()}


def test_every_notebook_has_a_smoke_file():
    assert {notebook_of(file) for file in SMOKE} == set(notebooks())


@pytest.mark.parametrize("file", SMOKE + OTHERS, ids=lambda file: f"{file.parent.name}-{file.stem}")
def test_parameters_are_those_of_the_notebook(file):
    values = parameters.check(parameters.read_file(file), declared(notebook_of(file)))
    assert values["scale"] == file.parent.name


@pytest.mark.slow
@pytest.mark.parametrize("file", SMOKE, ids=lambda file: file.stem)
def test_smoke_run_writes_a_whole_record_and_no_result(file, tmp_path, imagenet_folder, coco_folder, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    path, before = notebook_of(file), results()
    known = declared(path)
    values = {"record": str(tmp_path / "record.json")} if "record" in known else {}
    data = coco_folder if path.stem == "coco" else imagenet_folder
    values |= {"data_path": str(data)} if "data_path" in known else {}
    values |= {"out": str(tmp_path / "run")} if "out" in known else {}
    result = run_notebook(path, out=tmp_path / path.name, params_file=file, params=values)
    assert results() == before, "a smoke run must not touch what the book shows"
    entry = json.loads(result.out.read_text())["metadata"]["vitq"]
    assert entry["scale"] == "smoke" and entry["modules"]
    if "record" in known:
        record = Record.read(result.record)
        assert record.scale == "smoke" and record.status == "done" and record.metrics
        assert all(math.isfinite(found["mean"]) for found in record.metrics.values())


def test_some_notebook_writes_a_record():
    assert any("record" in declared(path) for path in notebooks())
