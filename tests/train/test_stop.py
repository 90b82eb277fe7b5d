"""SIGTERM in the middle of training: a checkpoint, a clear line, status 143, no process left; then it goes on."""

import json
import os
import signal
import subprocess
import sys
import time

import psutil
import pytest

from vitq.train import Callback, fit, stop
from vitq.train.checkpoints import list_checkpoints

SCRIPT = """
import json, sys, time
sys.path.insert(0, {here!r})
from conftest import network, problem
from vitq.train import Callback, TrainConfig, fit, stop
from vitq.train.ranks import Ranks

class Slow(Callback):
    def after_step(self, state):
        time.sleep(0.05)

config = TrainConfig(steps=40, batch_size=16, learning_rate=0.05, log_every=1, checkpoint_every=0, device="cpu")
try:
    with stop.listening():
        result = fit(network(norm=False), problem(), config, evaluate=problem(31, seed=5), out=sys.argv[1],
                     callbacks=[Slow()])
except stop.Stopped as error:
    if Ranks("cpu").main:
        print(error, flush=True)
    sys.exit(error.code)
if Ranks("cpu").main:
    json.dump([result.history, result.final], open(sys.argv[1] + "/seen.json", "w"))
"""
TORCHRUN = """
import sys
from vitq.processes import RunFailed, torchrun
try:
    torchrun(sys.argv[1:], nproc=2)
except RunFailed as error:
    print(error)
    sys.exit(error.code)
"""
NOTEBOOK = """
import json, sys
from vitq import launch
cell = f"from vitq.processes import torchrun; torchrun({sys.argv[1:]}, nproc=2)"
cells = [{"cell_type": "code", "id": name, "metadata": {"tags": tags}, "source": source, "execution_count": None,
          "outputs": []} for name, tags, source in (("a", ["parameters"], "x: int = 1"), ("b", [], cell))]
kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
book = sys.argv[2] + "/n.ipynb"
with open(book, "w") as file:
    json.dump({"cells": cells, "metadata": kernel, "nbformat": 4, "nbformat_minor": 5}, file)
try:
    launch.run_notebook(book, sys.argv[2] + "/out.ipynb")
except launch.RunFailed as error:
    print(error)
    sys.exit(error.code)
"""


class Signal(Callback):
    """Sends a signal to this process after a step."""

    def __init__(self, step, number=signal.SIGTERM):
        self.step, self.number = step, number

    def after_step(self, state):
        if state.step == self.step:
            signal.raise_signal(self.number)


@pytest.mark.parametrize("at", [3, 5, 10, 17])  # an ordinary step, one with an evaluation, with a checkpoint, the last
@pytest.mark.parametrize("number", stop.SIGNALS)
def test_a_stopped_run_has_a_checkpoint_of_that_step_and_ends_bit_for_bit_the_same(
        data, make_network, config, digest_of, tmp_path, at, number):
    settings = config(steps=17, checkpoint_every=10, evaluate_every=5, log_every=3)

    def attempt(folder, step=0):
        net, sender = make_network(dropout=0.2), Signal(step, number)
        result = fit(net, data, settings, callbacks=[sender], evaluate=data, out=tmp_path / folder)
        return digest_of(net), result.history, result.final

    whole = attempt("whole")
    with stop.listening(), pytest.raises(stop.Stopped, match=f"{number.name}: .*step-{at:010d} is written"):
        attempt("stopped", at)
    assert attempt("stopped") == whole
    assert (tmp_path / "stopped" / "metrics.jsonl").read_text() == (tmp_path / "whole" / "metrics.jsonl").read_text()


def test_a_signal_in_an_evaluation_ends_it_at_once_and_loses_no_step(data, make_network, config, digest_of, tmp_path):
    settings = config(steps=17, checkpoint_every=5, evaluate_every=5)
    asked = []

    def evaluate(net):
        asked.append(len(asked))
        if len(asked) == 2 and "stopped" in folder.name:
            signal.raise_signal(signal.SIGTERM)
            assert not time.sleep(5), "it went on"
        return {"top1": float(net(data[0]).argmax(1).sum())}

    folder = stopped = tmp_path / "stopped"
    with stop.listening(), pytest.raises(stop.Stopped):
        fit(make_network(), data, settings, evaluate=evaluate, out=folder)
    assert list_checkpoints(folder / "checkpoints")[-1].name == "step-0000000010"
    results = []
    for folder in (stopped, tmp_path / "whole"):
        net = make_network()
        results.append([fit(net, data, settings, evaluate=evaluate, out=folder).history, digest_of(net)])
    assert results[0] == results[1]


def test_outside_of_a_run_the_signals_are_what_they_were(data, make_network, config, tmp_path):
    before = [signal.getsignal(number) for number in stop.SIGNALS]
    with stop.listening(), pytest.raises(stop.Stopped, match="SIGUSR1"):
        signal.raise_signal(signal.SIGUSR1)
    assert [signal.getsignal(number) for number in stop.SIGNALS] == before
    with stop.listening():  # the old signal is forgotten
        fit(make_network(), data, config(), out=tmp_path)


@pytest.mark.parametrize("parent", [TORCHRUN, NOTEBOOK], ids=["torchrun", "notebook"])
def test_sigterm_to_the_parent_of_two_ranks(make_network, make_problem, config, tmp_path, parent):
    script, log = tmp_path / "script.py", tmp_path / "metrics.jsonl"
    script.write_text(SCRIPT.format(here=os.path.dirname(__file__)))
    command = [sys.executable, "-c", parent, str(script), str(tmp_path)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment)
    deadline = time.monotonic() + 120
    while not log.exists() or not log.read_text():
        assert process.poll() is None and time.monotonic() < deadline, process.stdout.read()
        time.sleep(0.02)
    family = psutil.Process(process.pid).children(recursive=True)
    assert len(family) >= (3 if parent is TORCHRUN else 5), "torchrun and two ranks; papermill and its kernel"
    process.send_signal(signal.SIGTERM)
    said = process.communicate(timeout=60)[0]
    assert process.returncode == 143, said
    if parent is TORCHRUN:
        assert "stopped by" in said and "is written; the same command goes on" in said and "Traceback" not in said
    else:
        assert "was interrupted by SIGTERM" in said
    assert not [one for one in family if one.is_running() and one.status() != psutil.STATUS_ZOMBIE]
    (checkpoint,) = (tmp_path / "checkpoints").iterdir()
    assert 2 <= int(checkpoint.name.removeprefix("step-")) < 40
    if parent is NOTEBOOK:
        return  # the same ranks go on
    again = subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment)
    assert again.returncode == 0, again.stdout + again.stderr
    history, final = json.loads((tmp_path / "seen.json").read_text())
    alone = fit(make_network(norm=False), make_problem(), config(steps=40, log_every=1), evaluate=make_problem(31, 5))
    assert [line["step"] for line in history] == [line["step"] for line in alone.history]
    assert [line["loss"] for line in history] == pytest.approx([line["loss"] for line in alone.history], abs=1e-5)
    assert final == pytest.approx(alone.final, abs=1e-5)
