"""`vitq plan`: every parameter file once, with the published value, cost and status that the book shows."""

import csv
import re
import shutil
from pathlib import Path

import pytest

from vitq import cli, comparison
from vitq.errors import InputError, MissingError
from vitq.plan_cli import plan
from vitq.train import rows
from vitq.train.plan import parameter_files

FULL = Path(__file__).parents[1] / "notebooks" / "params" / "full"


@pytest.fixture
def some(tmp_path):
    """A run, the two stages of another one, and a job that is no training run."""
    for name in ("nagel_imagenet_t6_mobilenetv2_w4a4_lsq", "ofq_imagenet_main_deit_t_w2a2",
                 "ofq_imagenet_main_deit_t_w2a2_stage1"):
        shutil.copy(FULL / f"{name}.yml", tmp_path)
    shutil.copy(FULL / "without_file.csv", tmp_path)
    (tmp_path / "other_job.yml").write_text("bits: 4\n")
    return tmp_path


def test_every_parameter_file_is_listed_once_with_its_published_value():
    listed = {entry["file"]: entry for entry in plan()}
    files = [file.stem for file in parameter_files(FULL)]
    assert set(files) <= set(listed) and len(listed) == len(plan())
    for name in files[::9]:
        paper = rows.published_top1(rows.read(name))
        assert listed[name]["published top-1"] == ("" if paper is None else f"{paper['value']:g}")
        assert listed[name]["status"] in ("done", "failed", "not run")
        assert listed[name]["status"] == "done" or listed[name]["reason"]


def test_the_command_prints_and_writes_the_same(some, capsys, tmp_path):
    out = tmp_path / "plan.csv"
    assert cli.main(["plan", "--params", str(some), "--out", str(out)]) == 0
    said = capsys.readouterr().out.splitlines()
    with open(out, newline="") as file:
        entries = list(csv.DictReader(file))
    assert [entry["file"] for entry in entries] == [line.split()[0] for line in said[1:5]]
    assert said[5].startswith("4 runs, 0 done")
    lsq = entries[0]
    assert lsq["published top-1"] == "69.5" and float(lsq["GPU hours"]) > 1 and float(lsq["disk in GB"]) > 0
    assert entries[-1]["file"] == "other_job" and not entries[-1]["GPU hours"]


def test_an_estimate_of_other_epochs_is_not_kept(some):
    file = some / "nagel_imagenet_t6_mobilenetv2_w4a4_lsq.yml"
    text = file.read_text()
    file.write_text(re.sub(r"epochs: \d+", "epochs: 7", text))
    assert not plan(some)[0]["GPU hours"] and plan(some)[1]["GPU hours"]


def test_published_accuracies_without_a_file_say_why(some):
    missing = [entry for entry in plan(some, without_file=True) if not entry["file"]]
    reasons = {(entry["table"], entry["method"]): entry["reason"] for entry in missing}
    assert "quoted by the paper" in reasons["T6", "PACT"]
    assert reasons["T6", "LSQ + Dampen"] == "no parameter file"
    table = comparison.published("nagel2022_t6")
    assert sum(entry["table"] == "T6" for entry in missing) == (table["metric"] == "top1").sum() - 1


def test_wrong_arguments_are_one_line(some, tmp_path):
    with pytest.raises(InputError, match="nagel2022, ofq2023"):
        plan(some, "nagel")
    with pytest.raises(MissingError, match="no parameter file"):
        plan(tmp_path / "nothing")


def test_jobs_without_training_stand_under_their_paper():
    lines = plan(paper="erq2024")
    assert {line["paper"] for line in lines} == {"erq2024"}
    imagenet, coco = ([line for line in lines if line["table"] == table] for table in ("", "COCO"))
    assert len(imagenet) == 21 and {line["bits"] for line in imagenet} == {"W3A4", "W4A4", "W5A5"}
    assert len({line["network"] for line in imagenet}) == 7
    assert len(coco) == 12 and {(line["method"], line["bits"]) for line in coco} == {
        ("erq", "W4A4"), ("repq", "W4A4"), ("repq", "W6A6")}  # fmt: skip
    assert coco[0]["run"] == coco[0]["file"].removeprefix("erq_coco_") and len({e["network"] for e in coco}) == 4
