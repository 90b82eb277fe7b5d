import io
import json
import sys
import types

import pytest
import torch

from vitq.errors import MissingError
from vitq.train import logs


def test_a_resumed_log_has_no_line_twice_and_survives_a_cut_line(tmp_path):
    path = tmp_path / "metrics.jsonl"
    log = logs.MetricsLog(path)
    for step in (2, 4, 6):
        log.write(step=step, loss=torch.tensor(step / 8))
    path.write_text(path.read_text() + '{"step": 7, "lo')
    again = logs.MetricsLog(path, step=4)
    again.write(step=6, loss=0.75)
    assert again.history == log.history == [json.loads(line) for line in path.read_text().splitlines()]
    assert logs.MetricsLog(path).history == [] and path.read_text() == "", "a run from the start begins a new log"


def test_tensorboard_gets_the_same_numbers_and_its_absence_is_one_line(tmp_path, monkeypatch):
    seen = []

    class Writer:
        def __init__(self, folder, purge_step=None):
            seen.append((folder, purge_step))

        def add_scalar(self, *scalar):
            seen.append(scalar)

        def flush(self):
            pass

    name = "torch.utils.tensorboard"
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(MissingError, match="pip install tensorboard"):
        logs.MetricsLog(tmp_path / "metrics.jsonl", tensorboard=True)
    monkeypatch.setitem(sys.modules, name, types.SimpleNamespace(SummaryWriter=Writer))
    logs.MetricsLog(tmp_path / "metrics.jsonl", tensorboard=True).write(event="train", step=2, loss=torch.tensor(0.5))
    logs.MetricsLog(tmp_path / "metrics.jsonl", step=2, tensorboard=True)
    assert seen == [(str(tmp_path / "tensorboard"), None), ("train/loss", 0.5, 2), (str(tmp_path / "tensorboard"), 3)]
    assert logs.MetricsLog(None, tensorboard=True).board is None


@pytest.fixture
def clock(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(logs.time, "monotonic", lambda: now[0])
    return now


def drive(clock, stream, monkeypatch, active=True):
    monkeypatch.setattr(sys, "stderr", stream)
    progress = logs.Progress(100, active=active)
    for step in range(1, 101):
        clock[0] += 1.0
        progress.describe(0.5)
        progress.update(step)
    progress.close()
    return stream.getvalue()


def test_without_a_terminal_a_line_at_most_each_30_seconds(clock, monkeypatch):
    text = drive(clock, io.StringIO(), monkeypatch)
    assert [line.split(",")[0] for line in text.splitlines()] == ["step 31/100", "step 62/100", "step 93/100"]
    assert "loss 0.5000" in text and "\r" not in text
    assert drive(clock, io.StringIO(), monkeypatch, active=False) == ""


def test_a_notebook_stays_quiet_and_a_terminal_gets_a_bar(clock, monkeypatch):
    kernel = type("OutStream", (io.StringIO,), {"__module__": "ipykernel.iostream"})
    assert drive(clock, kernel(), monkeypatch) == ""
    terminal = type("Terminal", (io.StringIO,), {"isatty": lambda self: True})
    assert "\r" in drive(clock, terminal(), monkeypatch)
