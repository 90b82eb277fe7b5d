"""Launching: parameters are checked, nothing survives a signal, a missing record is a failure, sweeps lose nothing."""

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import psutil
import pytest

from vitq import launch, parameters, processes, provenance
from vitq.errors import InputError, MissingError

PARAMETERS = """
bits: int = 4  # weight bits
lr: float = 0.01  # learning rate
layers: list[int] = [1, 2]  # which layers
clip: float | None = None  # gradient clip
verbose: bool = False
name: str = "a # b"  # a name
data: str = "digits"  # data set
data_path: str = ""  # its folder
device: str = "cpu"
scale: str = "small"
record: str = ""  # result record
"""
FOOTER = "from vitq.provenance import footer\nfooter()"


@pytest.fixture(autouse=True)
def run_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(launch, "_run_folder", lambda: tmp_path / "runs")


def write_notebook(path: Path, *cells: str) -> Path:
    tags = [["parameters"], *([] for _ in cells)]
    content = [
        {"cell_type": "code", "id": f"c{place}", "metadata": {"tags": tag} if tag else {}, "source": source,
         "execution_count": None, "outputs": []}
        for place, (tag, source) in enumerate(zip(tags, (PARAMETERS, *cells), strict=True))
    ]  # fmt: skip
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    path.write_text(json.dumps({"cells": content, "metadata": kernel, "nbformat": 4, "nbformat_minor": 5}))
    return path


def checked(from_text=False, **values):
    return parameters.check(values, parameters.declared(PARAMETERS), from_text=from_text)


def test_declared_parameters_have_types_defaults_and_help():
    found = parameters.declared(PARAMETERS)
    assert found["clip"].kind == "float | None" and found["clip"].default is None
    assert found["name"].default == "a # b" and found["name"].help == "a name"
    assert found["layers"].kind == "list[int]" and found["bits"].help == "weight bits"


@pytest.mark.parametrize(
    "name, value, expected",
    [("bits", 3, 3), ("lr", 1, 1.0), ("lr", "1e-3", 0.001), ("clip", None, None), ("clip", 2.5, 2.5),
     ("layers", [3], [3])],
)  # fmt: skip
def test_values_from_yaml_that_fit(name, value, expected):
    result = checked(**{name: value})[name]
    assert result == expected and type(result) is type(expected)


@pytest.mark.parametrize(
    "name, value",
    [("bits", "4"), ("bits", "08"), ("bits", 2.5), ("bits", True), ("bits", None), ("lr", "0.1"), ("lr", float("nan")),
     ("layers", "[8]"), ("layers", ["a"]), ("verbose", 1), ("name", 3), ("scale", "tiny")],
)  # fmt: skip
def test_values_from_yaml_that_do_not_fit(name, value):
    with pytest.raises(InputError, match=name):
        checked(**{name: value})


@pytest.mark.parametrize(
    "name, text, expected",
    [("bits", "3", 3), ("lr", "1e-3", 0.001), ("lr", ".5", 0.5), ("layers", "[8]", [8]), ("clip", "None", None),
     ("clip", "1", 1.0), ("verbose", "true", True), ("name", "08", "08")],
)  # fmt: skip
def test_text_is_read_as_the_declared_type(name, text, expected):
    assert checked(from_text=True, **{name: text})[name] == expected


@pytest.mark.parametrize(
    "name, text",
    [("bits", "08"), ("bits", "four"), ("bits", "3.0"), ("lr", "fast"), ("layers", "8"), ("verbose", "yes"),
     ("lr", "inf")],
)  # fmt: skip
def test_text_that_does_not_fit(name, text):
    with pytest.raises(InputError, match=name):
        checked(from_text=True, **{name: text})


def test_misspelt_parameter_lists_the_valid_ones_and_runs_nothing(tmp_path):
    notebook = write_notebook(tmp_path / "n.ipynb", "open('ran', 'w')")
    with pytest.raises(InputError, match=r"bitz \(did you mean bits\?\).*lr \(float, default 0.01: learning rate\)"):
        launch.run_notebook(notebook, tmp_path / "o.ipynb", params={"bitz": 3})
    assert not (tmp_path / "ran").exists()


