"""The batch scripts: valid bash, existing commands, options and files; and what they do when SLURM interrupts them."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from contents import ROOT

from vitq import cli, parameters
from vitq.train import stages

FULL = ROOT / "notebooks" / "params" / "full"
SLURM = FULL / "slurm"
SCRIPTS = sorted(SLURM.glob("*.sbatch"))
SBATCH = {"job-name", "nodes", "ntasks", "ntasks-per-node", "gpus-per-node", "cpus-per-task", "mem", "time", "requeue",
          "signal", "open-mode"}
LISTS = {"nagel.txt": "nagel_*.yml", "ofq.txt": "ofq_*.yml", "vvtq.txt": "vvtq_*.yml"}


def commands() -> list[list[str]]:
    """Words of every command in the scripts and in the README, continued lines joined."""
    text = "\n".join(file.read_text() for file in [*SCRIPTS, SLURM / "common.sh"])
    text += "\n" + "\n".join(re.findall(r"```bash\n(.*?)```", (SLURM / "README.md").read_text(), re.DOTALL))
    lines = re.sub(r"\\\n\s*", "", text).splitlines()
    return [line.partition("  #")[0].split() for line in lines if not line.lstrip().startswith("#")]


def after(*start: str) -> list[list[str]]:
    """What follows a command wherever it is called."""
    found = []
    for words in commands():
        for i in range(len(words) - len(start) + 1):
            if tuple(word.rpartition("$(")[2] for word in words[i : i + len(start)]) == start:
                found.append(words[i + len(start) :])
    return found


@pytest.mark.parametrize("file", [*SCRIPTS, SLURM / "common.sh"], ids=lambda file: file.name)
def test_is_valid_bash(file):
    subprocess.run(["bash", "-n", str(file)], check=True)


@pytest.mark.parametrize("file", SCRIPTS, ids=lambda file: file.name)
def test_options_of_sbatch(file):
    lines = file.read_text().splitlines()
    options = [line.removeprefix("#SBATCH --").partition("=") for line in lines if line.startswith("#SBATCH")]
    assert lines[0] == "#!/bin/bash" and {name for name, _, _ in options} <= SBATCH
    assert ("requeue", "", "") in options and ("signal", "=", "B:TERM@120") in options
    first = next(i for i, line in enumerate(lines) if line and not line.startswith("#"))
    assert not any(line.startswith("#SBATCH") for line in lines[first:]), "sbatch reads no options after a command"


def test_commands_and_options_of_vitq_exist():
    known = cli._commands_of(cli.parser())
    assert {name for name, found in ((name, after("vitq", name)) for name in known) if found} == {
        "run", "data", "collect"}
    for name, parser in known.items():
        for words in after("vitq", name):
            inner = cli._commands_of(parser)
            here = inner[words[0]] if inner else parser
            options = {option for action in here._actions for option in action.option_strings}
            assert {word for word in words if re.fullmatch(r"--?[a-z-]+", word)} <= options, words
    (words,) = after("vitq", "run")
    for notebook in ("nagel2022", "ofq2023"):
        content = json.loads((ROOT / "notebooks" / notebook / "imagenet.ipynb").read_text())
        assert {words[i + 1] for i, word in enumerate(words) if word == "-p"} <= set(parameters.of_notebook(content))


def test_modules_and_their_options_exist(capsys):
    from torch.distributed.run import get_args_parser

    (words,) = after("python", "-m", "vitq.train.stages")
    with pytest.raises(SystemExit):
        stages.main(["--help"])
    helped = capsys.readouterr().out
    assert all(word in helped for word in words if word.startswith("--"))
    (words,) = after("torchrun")
    options = {option for action in get_args_parser()._actions for option in action.option_strings}
    own = words[: words.index("-m")]
    assert {word.partition("=")[0] for word in own} <= options and words[words.index("-m") + 1] == "vitq.train"
    for code in re.findall(r'python -c "(.*?)"', (SLURM / "README.md").read_text()):
        compile(code, "README", "exec")


def test_lists_are_the_parameter_files():
    text = (SLURM / "README.md").read_text()
    for name, pattern in LISTS.items():
        lines = (SLURM / name).read_text().splitlines()
        assert lines == sorted(file.stem for file in FULL.glob(pattern) if not file.stem.endswith("_stage1"))
        folder = "notebooks/params/full/slurm"
        assert f"--array=0-{len(lines) - 1} {folder}/array.sbatch {folder}/{name} " in text
    named = set(re.findall(r"\b(?:nagel|ofq|vvtq)_imagenet_\w+", text))
    assert named and all((FULL / f"{name}.yml").is_file() for name in named)
    for line in text.splitlines():
        for path in re.findall(r"notebooks/\S+\.(?:sbatch|txt)", line):
            assert (ROOT / path).is_file()


STUBS = {
    "vitq": 'echo "$@" >> calls; trap "echo TERM >> calls; exit 143" TERM; '
            'if [ -f hold ]; then for i in $(seq 300); do sleep 0.1; done; fi; exit $(cat code 2>/dev/null || echo 0)',
    "scontrol": '[ "$1" = show ] && { echo localhost; exit; }; echo "scontrol $@" >> calls',
    "srun": 'shift; for i in 1 2; do "$@" & pids="$pids $!"; done; code=0; '
            'for p in $pids; do wait $p || code=$?; done; exit $code',
}


@pytest.fixture
def checkout(tmp_path):
    """A folder laid out like the checkout, its `PATH` with stubs, and data folders."""
    shutil.copytree(SLURM, tmp_path / "notebooks" / "params" / "full" / "slurm")
    for name in ("ofq_imagenet_main_deit_t_w2a2", *(SLURM / "nagel.txt").read_text().split()):
        shutil.copy(FULL / f"{name}.yml", tmp_path / "notebooks" / "params" / "full")
    for name, body in STUBS.items():
        (tmp_path / "bin").mkdir(exist_ok=True)
        (tmp_path / "bin" / name).write_text(f"#!/bin/bash\n{body}\n")
        (tmp_path / "bin" / name).chmod(0o755)
    for split in ("train", "val"):
        (tmp_path / "data" / split).mkdir(parents=True)
    return tmp_path


def start(checkout: Path, script: str, *arguments: str, **variables: str) -> subprocess.Popen:
    """The script as SLURM starts it."""
    env = os.environ | {"PATH": f"{checkout}/bin:{Path(sys.executable).parent}:{os.environ['PATH']}", **variables}
    env |= {"SLURM_JOB_ID": "4711", "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(["bash", f"notebooks/params/full/slurm/{script}", *arguments], cwd=checkout, env=env,
                            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def calls(checkout: Path) -> list[str]:
    return (checkout / "calls").read_text().splitlines() if (checkout / "calls").is_file() else []


ROW = "ofq_imagenet_main_deit_t_w2a2"


def test_one_node_runs_the_notebook_of_the_row(checkout):
    process = start(checkout, "one_node.sbatch", ROW, "data")
    assert process.wait(20) == 0, process.stdout.read()
    (line,) = calls(checkout)
    assert line == (f"run notebooks/ofq2023/imagenet.ipynb -f notebooks/params/full/{ROW}.yml -o "
                    f"runs/notebooks/{ROW}.ipynb -p data_path data -p out {checkout}/runs/full/{ROW}")


@pytest.mark.parametrize("code", [1, 2, 3])
def test_failures_are_passed_on_and_not_queued_again(checkout, code):
    (checkout / "code").write_text(str(code))
    assert start(checkout, "one_node.sbatch", ROW, "data").wait(20) == code
    assert len(calls(checkout)) == 1


def test_sigterm_ends_the_run_and_queues_the_job_again(checkout):
    (checkout / "hold").touch()
    process = start(checkout, "one_node.sbatch", ROW, "data")
    deadline = time.monotonic() + 20
    while not calls(checkout):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    time.sleep(0.2)
    process.send_signal(signal.SIGTERM)
    assert process.wait(20) == 143, process.stdout.read()
    assert calls(checkout)[1:] == ["TERM", "scontrol requeue 4711"]


def test_array_takes_the_row_of_its_index(checkout):
    rows = (SLURM / "nagel.txt").read_text().split()
    listed = "notebooks/params/full/slurm/nagel.txt"
    for index in (0, 33):
        assert start(checkout, "array.sbatch", listed, "data", SLURM_ARRAY_TASK_ID=str(index)).wait(20) == 0
        assert f"nagel2022/imagenet.ipynb -f notebooks/params/full/{rows[index]}.yml " in calls(checkout)[-1]


@pytest.mark.parametrize("script, arguments, words", [
    ("one_node.sbatch", ["ofk", "data"], "there is no file notebooks/params/full/ofk.yml"),
    ("one_node.sbatch", [ROW, "absent"], "no train/ and val/ in 'absent'"), ("one_node.sbatch", [ROW], "give ROW"),
    ("array.sbatch", ["absent.txt", "data"], "there is no list absent.txt"),
    ("array.sbatch", ["notebooks/params/full/slurm/ofq.txt", "data"], "sbatch --array=0-8"),
    ("several_nodes.sbatch", ["ofk", "data"], "there is no file"),
])
def test_wrong_arguments_are_one_line(checkout, script, arguments, words):
    process = start(checkout, script, *arguments)
    output = process.communicate(timeout=20)[0]
    assert process.returncode == 2 and words in output and output.count("\n") == 1 and not calls(checkout)
    if script == "array.sbatch":
        process = start(checkout, script, "notebooks/params/full/slurm/ofq.txt", "data", SLURM_ARRAY_TASK_ID="9")
        assert "there is no index 9" in process.communicate(timeout=20)[0]


def test_a_job_that_was_queued_again_releases_its_own_locks_alone(checkout):
    names = (ROW, f"{ROW}_stage1", f"{ROW}_other")
    for name in names:
        (checkout / "runs" / "full" / name / "seed-0").mkdir(parents=True)
        (checkout / "runs" / "full" / name / "seed-0" / ".lock").touch()

    def locked():
        return [name for name in names if (checkout / "runs" / "full" / name / "seed-0" / ".lock").exists()]

    assert start(checkout, "one_node.sbatch", ROW, "data").wait(20) == 0 and locked() == list(names)
    assert start(checkout, "one_node.sbatch", ROW, "data", SLURM_RESTART_COUNT="1").wait(20) == 0
    assert locked() == [f"{ROW}_other"]


@pytest.mark.slow
def test_two_nodes_train_a_row_together(checkout, imagenet_folder):
    text = (FULL.parent / "smoke" / "nagel_imagenet.yml").read_text()
    row = checkout / "notebooks" / "params" / "full" / "nagel_tiny.yml"
    row.write_text(text.replace("epochs: 2", "epochs: 1"))
    process = start(checkout, "several_nodes.sbatch", "nagel_tiny", str(imagenet_folder), SLURM_NNODES="2",
                    SLURM_GPUS_ON_NODE="1", SLURM_JOB_NODELIST="node[1-2]", CUDA_VISIBLE_DEVICES="")
    output = process.communicate(timeout=150)[0]
    assert process.returncode == 0, output
    result = json.loads((checkout / "runs" / "full" / "nagel_tiny" / "seed-0" / "result.json").read_text())
    assert result["ranks"] == 2 and result["steps"] == 4
    assert calls(checkout) == ["collect runs/full/nagel_tiny"]
