import json
import os
import subprocess
import sys

import pytest

from vitq.train import fit

SCRIPT = """
import json, sys
sys.path.insert(0, {here!r})
from conftest import network, problem
from vitq.train import TrainConfig, evaluate, fit
from vitq.train.ranks import Ranks
config = TrainConfig(steps=6, batch_size=16, learning_rate=0.05, log_every=2, accumulation=2, device="cpu")
net = network(norm=False)
result = fit(net, problem(), config, evaluate=problem(31, seed=5), out=sys.argv[1])
if Ranks("cpu").main:
    json.dump([result.history, result.final, net[0].bias.tolist()], open(sys.argv[1] + "/seen.json", "w"))
"""


def test_two_ranks_equal_one_process_at_the_same_batch(make_network, make_problem, config, tmp_path):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT.format(here=os.path.dirname(__file__)))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", str(script),
               str(tmp_path)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment)
    assert done.returncode == 0, done.stderr[-2000:]
    history, final, bias = json.loads((tmp_path / "seen.json").read_text())
    net = make_network(norm=False)
    alone = fit(net, make_problem(), config(steps=6, log_every=2), evaluate=make_problem(31, seed=5))
    assert final["images"] == 31
    for name, value in alone.final.items():
        assert final[name] == pytest.approx(value, abs=1e-5), name
    assert [line["loss"] for line in history] == pytest.approx([line["loss"] for line in alone.history], abs=1e-5)
    assert bias == pytest.approx(net[0].bias.tolist(), abs=1e-5)
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 4
