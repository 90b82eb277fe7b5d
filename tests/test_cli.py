"""The command line: one line for what is wrong, the promised exit status, a quick start."""

import json
import subprocess
import sys
import time

import pytest

from vitq import cli
from vitq.errors import InputError, MissingError


def call(capsys, *arguments: str) -> tuple[int, str, str]:
    code = cli.main(arguments)
    return code, *capsys.readouterr()


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["rum"], "did you mean run?"),
        (["run", "x.ipynb", "--quite"], "did you mean --quiet?"),
        (["train", "--confg", "a.yml", "--out", "o"], "did you mean --config?"),
        (["train", "--out", "o"], "--config"),
        (["run"], "NOTEBOOK"),
        (["run", "absent.ipynb"], "absent.ipynb"),
        (["doctor", "extra"], "extra"),
        (["compare", "nagel2022_t44"], "did you mean nagel2022_t4?"),
        (["evaluate", "f", "--data", "digits", "--images", "0"], "images"),
        (["evaluate", "f", "--data", "digits", "--images", "few"], "few"),
    ],
)
def test_wrong_input_is_one_line_and_status_2(capsys, arguments, words):
    code, out, err = call(capsys, *arguments)
    assert code == 2 and out == ""
    assert words in err and err.count("\n") == 1 and "Traceback" not in err


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["evaluate", "absent.safetensors", "--data", "digits"], "absent.safetensors"),
        (["train", "--config", "absent.yml", "--out", "o"], "absent.yml"),
    ],
)
def test_what_is_missing_is_status_3(capsys, arguments, words):
    code, _, err = call(capsys, *arguments)
    assert code == 3 and words in err and err.count("\n") == 1


@pytest.mark.parametrize(
    "error, code",
    [(InputError("a\nb"), 2), (ValueError("a"), 2), (MissingError("a"), 3), (OSError(28, "No space left"), 3),
     (KeyboardInterrupt(), 130), (RuntimeError("a"), 1), (ZeroDivisionError("a"), 1)],
)  # fmt: skip
def test_every_error_is_one_line(capsys, monkeypatch, error, code):
    def fail(given):
        raise error

    monkeypatch.setattr(cli, "_models", fail)
    monkeypatch.delenv("VITQ_DEBUG", raising=False)
    found, _, err = call(capsys, "models")
    assert found == code and err.startswith("vitq: ") and err.count("\n") == 1
    monkeypatch.setenv("VITQ_DEBUG", "1")
    with pytest.raises(type(error)):
        cli.main(["models"])


def test_help_and_nothing_at_all(capsys):
    assert call(capsys)[0] == 0
    with pytest.raises(SystemExit) as caught:
        cli.main(["run", "--help"])
    assert caught.value.code == 0 and "NOTEBOOK" in capsys.readouterr().out


def test_help_is_quick_and_imports_nothing_heavy():
    code = (
        "import sys; from vitq import cli; cli.main([]); "
        "assert not {'torch', 'pandas', 'papermill', 'numpy'} & set(sys.modules), 'heavy import'"
    )
    started = time.perf_counter()
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)
    assert time.perf_counter() - started < 2  # 0.1 s on an idle machine


def test_run_reads_parameters_as_text(capsys, monkeypatch, tmp_path):
    from vitq import launch

    seen = {}

    def run_notebook(*arguments, **options):
        seen.update(arguments=arguments, **options)
        return launch.RunResult(tmp_path / "o.ipynb", {}, tmp_path / "r.json", 1.0)

    monkeypatch.setattr(launch, "run_notebook", run_notebook)
    code, out, _ = call(capsys, "run", "n.ipynb", "-f", "p.yml", "-p", "bits", "3", "-p", "lr", "1e-3", "-o", "o.ipynb")
    assert code == 0 and "r.json" in out
    assert seen["arguments"] == ("n.ipynb", "o.ipynb", "p.yml", {"bits": "3", "lr": "1e-3"}) and seen["from_text"]


def test_run_refuses_parameters_before_any_work(capsys, tmp_path):
    source = "bits: int = 4  # weight bits\ndata_path: str = ''\ndevice: str = 'cpu'"
    cell = {"cell_type": "code", "id": "a", "metadata": {"tags": ["parameters"]}, "source": source, "outputs": []}
    notebook = tmp_path / "n.ipynb"
    notebook.write_text(json.dumps({"cells": [cell], "metadata": {}, "nbformat": 4, "nbformat_minor": 5}))
    for parameter, code, words in (
        (("bitz", "3"), 2, "bits (int, default 4: weight bits)"),
        (("bits", "three"), 2, "must be int"),
        (("data_path", "absent"), 3, "data_path"),
        (("device", "cuda:99"), 3, "device"),
    ):
        found, _, err = call(capsys, "run", str(notebook), "-p", *parameter)
        assert found == code and words in err and err.count("\n") == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["n.ipynb"]


def test_compare_lists_claims_and_shows_rows_that_were_not_run(capsys, tmp_path):
    code, out, _ = call(capsys, "compare")
    assert code == 0 and "nagel2022_t8" in out
    code, out, _ = call(capsys, "compare", "nagel2022_t6", "--records", str(tmp_path))
    assert code == 0 and "not run: no record yet" in out and "70.5" in out
