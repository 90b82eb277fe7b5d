"""kill -9 in the middle of training, then the same command: it goes on and ends as an uninterrupted run does."""

import json
import os
import subprocess
import sys
import time

import pytest

SCRIPT = """
import json, sys, time
sys.path.insert(0, {here!r})
from conftest import digest, network, problem
import vitq
from vitq.oscillation import OscillationTracking
from vitq.papers.nagel2022.dampening import Dampening
from vitq.papers.nagel2022.freezing import IterativeFreezing
from vitq.train import Callback, TrainConfig, fit

class Slow(Callback):
    def after_step(self, state):
        time.sleep(float(sys.argv[2]))

net = vitq.quantize(network(dropout=0.1), vitq.QuantSpec(weight_bits=3, act_bits=4))
vitq.calibrate(net, [problem()[0]])
remedies = [OscillationTracking(0.05), IterativeFreezing(0.2, 0.1, momentum=0.05, begin=0.1), Dampening(0.0, 0.01)]
config = TrainConfig(steps=300, batch_size=16, learning_rate=0.1, checkpoint_every=20, log_every=10, device="cpu")
result = fit(net, problem(), config, callbacks=[*remedies, Slow()], evaluate=problem(50, seed=2), out=sys.argv[1])
state = {{name: value.double().sum().item() for name, value in remedies[1].state_dict().items()}}
json.dump([digest(net), result.final, state], open(sys.argv[1] + "/seen.json", "w"))
"""


@pytest.fixture
def start(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT.format(here=os.path.dirname(__file__)))
    began = []

    def launch(folder, pause):
        command = [sys.executable, str(script), str(tmp_path / folder), str(pause)]
        began.append(subprocess.Popen(command, stderr=subprocess.PIPE, text=True,
                                      env=os.environ | {"OMP_NUM_THREADS": "1"}))
        return began[-1]
    yield launch
    for process in began:
        process.kill()
        process.wait()


def test_a_killed_run_goes_on_and_ends_the_same(start, tmp_path):
    whole, killed = start("whole", 0), start("killed", 0.02)
    deadline = time.monotonic() + 60
    while not (tmp_path / "killed" / "checkpoints" / "step-0000000040").exists():
        assert time.monotonic() < deadline and killed.poll() is None, killed.stderr.read()
        time.sleep(0.05)
    time.sleep(0.1)
    killed.kill()
    killed.wait()
    assert not (tmp_path / "killed" / "seen.json").exists()
    assert killed.returncode == -9
    again = start("killed", 0)
    for process in (whole, again):
        assert process.wait(60) == 0, process.stderr.read()
    first, second = (json.loads((tmp_path / name / "seen.json").read_text()) for name in ("whole", "killed"))
    assert first == second
    assert first[2]["frozen"] > 0, "nothing was frozen: the test is vacuous"
    assert (tmp_path / "whole" / "metrics.jsonl").read_text() == (tmp_path / "killed" / "metrics.jsonl").read_text()
