"""What every committed notebook has to be before anything runs it."""

import base64
import json
import re
from pathlib import Path

import nbformat
import pytest
from contents import ROOT, notebooks

from vitq import parameters
from vitq.provenance import is_stale

MACHINE_PATH = re.compile(r"(?<![\w.:/])/(?:home|root|Users|tmp|work|mnt|var|private)/\w|\b[A-Z]:\\\\")
PICTURES = ("image/png", "image/jpeg", "image/svg+xml")
NAMES = [path.relative_to(ROOT).as_posix() for path in notebooks()]


@pytest.fixture(params=NAMES)
def path(request) -> Path:
    return ROOT / request.param


@pytest.fixture
def notebook(path):
    return nbformat.read(path, as_version=4)


def code_cells(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code" and cell.source.strip()]


def outputs(notebook):
    return [(cell, output) for cell in code_cells(notebook) for output in cell.outputs]


def pictures(notebook):
    return [(cell, output.data[kind]) for cell, output in outputs(notebook) for kind in PICTURES
            if kind in output.get("data", {})]


def test_the_book_shows_every_notebook():
    on_disk = {p.relative_to(ROOT).as_posix() for p in (ROOT / "notebooks").rglob("*.ipynb") if ".ipynb_" not in str(p)}
    assert set(NAMES) == on_disk
    assert {f"notebooks/nagel2022/{name}.ipynb" for name in ("method", "small", "pretrained", "imagenet")} <= on_disk


def test_is_valid_and_for_any_python3(notebook):
    nbformat.validate(notebook)
    assert notebook.metadata.kernelspec.name == "python3"


def test_has_one_parameters_cell_with_types_and_help(path):
    content = json.loads(path.read_text())
    assert len(parameters.tagged(content, "parameters")) == 1
    declared = parameters.of_notebook(content)
    assert "scale" in declared and declared["scale"].default == "small"
    for parameter in declared.values():
        assert parameter.literal and parameter.kind != "Any" and parameter.help, parameter


def test_ran_from_top_to_bottom_without_errors(notebook):
    counts = [cell.execution_count for cell in code_cells(notebook)]
    assert counts == list(range(1, len(counts) + 1))
    bad = [output for _, output in outputs(notebook) if output.output_type == "error" or output.get("name") == "stderr"]
    assert not bad


def test_carries_no_trace_of_the_run(notebook):
    text = json.dumps([notebook.metadata, [cell.metadata for cell in notebook.cells]])
    assert "papermill" not in text and "injected-parameters" not in text
    shown = [cell.source for cell in notebook.cells]
    shown += [json.dumps({k: v for k, v in output.items() if k != "data"}) for _, output in outputs(notebook)]
    shown += [str(value) for _, output in outputs(notebook) for kind, value in output.get("data", {}).items()
              if not kind.startswith("image/png")]
    found = [match.group() for part in [*shown, text] if (match := MACHINE_PATH.search(part))]
    assert not found


def test_is_small(path, notebook):
    assert path.stat().st_size <= 1.5e6
    for cell, data in pictures(notebook):
        size = len(data.encode()) if data.lstrip().startswith("<") else len(base64.b64decode(data))
        assert size <= 100_000, cell.source.splitlines()[0]


def test_every_picture_has_words(notebook):
    for cell, _ in pictures(notebook):
        words = cell.metadata.get("mystnb", {})
        assert len(words.get("image", {}).get("alt", "")) >= 20, cell.source
        assert len(words.get("figure", {}).get("caption", "")) >= 20, cell.source


def test_opens_with_its_header_and_ends_with_its_footer(notebook):
    first = "\n".join(cell.source for cell in notebook.cells[:3] if cell.cell_type == "markdown")
    assert first.startswith("# ") and "{vitq-header}" in first and ":prerequisites:" in first
    assert "footer()" in code_cells(notebook)[-1].source


def test_outputs_are_those_of_this_code(path, notebook):
    facts = notebook.metadata.get("vitq", {})
    assert {"hash", "seconds", "peak_memory_mb", "scale", "hardware", "date"} <= set(facts)
    assert facts["scale"] == "small" or path.stem == "imagenet"
    assert is_stale(path) == (False, "")
