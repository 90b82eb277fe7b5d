"""A notebook is stale when what made its outputs has changed, and not when only words have."""

import copy
import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from vitq import provenance
from vitq.errors import InputError

SOURCE = '''
"""Module."""
import math

class Error(ValueError):
    """Only a docstring."""

def f(x, y=None):
    """Formula."""
    # why
    return f"{x:.2f}" + str(math.sqrt(x) - 2.0)
'''


@pytest.mark.parametrize(
    "old, new",
    [('"""Module."""', '"""Another text."""'), ('"""Module."""\n', ""), ("# why", "# because"), ("    # why\n", "\n\n"),
     ('    """Formula."""\n', ""), ("x, y=None", "x,  y = None")],
)  # fmt: skip
def test_words_and_layout_do_not_change_the_hash(old, new):
    assert old in SOURCE
    assert provenance.code_hash(SOURCE.replace(old, new)) == provenance.code_hash(SOURCE)


@pytest.mark.parametrize(
    "old, new",
    [("- 2.0", "+ 2.0"), ("2.0", "2.5"), ("2.0", "2"), ("sqrt", "exp"), ("y=None", "y=0"), (".2f", ".3f"),
     ("f(x", "g(x"), ("- 2.0", "- (2.0 or x)"), ("y=None", "y")],
)  # fmt: skip
def test_code_changes_the_hash(old, new):
    assert provenance.code_hash(SOURCE.replace(old, new)) != provenance.code_hash(SOURCE)


