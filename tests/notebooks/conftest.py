"""An ImageNet-shaped folder of drawn pictures: enough to run the code of the full notebook."""

import os
import subprocess
import sys
import time

import psutil
import pytest


@pytest.fixture(scope="session")
def imagenet_folder(tmp_path_factory, draw_folder):
    """`train/` and `val/` with 2 classes of 8 and 4 JPEG files each."""
    return draw_folder(tmp_path_factory.mktemp("imagenet"), (8, 8), (4, 4), size=(72, 96), grow=0)


@pytest.fixture(scope="session")
def shown_outputs():
    """All outputs of a committed notebook as JSON, after a look at the parameter files that it says it showed."""
    import hashlib
    import json

    import nbformat
    from contents import ROOT

    def read(path, stages=lambda row: [row]):
        notebook = nbformat.read(path, as_version=4)
        facts = notebook.metadata.vitq
        for name in stages(facts["parameters"]["row"]):
            file = ROOT / "notebooks" / "params" / "full" / f"{name}.yml"
            assert facts["data"][name] == hashlib.sha256(file.read_bytes()).hexdigest()[:16]
        return json.dumps([cell.get("outputs", []) for cell in notebook.cells])

    return read


@pytest.fixture(scope="session")
def coco_folder(tmp_path_factory):
    """COCO's layout with four generated images and as many for training; the annotations begin with the last image."""
    import json

    from vitq.detection import make_shapes

    root = tmp_path_factory.mktemp("coco")
    for split, seed in (("val2017", 8), ("train2017", 9)):
        made = make_shapes(root / split, 4, seed=seed, size=96)
        content = json.loads(made.file.read_text())
        made.file.unlink()
        content["images"].reverse()
        (root / "annotations").mkdir(exist_ok=True)
        (root / "annotations" / f"instances_{split}.json").write_text(json.dumps(content))
    return root


class FullRun:
    """The notebook of the full runs as a process of its own, started on a smoke file and killed while it trains."""

    def __init__(self, notebook, smoke, data):
        self.notebook, self.smoke, self.data = notebook, smoke, data

    def start(self, folder):
        """Run the notebook with everything that it writes in `folder`."""
        command = [sys.executable, "-m", "vitq.cli", "run", str(self.notebook), "-q", "-f", str(self.smoke), "-o",
                   str(folder / "out.ipynb"), "-p", "data_path", str(self.data), "-p", "out", str(folder / "run"),
                   "-p", "record", str(folder / "record.json")]
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                                env=os.environ | {"OMP_NUM_THREADS": "1"})

    @staticmethod
    def kill_training(process, run, step, limit=200):
        """SIGKILL to the training process (a child of torchrun) once it has passed a step; returns the output."""
        log, deadline = run / "seed-0" / "metrics.jsonl", time.monotonic() + limit
        while not log.is_file() or sum('"train"' in line for line in log.read_text().splitlines()) < step:
            assert process.poll() is None and time.monotonic() < deadline, process.stdout.read()
            time.sleep(0.005)
        found = [child for child in psutil.Process(process.pid).children(recursive=True)
                 if "--out" in child.cmdline() and "torch.distributed.run" not in child.cmdline()]
        assert len(found) == 1, found
        found[0].kill()
        output = process.communicate(timeout=100)[0]
        assert process.returncode == 1
        return output


@pytest.fixture(scope="session")
def full_run():
    """The class `FullRun`."""
    return FullRun