def test_missing_folder_and_device_are_found_before_any_work(tmp_path, monkeypatch):
    monkeypatch.delenv("VITQ_IMAGENET", raising=False)
    with pytest.raises(MissingError, match="data_path.*no folder"):
        launch.preflight({"data_path": "absent"}, tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(MissingError, match="data_path.*empty"):
        launch.preflight({"data_path": "empty"}, tmp_path)
    with pytest.raises(MissingError, match="VITQ_IMAGENET"):
        launch.preflight({"data": "imagenet", "data_path": ""}, tmp_path)
    with pytest.raises(MissingError, match="device"):
        launch.preflight({"device": "cuda:99"}, tmp_path)
    launch.preflight({"data": "digits", "data_path": "", "device": "cpu"}, tmp_path)


def test_run_in_place_is_tidy_and_stamped(tmp_path, capsys):
    record = "from pathlib import Path; Path('r.json').write_text('{}')"
    (tmp_path / "beside.py").write_text("ANSWER = 42")
    notebook = write_notebook(tmp_path / "n.ipynb", "print(bits, flush=True)\nimport beside, time", FOOTER)
    launch.run_notebook(notebook, show_output=True)
    assert capsys.readouterr().out == "4\n"
    content = json.loads(notebook.read_text())
    assert [cell["execution_count"] for cell in content["cells"]] == [1, 2, 3]
    assert "papermill" not in json.dumps(content) and "injected" not in json.dumps(content)
    assert content["cells"][1]["outputs"][0]["text"] in ("4\n", ["4\n"])
    assert content["metadata"]["vitq"]["parameters"]["bits"] == 4
    assert provenance.is_stale(notebook) == (False, "")
    (tmp_path / "beside.py").write_text("ANSWER = 41")
    assert provenance.is_stale(notebook) == (True, "changed: module ./beside.py")
    other = launch.run_notebook(notebook, tmp_path / "other.ipynb", params={"bits": "3"}, from_text=True)
    assert other.parameters["bits"] == 3 and "injected-parameters" in other.out.read_text()
    assert json.loads(other.out.read_text())["metadata"]["vitq"]["parameters"]["bits"] == 3
    with_record = write_notebook(tmp_path / "r.ipynb", record, FOOTER)
    found = launch.run_notebook(with_record, tmp_path / "o.ipynb", params={"record": "r.json"})
    assert found.record == tmp_path / "r.json"


def test_pieces_of_a_stream_are_joined():
    pieces = [("stdout", "a\n"), ("stdout", "b"), ("stderr", "c\n"), ("stdout", "d\n")]
    outputs = [{"output_type": "stream", "name": name, "text": [text]} for name, text in pieces]
    shown = {"output_type": "display_data", "data": {}, "metadata": {}}
    cell = {"cell_type": "code", "metadata": {"papermill": {}}, "outputs": [*outputs, shown]}
    found = launch.tidy({"metadata": {"papermill": {}}, "cells": [cell]})
    assert found["metadata"] == {} and found["cells"][0]["metadata"] == {}
    assert [output.get("text") for output in found["cells"][0]["outputs"]] == [["a\n", "b"], ["c\n"], ["d\n"], None]


def test_absent_or_old_record_is_a_failure(tmp_path):
    notebook = write_notebook(tmp_path / "n.ipynb", FOOTER)
    (tmp_path / "old.json").write_text("{}")
    with pytest.raises(launch.RunFailed, match="old.json was not written again"):
        launch.run_notebook(notebook, tmp_path / "o.ipynb", params={"record": "old.json"})


def test_failed_cell_is_one_line_and_leaves_the_notebook_alone(tmp_path):
    notebook = write_notebook(
        tmp_path / "n.ipynb", "from vitq.errors import MissingError\nraise MissingError('no\\ncat')"
    )
    before = notebook.read_bytes()
    with pytest.raises(launch.RunFailed, match=r"cell 2: MissingError: no cat; the executed part is in") as caught:
        launch.run_notebook(notebook)
    assert caught.value.code == 3 and "\n" not in str(caught.value)
    assert notebook.read_bytes() == before


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signal_ends_the_kernel_and_all_that_it_started(tmp_path, number):
    sleeper = "[sys.executable, '-c', 'import time; time.sleep(300)']"
    child = f"import subprocess, sys; subprocess.Popen({sleeper}, start_new_session={{}})"
    cells = [child.format(False), child.format(True), "open('started', 'w').close()\nimport time; time.sleep(300)"]
    notebook = write_notebook(tmp_path / "n.ipynb", *cells, FOOTER)
    code = f"""
        import sys
        from vitq import launch
        try:
            launch.run_notebook({str(notebook)!r}, {str(tmp_path / "o.ipynb")!r})
        except launch.RunFailed as error:
            print(error)
            sys.exit(error.code)
    """
    marked = os.environ | {"VITQ_TEST_FAMILY": str(tmp_path)}
    command = [sys.executable, "-c", textwrap.dedent(code)]
    process = subprocess.Popen(command, env=marked, stdout=subprocess.PIPE, text=True)
    for _ in range(600):
        if (tmp_path / "started").exists():
            break
        time.sleep(0.1)
    assert len(family(tmp_path)) >= 5  # launcher, papermill, kernel, two sleepers
    process.send_signal(number)
    assert process.wait(30) == 128 + number
    assert "interrupted by" in process.stdout.read()
    assert not family(tmp_path)


def family(mark: Path) -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get("VITQ_TEST_FAMILY") == str(mark) and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except (psutil.Error, OSError):
            continue
    return found


def test_clean_environment_drops_what_misleads_torchrun(monkeypatch):
    for name in ("MPLBACKEND", "RANK", "MASTER_ADDR", "SLURM_JOB_ID", "TORCHELASTIC_RUN_ID"):
        monkeypatch.setenv(name, "1")
    monkeypatch.setenv("VITQ_CACHE", "kept")
    found = launch.clean_environment()
    assert found["VITQ_CACHE"] == "kept"
    assert not {"MPLBACKEND", "RANK", "MASTER_ADDR", "SLURM_JOB_ID", "TORCHELASTIC_RUN_ID"} & set(found)


def test_torchrun_passes_output_and_failure_on(tmp_path, capfd):
    script = tmp_path / "job.py"
    script.write_text("import os, sys, vitq.testing\nprint('rank', os.environ['RANK'])\nsys.exit(int(sys.argv[1]))")
    launch.torchrun([str(script), "0"])
    assert "rank 0" in capfd.readouterr().out
    assert "vitq.testing" in provenance.imported_modules()
    with pytest.raises(launch.RunFailed, match="failed with status 1"):
        launch.torchrun([str(script), "5"])
    with pytest.raises(InputError, match="nproc"):
        launch.torchrun([str(script)], nproc=0)


@pytest.fixture
def functions(tmp_path, monkeypatch):
    source = """
        import os
        def double(value):
            return 2 * value, os.environ["OMP_NUM_THREADS"]
        def fragile(value):
            if value == 1:
                raise ValueError("one is bad")
            if value == 2:
                os._exit(9)
            return value
        def finished(seconds):
            return {"seconds": seconds}
    """
    (tmp_path / "sweep_functions.py").write_text(textwrap.dedent(source))
    monkeypatch.syspath_prepend(tmp_path)


def test_sweep_keeps_the_order_and_uses_one_thread(functions, capsys):
    assert launch.sweep("sweep_functions:double", [3, 1, 2]) == [(6, "1"), (2, "1"), (4, "1")]
    assert len(capsys.readouterr().out.splitlines()) == 3
    assert launch.sweep("sweep_functions:double", []) == []


def test_time_of_results_that_are_read_back_counts(functions, monkeypatch, capsys):
    monkeypatch.setattr(provenance, "_earlier_seconds", 0.0)
    launch.sweep("sweep_functions:finished", [100.0, 0.0, None, 20.0], progress=False)
    assert 58 < provenance._earlier_seconds <= 60  # two workers
    provenance.footer()
    assert "in runs that an earlier start had finished" in capsys.readouterr().out
    assert provenance.seconds() > 58


def test_sweep_finishes_the_others_and_names_the_failed(functions):
    with pytest.raises(
        launch.SweepError, match=r"2 of 5 configs failed: config 1 \(1\): ValueError: one is bad; config 2"
    ) as e:
        launch.sweep("sweep_functions:fragile", [0, 1, 2, 3, 4], progress=False)
    assert e.value.results == [0, None, None, 3, 4] and set(e.value.failures) == {1, 2}


def test_sweep_refuses_what_a_worker_cannot_get(functions):
    for function in (lambda value: value, "sweep_functions:absent", "absent_module:f"):
        with pytest.raises(InputError, match="function"):
            launch.sweep(function, [1])
    with pytest.raises(InputError, match="workers"):
        launch.sweep("sweep_functions:double", [1], workers=0)
    with pytest.raises(InputError, match="config 0"):
        launch.sweep("sweep_functions:double", [lambda: 0])


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_sweep_workers_end_with_their_parent(tmp_path, number):
    (tmp_path / "slow.py").write_text(
        "import time\ndef wait(seconds):\n    open('started', 'w').close()\n    time.sleep(seconds)\n"
    )
    # a shell that starts the tests in the background has SIGINT ignored, and children inherit that
    code = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
    code += "from vitq.launch import sweep; sweep('slow:wait', [300, 300])"
    marked = os.environ | {"VITQ_TEST_FAMILY": str(tmp_path), "PYTHONPATH": str(tmp_path)}
    process = subprocess.Popen([sys.executable, "-c", code], env=marked, cwd=tmp_path, stderr=subprocess.DEVNULL)
    for _ in range(300):
        if (tmp_path / "started").exists():
            break
        time.sleep(0.1)
    process.send_signal(number)
    process.wait(20)
    for _ in range(50):
        if not family(tmp_path):
            break
        time.sleep(0.1)
    assert not family(tmp_path)


def test_end_tree_of_a_process_that_has_gone():
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    processes.end_tree(process.pid)
