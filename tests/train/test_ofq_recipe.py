"""OFQ's whole recipe at once: both losses, mixing, repeats, schedule; on two ranks, and killed within an epoch."""

import json
import os
import subprocess
import sys
import time

import pytest
import yaml
from safetensors.torch import load_file

from vitq.train import RunConfig

RUN = [sys.executable, "-m", "vitq.train"]
TWO = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "-m", "vitq.train"]
PAUSE = """
import runpy, sys, time
from vitq.train.step import TrainingStep
step = TrainingStep.__call__
TrainingStep.__call__ = lambda *arguments: (time.sleep(0.3), step(*arguments))[1]
runpy.run_module("vitq.train", run_name="__main__")
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory, draw_folder):
    return draw_folder(tmp_path_factory.mktemp("images"), (13, 13), (13, 13), size=(40, 44), grow=0, suffix="png")


@pytest.fixture
def config(folder, tmp_path):
    """The configuration as a file; the network stays in floating point, where sums over ranks are all that differs."""
    def make(**changes):
        fields = {
            "model": "vit_micro", "quant": None, "evaluate_before": False, "scale": "smoke",
            "teacher": {"kind": "hard_and_soft"},
            "data": {"name": "imagenet", "path": str(folder), "image_size": 32, "augmentation": {
                "auto_augment": "rand-m9-mstd0.5-inc1", "erasing": 0.25, "interpolation": "random", "mixup": 0.8,
                "cutmix": 1.0, "repeats": 3}},
            "train": {"epochs": 2, "batch_size": 8, "optimizer": "adamw", "learning_rate": 1e-3, "weight_decay": 0.05,
                      "min_learning_rate": 1e-5, "warmup_epochs": 1, "cooldown_epochs": 1, "schedule_per": "epoch",
                      "decay": "transformer", "scale_learning_rate": "with_weights", "device": "cpu", "log_every": 1,
                      "checkpoint_every": 2},
        } | changes
        file = tmp_path / "run.yml"
        file.write_text(yaml.safe_dump(RunConfig.from_dict(fields).to_dict()))
        return file
    return make


def start(command, file, out):
    return subprocess.Popen([*command, "--config", str(file), "--out", str(out)], stdout=subprocess.PIPE,
                            stderr=subprocess.STDOUT, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})


def finish(process):
    output = process.communicate(timeout=150)[0]
    assert process.returncode == 0, output[-2000:]


def log(out):
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def test_two_ranks_see_what_one_sees(config, tmp_path):
    file = config()
    processes = [start(command, file, tmp_path / name) for name, command in (("one", RUN), ("two", TWO))]
    for process in processes:
        finish(process)
    one, two = log(tmp_path / "one"), log(tmp_path / "two")
    assert len(one) == len(two) == 10  # 3 epochs of 3 batches, the last evaluation
    assert [line.get("learning_rate") for line in one] == [line.get("learning_rate") for line in two]
    assert {line["learning_rate"] for line in one[:3]} == {1e-6} and one[8]["learning_rate"] == 1e-5
    assert [line["loss"] for line in two] == pytest.approx([line["loss"] for line in one], abs=2e-4)
    assert one[0]["loss"] > 1, "two cross-entropies"


def test_killed_in_the_middle_of_an_epoch_it_ends_the_same(config, tmp_path):
    quant = {"weight_bits": 3, "act_bits": 3, "weight": "statsq", "act": "offset_lsq", "activation_scales": "token",
             "first_last_weight": "lsq", "image_bits": 8, "query_key": "reparameterized"}
    file = config(quant=quant)
    whole = start(RUN, file, tmp_path / "whole")
    killed = start([sys.executable, "-c", PAUSE], file, tmp_path / "killed")
    deadline = time.monotonic() + 60
    while not (tmp_path / "killed" / "checkpoints" / "step-0000000004").exists():
        assert time.monotonic() < deadline and killed.poll() is None, killed.stdout.read()
        time.sleep(0.02)
    killed.kill()
    killed.wait()
    assert not (tmp_path / "killed" / "result.json").exists()
    finish(whole)
    finish(start(RUN, file, tmp_path / "killed"))
    assert log(tmp_path / "whole") == log(tmp_path / "killed")
    first, second = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "killed"))
    assert first.keys() == second.keys() and all(first[name].equal(second[name]) for name in first)


@pytest.mark.parametrize("section, message", [
    ({"mixup": -1.0}, "data.augmentation.mixup=-1.0"), ({"mixp": 1.0}, "did you mean 'mixup'"),
    ({"auto_augment": "random"}, "auto_augment='random'")])
def test_wrong_augmentation_is_one_line_before_any_work(config, tmp_path, section, message):
    file = config()
    text = yaml.safe_load(file.read_text())
    text["data"]["augmentation"] = section
    file.write_text(yaml.safe_dump(text))
    process = start(RUN, file, tmp_path / "out")
    output = process.communicate(timeout=60)[0]
    assert process.returncode == 2 and message in output and output.count("\n") == 1
    assert not (tmp_path / "out").exists()
