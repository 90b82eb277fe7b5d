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


STOPPED = """
import json, sys
sys.path.insert(0, {here!r})
from conftest import network, problem
from vitq.train import Callback, TrainConfig, fit
from vitq.train.ranks import Ranks


class Stop(Callback):
    def after_step(self, state):
        if state.step == int(sys.argv[2]):
            raise KeyboardInterrupt


config = TrainConfig(steps=8, batch_size=16, learning_rate=0.05, log_every=4, checkpoint_every=2, device="cpu")
try:
    result = fit(network(norm=False), problem(), config, callbacks=[Stop()], out=sys.argv[1])
except KeyboardInterrupt:
    sys.exit(0)
if Ranks("cpu").main:
    json.dump([line["loss"] for line in result.history if line["event"] == "train"], open(sys.argv[1] + "/seen", "w"))
"""


def test_a_log_line_over_a_resume_has_the_loss_of_all_ranks(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(STOPPED.format(here=os.path.dirname(__file__)))
    for folder, stop in (("whole", -1), ("broken", 7), ("broken", -1)):
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", str(script),
                   str(tmp_path / folder), str(stop)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120,
                              env=os.environ | {"OMP_NUM_THREADS": "1"})
        assert done.returncode == 0, done.stderr[-2000:]
    whole, broken = (json.loads((tmp_path / folder / "seen").read_text()) for folder in ("whole", "broken"))
    assert len(whole) == 2 and broken[-1] == whole[-1]


TWO_HEADS = """
import json, sys
import torch
from timm.models.deit import VisionTransformerDistilled
sys.path.insert(0, {here!r})
from conftest import problem
from vitq.train import HardAndSoftDistillation, TrainConfig, fit
from vitq.train.ranks import Ranks
torch.manual_seed(0)
nets = [VisionTransformerDistilled(img_size=8, patch_size=4, embed_dim=16, depth=1, num_heads=2, num_classes=4)
        for _ in range(2)]
nets[0].set_distilled_training(True)
config = TrainConfig(steps=4, batch_size=16, learning_rate=0.1, log_every=1, device="cpu")
result = fit(nets[0], problem(), config, evaluate=problem(31, seed=5), loss=HardAndSoftDistillation(nets[1]))
if Ranks("cpu").main:
    with open(sys.argv[1], "w") as file:
        json.dump([[line["loss"] for line in result.history[:-1]], result.final["loss"]], file)
"""


def test_two_heads_on_two_ranks(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(TWO_HEADS.format(here=os.path.dirname(__file__)))
    seen = []
    for ranks in (1, 2):
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={ranks}",
                   str(script), str(tmp_path / f"{ranks}.json")]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120,
                              env=os.environ | {"OMP_NUM_THREADS": "1"})
        assert done.returncode == 0, done.stderr[-2000:]
        seen.append(json.loads((tmp_path / f"{ranks}.json").read_text()))
    assert seen[1][0] == pytest.approx(seen[0][0], abs=1e-5) and seen[1][1] == pytest.approx(seen[0][1], abs=1e-5)
