"""The runs behind a row as files: the notebook's own configurations and folders, in order, without what is finished."""

import json

import pytest
from PIL import Image

from vitq import environment
from vitq.train import RunConfig, full, rows, stages

SMOKE = environment.home() / "notebooks" / "params" / "smoke" / "ofq_imagenet.yml"


@pytest.fixture
def images(tmp_path):
    for split in ("train", "val"):
        for name in ("a", "b"):
            (tmp_path / "images" / split / name).mkdir(parents=True)
            Image.new("RGB", (40, 40)).save(tmp_path / "images" / split / name / "0.png")
    return tmp_path / "images"


def test_both_stages_as_the_notebook_has_them(tmp_path, images, capsys):
    out = tmp_path / "runs" / "row"
    assert stages.main([str(SMOKE), "--data-path", str(images), "--out", str(out)]) == 0
    printed = capsys.readouterr().out.split()
    assert printed == [str(tmp_path / "runs" / "ofq_imagenet_stage1" / "seed-0"), str(out / "seed-0")]
    row = rows.read(SMOKE).changed(data={"path": str(images)})
    for stage, folder in zip(row.stages(), (out.parent / "ofq_imagenet_stage1", out), strict=True):
        (config,) = full.runs(stage, folder).values()
        assert RunConfig.from_yaml(folder / "seed-0" / "config.yml") == config
    assert config.continue_from == printed[0]
    first = RunConfig.from_yaml(f"{printed[0]}/config.yml")
    (out.parent / "ofq_imagenet_stage1" / "seed-0" / "result.json").write_text(json.dumps({"config_hash": first.hash}))
    assert stages.main([str(SMOKE), "--data-path", str(images), "--out", str(out)]) == 0
    assert capsys.readouterr().out.split() == printed[1:], "what is finished is not done again"


@pytest.mark.parametrize("row, data, code, words", [
    ("ofk", "images", 2, "there is no such parameter file"), (str(SMOKE), "absent", 3, "parameter data_path"),
    ("ofq_imagenet_main_deit_t_w2a2", "images", 2, "expected 1000"),
])
def test_what_is_wrong_is_one_line_before_any_file(tmp_path, images, capsys, row, data, code, words):
    assert stages.main([row, "--data-path", str(tmp_path / data), "--out", str(tmp_path / "runs")]) == code
    out, err = capsys.readouterr()
    assert words in err and err.count("\n") == 1 and out == "" and not (tmp_path / "runs").exists()
