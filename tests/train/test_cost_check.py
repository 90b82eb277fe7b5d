"""The comparison of an estimate with a run: it trains the real recipe, and says how far off the estimate is."""

import csv
import dataclasses

import pytest
import yaml

from vitq.environment import home
from vitq.train import cost, cost_check, rows

SMOKE = home() / "notebooks" / "params" / "smoke"


def parameters(paper, tmp_path):
    given = yaml.safe_load((SMOKE / f"{paper}_imagenet.yml").read_text())
    given["config"]["train"] |= {"device": "cpu"}
    given.pop("continues", None)
    file = tmp_path / f"{paper}.yml"
    file.write_text(yaml.safe_dump(given))
    return str(file)


@pytest.mark.parametrize("paper", ["nagel", "ofq", "vvtq"])
def test_a_run_of_each_paper_is_timed(tmp_path, monkeypatch, paper):
    monkeypatch.setattr(cost_check, "WIDTH", 48)
    monkeypatch.setattr(cost_check, "HEIGHT", 40)
    out = tmp_path / "cost.csv"
    status = cost_check.main([parameters(paper, tmp_path), "--steps", "5", "--rounds", "1", "--batch-size", "4",
                              "--out", str(out)])
    (line,) = csv.DictReader(out.read_text().splitlines())
    assert line["run"] == paper and (line["batch"], line["steps"]) == ("4", "1 x 5")
    estimated, measured = float(line["estimated (s)"]), float(line["measured (s)"])
    assert measured > 0
    assert float(line["off by (%)"]) == pytest.approx(100 * (estimated / measured - 1), abs=2)
    assert status == (abs(float(line["off by (%)"])) > 25)


def test_an_estimate_that_is_off_is_found(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(cost_check, "WIDTH", 48)
    monkeypatch.setattr(cost_check, "HEIGHT", 40)
    real = cost.measure
    monkeypatch.setattr(cost, "measure", lambda *args, **kwargs: dataclasses.replace(
        real(*args, **kwargs), images_per_second=1e6))
    file = parameters("nagel", tmp_path)
    assert cost_check.main([file, "--steps", "5", "--rounds", "1", "--batch-size", "4"]) == 1
    assert "off by (%): -100" in capsys.readouterr().out
    assert cost_check.main([file, "--steps", "2"]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_all_of_a_recipe_but_its_length_and_data_is_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(cost_check, "draw", lambda *args: None)
    given = rows.read("ofq_imagenet_main_deit_t_w2a2").config
    made = cost_check.cut(given, 8, 16, tmp_path)
    assert (made.train.batch_size, made.limit_batches) == (16, 8) and made.remedies[:-1] == given.remedies
    same = ("model", "quant", "teacher", "stochastic_depth", "bn_reestimation", "evaluate_before")
    assert all(getattr(made, name) == getattr(given, name) for name in same)
    assert made.data.augmentation == given.data.augmentation and made.train.optimizer == given.train.optimizer
