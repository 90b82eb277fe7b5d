"""kill -9 of one of two ranks, ten times over at random moments: the same call ends as an uninterrupted run does."""

import json
import os
import subprocess
import sys

import pytest

# One process imports everything and forks the ranks of each attempt, so that an attempt costs no imports.
SCRIPT = """
import json, os, random, signal, socket, sys, time, traceback
os.environ["OMP_NUM_THREADS"] = "1"
sys.path.insert(0, {here!r})
from conftest import digest, network, problem
import accelerate, vitq
from vitq.oscillation import OscillationTracking
from vitq.papers.nagel2022.freezing import IterativeFreezing
from vitq.train import Callback, TrainConfig, fit
from vitq.train.ranks import Ranks

STEPS, folder = 160, sys.argv[1]

class Slow(Callback):
    def after_step(self, state):
        time.sleep(0.002)

def rank(index, port, out):
    os.environ |= dict(RANK=str(index), LOCAL_RANK=str(index), WORLD_SIZE="2", LOCAL_WORLD_SIZE="2",
                       MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    os.dup2(os.open(out + ".log", os.O_WRONLY | os.O_CREAT | os.O_APPEND), 2)
    net = vitq.quantize(network(norm=False, dropout=0.1), vitq.QuantSpec(weight_bits=3, act_bits=4))
    vitq.calibrate(net, [problem()[0]])
    remedies = [OscillationTracking(0.05), IterativeFreezing(0.2, 0.1, momentum=0.05, begin=0.1), Slow()]
    config = TrainConfig(steps=STEPS, batch_size=16, learning_rate=0.1, checkpoint_every=8, evaluate_every=16,
                         log_every=1, device="cpu")
    result = fit(net, problem(), config, callbacks=remedies, evaluate=problem(31, seed=2), out=out)
    if Ranks("cpu").main:
        state = {{name: value.double().sum().item() for name, value in remedies[1].state_dict().items()}}
        json.dump([digest(net), result.final, state], open(out + ".json", "w"))

def attempt(out, kill_at=None):
    '''Start two ranks; kill one when the log of the run has so many bytes more, and end the other.'''
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    children = []
    for index in range(2):
        child = os.fork()
        if not child:
            status = 1
            try:
                rank(index, port, out)
                status = 0
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(status)
        children.append(child)
    log, died = out + "/metrics.jsonl", False
    before = os.path.getsize(log) if os.path.exists(log) else 0
    while kill_at is not None and not died:
        time.sleep(0.002)
        died = os.waitpid(children[0], os.WNOHANG)[0] != 0
        if os.path.exists(log) and abs(os.path.getsize(log) - before) >= kill_at:
            break
    if kill_at is None:
        return [os.waitpid(child, 0)[1] for child in children]
    time.sleep(random.uniform(0, 0.05))
    victim = random.randrange(2)
    for child in (children[victim], children[1 - victim]):
        if not (died and child == children[0]):
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
    return died

random.seed(int(sys.argv[2]))
assert attempt(folder + "/whole") == [0, 0], open(folder + "/whole.log").read()
early = [attempt(folder + "/killed", random.randrange(1, 2500)) for _ in range(10)]
steps = sorted(os.listdir(folder + "/killed/checkpoints"))
assert attempt(folder + "/killed") == [0, 0], open(folder + "/killed.log").read()
print(json.dumps([early, steps]))
"""


@pytest.mark.slow
def test_ten_kills_of_a_rank_change_nothing(tmp_path):
    command = [sys.executable, "-c", SCRIPT.format(here=os.path.dirname(__file__)), str(tmp_path), "0"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=1200)
    assert done.returncode == 0, done.stderr[-3000:]
    early, steps = json.loads(done.stdout.splitlines()[-1])
    assert not any(early), "a rank ended by itself before it was killed"
    assert steps, "it was always killed before the first checkpoint"
    whole, killed = (json.loads((tmp_path / f"{name}.json").read_text()) for name in ("whole", "killed"))
    assert whole == killed
    assert whole[1]["frozen"] > 0, "nothing was frozen: the test is vacuous"
    assert (tmp_path / "whole" / "metrics.jsonl").read_text() == (tmp_path / "killed" / "metrics.jsonl").read_text()