@pytest.fixture
def package(tmp_path, monkeypatch) -> Path:
    """A copy of the package's sources that may be changed."""
    here = tmp_path / "vitq"
    shutil.copytree(provenance.PACKAGE, here, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(provenance, "PACKAGE", here)
    return here


@pytest.fixture
def notebook(tmp_path, package) -> Path:
    modules = {name: provenance.module_hash(name) for name in ("vitq.numerics", "vitq.records")}
    facts = {"modules": modules, "weights": {}, "data": {"glyphs": "1"}, "seconds": 3.0, "peak_memory_mb": 400,
             "hardware": {"cpu": "c", "cores": 2}, "versions": {"python": "3"}}  # fmt: skip
    output = {"output_type": "display_data", "data": {"text/plain": "versions"}, "metadata": {"vitq": facts}}
    cells = [
        {"cell_type": "markdown", "metadata": {}, "source": "words"},
        {"cell_type": "code", "metadata": {"tags": ["parameters"]}, "source": ["bits: int = 4\n", "scale = 'small'"],
         "outputs": [], "execution_count": 1},
        {"cell_type": "code", "metadata": {}, "source": "footer()", "outputs": [output], "execution_count": 2},
    ]  # fmt: skip
    path = tmp_path / "n.ipynb"
    path.write_text(json.dumps({"cells": cells, "metadata": {}, "nbformat": 4, "nbformat_minor": 5}))
    return path


def change(path: Path, edit) -> None:
    content = json.loads(path.read_text())
    edit(content)
    path.write_text(json.dumps(content))


def test_stamp_moves_the_facts_and_the_notebook_is_fresh(notebook):
    assert provenance.is_stale(notebook)[0]
    entry = provenance.stamp(notebook)
    content = json.loads(notebook.read_text())
    assert content["metadata"]["vitq"] == entry and content["cells"][2]["outputs"][0]["metadata"] == {}
    assert entry["scale"] == "small" and entry["parameters"] == {"bits": 4, "scale": "small"}
    assert {"hash", "modules", "data", "seconds", "peak_memory_mb", "hardware", "date", "versions"} <= set(entry)
    assert provenance.is_stale(notebook) == (False, "")
    with pytest.raises(InputError, match="footer"):
        provenance.stamp(notebook)


def test_reasons_name_what_changed(notebook, package):
    provenance.stamp(notebook)
    numerics = package / "numerics.py"
    numerics.write_text(numerics.read_text().replace('"""', '"""Changed words. ', 1) + "\n# a comment\n")
    assert provenance.is_stale(notebook) == (False, "")
    numerics.write_text(numerics.read_text() + "\nANSWER = 42\n")
    assert provenance.is_stale(notebook) == (True, "changed: module vitq.numerics")
    (package / "records.py").unlink()
    change(notebook, lambda content: content["cells"][1].update(source="bits: int = 3\nscale = 'small'"))
    stale, reason = provenance.is_stale(notebook, data={"glyphs": "2", "digits": "1"})
    assert stale
    assert reason == "changed: its code cells, parameter bits, module vitq.numerics, module vitq.records, data glyphs"


def test_prose_outputs_and_foreign_modules_do_not_matter(notebook, package):
    provenance.stamp(notebook)
    change(notebook, lambda content: content["cells"][0].update(source="better words"))
    change(notebook, lambda content: content["cells"][2].update(outputs=[], execution_count=9))
    (package / "convert.py").write_text("ANSWER = 42")
    assert provenance.is_stale(notebook) == (False, "")


def test_edited_provenance_and_changed_weights_are_stale(notebook, package):
    (package / "weights").mkdir(exist_ok=True)
    (package / "weights" / "tiny.safetensors").write_bytes(b"1")
    edit = {"weights": {"tiny.safetensors": provenance._hash_of(package / "weights" / "tiny.safetensors")}}
    change(notebook, lambda content: content["cells"][2]["outputs"][0]["metadata"]["vitq"].update(edit))
    provenance.stamp(notebook)
    assert provenance.is_stale(notebook) == (False, "")
    (package / "weights" / "tiny.safetensors").write_bytes(b"22")
    assert provenance.is_stale(notebook) == (True, "changed: weights tiny.safetensors")
    change(notebook, lambda content: content["metadata"]["vitq"]["data"].update(glyphs="2"))
    assert provenance.is_stale(notebook) == (True, "its stored provenance was edited")


def test_only_the_weights_that_were_loaded_count(package, monkeypatch):
    shown = {}
    monkeypatch.setattr(provenance, "_show", lambda text, facts: shown.update(facts))
    monkeypatch.setattr(provenance, "_data", {})
    (package / "weights").mkdir(exist_ok=True)
    for name in ("used", "unused"):
        (package / "weights" / f"{name}.safetensors").write_bytes(b"1")
    import vitq.zoo  # noqa: F401  importing loads nothing

    provenance.footer()
    assert shown["weights"] == {}
    provenance.note_weights(package / "weights" / "used.safetensors")
    provenance.note_data("glyphs", "1")
    provenance.note_weights(package.parent / "elsewhere.safetensors")
    provenance.footer()
    assert shown["weights"] == {"used.safetensors": provenance._hash_of(package / "weights" / "used.safetensors")}
    assert shown["data"] == {"glyphs": "1"}
    child = provenance.own_report()["data"]
    monkeypatch.setattr(provenance, "_data", {})
    provenance.report([], child)
    provenance.footer()
    assert list(shown["weights"]) == ["used.safetensors"]


def test_parameters_that_papermill_injected_are_resolved(notebook):
    injected = {"cell_type": "code", "metadata": {"tags": ["injected-parameters"]}, "source": "bits = 2", "outputs": []}
    change(notebook, lambda content: content["cells"].insert(2, copy.deepcopy(injected)))
    assert provenance.stamp(notebook)["parameters"] == {"bits": 2, "scale": "small"}


@pytest.mark.parametrize("text", ["", "{", "[]", '{"cells": 1}'])
def test_broken_notebooks_are_one_line(tmp_path, text):
    (tmp_path / "n.ipynb").write_text(text)
    with pytest.raises(InputError, match="n.ipynb"):
        provenance.is_stale(tmp_path / "n.ipynb")


def test_footer_reports_the_modules_and_marks_those_edited_during_the_run(monkeypatch, capsys):
    import vitq.numerics  # noqa: F401

    shown = {}
    monkeypatch.setattr(provenance, "_show", lambda text, facts: shown.update(text=text, **facts))
    provenance.note_data("glyphs", "v1")
    provenance.footer()
    assert "vitq.numerics" in shown["modules"] and "vitq.provenance" not in shown["modules"]
    assert shown["data"]["glyphs"] == "v1" and shown["peak_memory_mb"] > 10 and "wall time" in shown["text"]
    assert "/" not in shown["text"].replace("n/a", "")
    monkeypatch.setattr(provenance.environment, "seconds_since_start", lambda: time.time())
    provenance.footer(seconds=1)
    assert shown["modules"]["vitq.numerics"] == provenance.MODIFIED and shown["seconds"] == 1


def test_staleness_needs_no_heavy_import_and_little_time(notebook):
    provenance.stamp(notebook)
    code = (
        "import sys, time; t = time.perf_counter(); from vitq.provenance import is_stale; "
        f"[is_stale({str(notebook)!r}) for _ in range(20)]; "
        "assert time.perf_counter() - t < 1; assert not {'torch', 'pandas', 'papermill', 'IPython'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
