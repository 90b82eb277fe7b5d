"""`bench_gpu.py --recipe`: a paper's recipe through its notebook on generated images, killed once and gone on with.

The parameter file is that of a full run, with as many epochs as fit the minutes, on JPEG files of 224 x 224 pixels in
ten classes; weights are random. The training process gets a SIGKILL after half of the steps of the (last) stage, and
the same command is given again. OFQ's annealing comes after its first stage, as in a full run.
"""

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil
import yaml

from vitq import environment
from vitq.train import cost, cost_check, rows

RECIPES = {"nagel": ("nagel2022", "nagel_imagenet_t6_mobilenetv2_w3a3_freeze"),
           "ofq": ("ofq2023", "ofq_imagenet_main_deit_t_w2a2")}
EPOCH = 20  # steps
LATER = 0.1  # share of the minutes for a stage that continues another


def measure(recipe: str, minutes: float, device: str, network: str | None, batch: int, size: int) -> dict[str, Any]:
    """Run it twice, the first time until it is killed; images a second, and whether the record is there."""
    paper, name = RECIPES[recipe]
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        cost_check.draw(folder / "images", EPOCH * batch, 2 * batch, (224, 224))
        file = parameters(name, folder, minutes, device, network, batch, size)
        command = [sys.executable, "-m", "vitq.cli", "run", f"notebooks/{paper}/imagenet.ipynb", "-f", str(file),
                   "-o", str(folder / "out.ipynb")]
        for key, place in (("data_path", "images"), ("out", "run"), ("record", "record.json")):
            command += ["-p", key, str(folder / place)]
        log = folder / "run" / "seed-0" / "metrics.jsonl"
        killed_at = _run(command, log, steps(file) // 2)
        print(f"killed after step {killed_at}; the same command again", flush=True)
        _run(command, log, None)
        result = json.loads((log.parent / "result.json").read_text())
        done = json.loads((folder / "record.json").read_text())["status"] == "done"
        stages = [json.loads(found.read_text()) for found in folder.glob("*/seed-0/result.json")]
    images = sum(stage["steps"] * batch for stage in stages)
    seconds = sum(stage["seconds"] for stage in stages)
    found = {"recipe": name, "killed_at": killed_at, "steps": result["steps"], "seconds": round(seconds, 1),
             "images_per_second": round(images / seconds, 1), "train_loss": result["metrics"]["train_loss"],
             "record": done}
    print("  ".join(f"{key}: {value}" for key, value in found.items()))
    return found


def parameters(name: str, folder: Path, minutes: float, device: str, network: str | None, batch: int,
               size: int) -> Path:
    """The parameter file of a full run made short, and of the stage before it; returns the last one's path."""
    given = yaml.safe_load((rows.folder() / f"{name}.yml").read_text())
    config, stage = given["config"], "continues" in given
    share = LATER if stage else 1 - LATER
    if stage:
        given["continues"] = str(parameters(given["continues"], folder, minutes, device, network, batch, size))
    config |= {"pretrained": False, "scale": "smoke"} | ({"model": network} if network else {})
    config["data"] |= {"image_size": size}
    config["train"] |= {"batch_size": batch, "device": device, "log_every": 1, "channels_last": True,
                        "precision": "bf16" if device == "cuda" else "no"}
    config["train"] |= {key: 1 for key in ("warmup_epochs", "cooldown_epochs") if config["train"].get(key)}
    made = rows.make(config, given["published"], [0], name, unpublished=given.get("unpublished", False))
    speed = cost.measure(made.config, classes=cost_check.CLASSES)
    config["train"]["epochs"] = max(2, round(share * 60 * minutes * speed.images_per_second / batch / EPOCH))
    file = folder / f"{name}.yml"
    file.write_text(yaml.safe_dump(given | {"scale": "smoke", "seeds": [0], "config": config}, sort_keys=False))
    return file


def steps(file: Path) -> int:
    """Of the run that a parameter file made by `parameters` describes."""
    return rows.read(file).config.train.total_steps(EPOCH)


def _run(command: list[str], log: Path, until: int | None) -> int:
    """Give the command; kill the training process once its log has passed a step. Returns the step reached.

    Raises:
        RuntimeError: the command failed, or was to be killed and ended before.
    """
    process = subprocess.Popen(command, stdout=sys.stderr, cwd=environment.home(), env=os.environ)
    while until is not None and process.poll() is None and _reached(log) < until:
        time.sleep(0.05)
    reached = _reached(log)
    if until is not None and process.poll() is None:
        for child in psutil.Process(process.pid).children(recursive=True):
            with contextlib.suppress(psutil.Error):
                if "--out" in child.cmdline() and "torch.distributed.run" not in child.cmdline():
                    child.kill()
    if bool(process.wait()) is (until is None):
        raise RuntimeError(f"{' '.join(command)} ended with status {process.returncode} after step {reached}")
    return reached


def _reached(log: Path) -> int:
    """Number of the last step in a metrics.jsonl that may be cut off."""
    lines = log.read_text().splitlines() if log.is_file() else []
    return max((json.loads(line).get("step", 0) for line in lines if line.endswith("}")), default=0)
