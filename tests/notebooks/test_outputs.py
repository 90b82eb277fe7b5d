"""Committed outputs against fresh ones, by nbval, for the cells tagged `nbval-check-output`."""

import os
import re
import shutil
import subprocess
import sys

import nbformat
import pytest
from contents import ROOT, notebooks

TAG = "nbval-check-output"
LIGHT = 120  # seconds: nbval runs a whole notebook at its defaults
MINIMUM = 5  # tagged cells in the whole book


def tagged(path):
    return [cell for cell in nbformat.read(path, as_version=4).cells if TAG in cell.metadata.get("tags", [])]


CHECKED = [path for path in notebooks() if tagged(path)]


def nbval(path, python_path=""):
    command = [sys.executable, "-m", "pytest", "-o", "addopts=", "-p", "no:cacheprovider", "-n0", "-q", "--tb=line",
               "--nbval-lax", "--nbval-current-env", str(path)]
    environment = {**os.environ, "PYTHONPATH": python_path, "OMP_NUM_THREADS": "1"}
    environment.pop("PYTEST_XDIST_WORKER", None)
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)


def test_there_are_cells_to_check():
    assert sum(len(tagged(path)) for path in notebooks()) >= MINIMUM
    for path in CHECKED:
        for cell in tagged(path):
            assert cell.execution_count and cell.outputs, f"{path.name}: a tagged cell without output cannot fail"


def test_they_lie_in_notebooks_that_run_fast():
    heavy = [path.name for path in CHECKED if nbformat.read(path, as_version=4).metadata.vitq.seconds > LIGHT]
    assert not heavy, f"move the checked cells of {heavy} into a light notebook"


@pytest.mark.slow
@pytest.mark.parametrize("path", CHECKED, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_outputs_are_the_same_again(path):
    cells = [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]
    result = nbval(path)
    assert result.returncode == 0, result.stdout[-4000:]
    passed = re.search(r"(\d+) passed", result.stdout)
    assert passed and int(passed[1]) == len(cells)


@pytest.mark.slow
@pytest.mark.parametrize(("paper", "module"), [("nagel2022", "numerics.py"), ("ofq2023", "quantizers/statsq.py")])
def test_broken_rounding_turns_them_red(paper, module, tmp_path):
    shutil.copytree(ROOT / "vitq", tmp_path / "vitq", ignore=shutil.ignore_patterns("__pycache__"))
    file = tmp_path / "vitq" / module
    broken, count = re.subn(r"\.round(_?)\(\)", r".floor\1()", file.read_text())
    assert count >= 1
    file.write_text(broken)
    copy = tmp_path / "notebooks" / paper / "method.ipynb"  # its tables must not land in the book
    copy.parent.mkdir(parents=True)
    shutil.copy(ROOT / "notebooks" / paper / copy.name, copy)
    (tmp_path / "book" / "results" / "tables").mkdir(parents=True)
    result = nbval(copy, python_path=str(tmp_path))
    assert result.returncode == 1 and re.search(r"\d+ failed", result.stdout), result.stdout[-4000:]
