"""OFQ's full runs: both stages are the scripts', and one command runs them and goes on after a kill in either."""

import csv
import dataclasses
import json

import pytest
import torch
from contents import ROOT

import vitq
from vitq import comparison
from vitq.errors import InputError
from vitq.papers.ofq2023 import ofq_spec
from vitq.train import full, report, rows
from vitq.train.remedies import build_remedy

FULL = ROOT / "notebooks" / "params" / "full"
LAST = sorted(file for file in FULL.glob("ofq_*.yml") if not file.stem.endswith("_stage1"))
NOTEBOOK = ROOT / "notebooks" / "ofq2023" / "imagenet.ipynb"
SMOKE = ROOT / "notebooks" / "params" / "smoke" / "ofq_imagenet.yml"
LIST = ROOT / "book" / "results" / "tables" / "ofq2023_full_runs.csv"
# Section 6.3 of the specification: images a step, rate, decay, warm-up epochs, mixup and cutmix, repeats
SCRIPTS = {"deit_t_w2a2": (560, 5.47e-4, 0.05, 5, (0, 0), 1), "deit_t_w3a3": (560, 5.47e-4, 0.05, 5, (0, 0), 1),
           "deit_t_w4a4": (560, 5.47e-4, 0.05, 5, (0, 0), 1), "deit_s_w2a2": (560, 5.47e-4, 0.05, 5, (0, 0), 1),
           "deit_s_w3a3": (800, 3.2e-4, 0.0, 0, (0.8, 1.0), 3), "deit_s_w4a4": (800, 3.2e-4, 0.0, 0, (0.8, 1.0), 3),
           "swin_t_w2a2": (512, 5e-4, 0.05, 5, (0, 0), 1), "swin_t_w3a3": (512, 2e-4, 0.0, 0, (0.8, 1.0), 1),
           "swin_t_w4a4": (512, 2e-4, 0.0, 0, (0.8, 1.0), 1)}


def test_all_rows_of_the_scripts_are_there():
    assert {file.stem.removeprefix("ofq_imagenet_main_") for file in LAST} == set(SCRIPTS)
    assert {f"{file.stem}_stage1.yml" for file in LAST} == {file.name for file in FULL.glob("ofq_*_stage1.yml")}


@pytest.mark.parametrize("file", LAST, ids=lambda file: file.stem)
def test_settings_of_both_stages_are_those_of_the_scripts(file):
    row = rows.read(file)
    first, last = row.stages()
    batch, rate, decay, warmup, mixing, repeats = SCRIPTS[file.stem.removeprefix("ofq_imagenet_main_")]
    for stage in (first, last):
        train, data = stage.config.train, stage.config.data
        assert (train.batch_size, train.weight_decay, train.precision, train.clip) == (batch, decay, "no", None)
        assert (train.optimizer, train.decay, train.scale_learning_rate) == ("adamw", "transformer", "with_weights")
        given = {"mixup": 0, "cutmix": 0, "repeats": 1} | data.augmentation
        assert (given["mixup"], given["cutmix"], given["repeats"]) == (*mixing, repeats)
        assert (given["auto_augment"], given["erasing"], given["interpolation"]) == (
            "rand-m9-mstd0.5-inc1", 0.25, "random")
        assert (data.crop_pct, data.interpolation, train.label_smoothing) == (0.9, "bicubic", 0)
        assert (stage.config.teacher.model, stage.config.teacher.kind) == ("self", "hard_and_soft")
        bits = int(row.main["bits"][-1])
        assert vitq.QuantSpec.from_dict(stage.config.quant) == ofq_spec(bits) and row.main["bits"] == f"W{bits}A{bits}"
        assert stage.config.claim == "ofq2023_main" and stage.config.scale == "full"
        assert stage.config.stochastic_depth == ("swin" not in stage.config.model)
        assert "." in stage.config.model, "weights are pinned"
    train = first.config.train
    assert (train.learning_rate, train.min_learning_rate, train.warmup_epochs) == (rate, 1e-5, warmup)
    assert train.total_steps(1) == 310 and train.rate(305, 310, 1) == 1e-5 and not first.config.remedies
    if warmup:
        assert train.rate(0, 310, 1) == 1e-6
    train = last.config.train
    assert train.total_steps(1) == 30 and {train.rate(step, 30, 1) for step in range(30)} == {1e-5}
    (remedy,) = [build_remedy(entry) for entry in last.config.remedies]
    assert (type(remedy).__name__, remedy.x, remedy.reading) == ("ConfidenceGuidedAnnealing", 0.005, "released")
    assert "25 in the paper" in file.read_text() and "assumed" in file.read_text()


@pytest.mark.parametrize("file", LAST, ids=lambda file: file.stem)
def test_published_table_of_settings_agrees(file):
    row = rows.read(file)
    table = comparison.published("ofq2023_scripts")
    table = table[(table["model"] == row.main["model"]) & (table["bits"] == row.main["bits"])]
    seen = 0
    for stage in row.stages():
        lines = table[table["method"] == stage.main["method"]]
        given = dataclasses.asdict(stage.config.train) | {"mixup": 0, "cutmix": 0} | stage.config.data.augmentation
        given["repeats"] = given.get("repeats", 0)
        given["boundary_range"] = next((entry["x"] for entry in stage.config.remedies), None)
        for line in lines.to_dict("records"):
            assert given[line["metric"]] == pytest.approx(line["value"]), (stage.name, line["metric"])
            seen += 1
    assert seen == 15


def test_every_published_row_has_a_file_or_a_reason():
    has = {tuple(entry[key] for key in rows.KEYS) for file in LAST for entry in rows.read(file).published}
    reasons = {(r["table"], r["model"], r["method"]): r["reason"] for r in csv.DictReader(
        (FULL / "without_file.csv").open())}
    for name in ("ofq2023_main", "ofq2023_gain", "ofq2023_ablation", "ofq2023_br"):
        for line in comparison.published(name).to_dict("records"):
            key = (name, *(line[field] for field in rows.KEYS[1:]))
            assert (key in has) != bool(reasons.get(key[:3])), key


def test_published_values_are_in_the_first_line():
    for file in LAST:
        row = rows.read(file)
        assert f"published {rows.published_top1(row)['value']:.2f} %" in file.read_text().splitlines()[0]
        assert rows.published_top1(row.before) is None


def test_list_of_runs_is_that_of_the_files():
    lines, readme = list(csv.DictReader(LIST.open())), (FULL / "README.md").read_text()
    assert [line["file"] for line in lines] == sorted(file.stem for file in FULL.glob("ofq_*.yml"))
    for line in lines:
        row = rows.read(line["file"])
        paper = rows.published_top1(row)
        assert line["published top-1"] == ("" if paper is None else f"{paper['value']:g}")
        assert f"{line['status']}: {line['reason']}".removesuffix(": ") == rows.status(row)
        assert 0 < float(line["GPU hours"]) < 2000
        assert f"notebooks/ofq2023/imagenet.ipynb -f notebooks/params/full/{line['file']}.yml -p data_path" in readme


def changed(tmp_path, **replaced):
    """The smoke file with some of its text replaced."""
    text = SMOKE.read_text()
    for old, new in replaced.values():
        assert old in text
        text = text.replace(old, new)
    (tmp_path / "row.yml").write_text(text)
    return tmp_path / "row.yml"


@pytest.mark.parametrize("old, new, message", [
    ("continues: notebooks/params/smoke/stage1/ofq", "continues: ofk", "there is no such parameter file"),
    ("weight_bits: 2", "weight_bits: 3", "continues: quant=.*one of the same network, quantization and optimizer"),
    ("model: vit_micro", "model: swin_micro", "continues: model='swin_micro'"),
    ("decay: transformer", "decay: all", "continues: decay='all'"),
    ("seeds: [0]", "seeds: [0]\nunpublished: true", "has a row"),
    ("method: StatsQ + QKR + CGA", "method: StatsQ + QKR", "has no row"),
])
def test_a_stage_that_cannot_follow_is_refused_before_any_work(tmp_path, old, new, message):
    with pytest.raises(InputError, match=f"row.yml: .*{message}"):
        rows.read(changed(tmp_path, one=(old, new)))


def test_stages_share_scale_data_device_seeds_and_limits(tmp_path):
    row = rows.resolve("ofq_imagenet_main_deit_t_w2a2", {}, [], [3, 4], "full", "/data", "cpu", 5)
    first, last = row.stages()
    for stage in (first, last):
        assert stage.config.data.path == "/data" and stage.config.train.device == "cpu" and stage.seeds == (3, 4)
        assert stage.config.limit_batches == 5 and stage.config.scale == "smoke" and stage.name.endswith("-limit5")
    configs = full.runs(row, tmp_path / "run")
    assert [config.continue_from for config in configs.values()] == [
        str(tmp_path / first.name / f"seed-{seed}") for seed in (3, 4)]
    assert report.folders(row, tmp_path / "run") == [tmp_path / first.name, tmp_path / "run"]


def test_gpus_share_whole_pairs_of_mixed_images(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 32)
    plain, mixed = (rows.read(f"ofq_imagenet_main_swin_t_w{bits}a{bits}").config for bits in (2, 3))
    assert full.processes(plain, gpus=32) == full.processes(mixed, gpus=32) == 32
    both = [dataclasses.replace(config, train=dataclasses.replace(config.train, batch_size=96))
            for config in (plain, mixed)]
    assert full.processes(both[0], gpus=32) == 32
    with pytest.raises(InputError, match="gpus=32: the batch of 96 images is no multiple of 64"):
        full.processes(both[1], gpus=32)


def test_second_stage_is_shown_as_a_difference():
    text = report.configuration(rows.read("ofq_imagenet_main_swin_t_w3a3"))
    first, second = text.split("\n\n")
    assert "swin_tiny" in first and "swin_tiny" not in second and "mixup" not in second
    assert "confidence_guided_annealing" in second and "epochs: 30" in second


def test_committed_notebook_shows_the_row_and_says_that_it_was_not_run(shown_outputs):
    shown = shown_outputs(NOTEBOOK, lambda row: [stage.name for stage in rows.read(row).stages()])
    for words in ("not run: no ImageNet folder given (data_path)", "measured here", "estimated from", "as before but"):
        assert words in shown
    assert "top1:" not in shown


@pytest.fixture(scope="module")
def shaped(tmp_path_factory, draw_folder, full_run):
    """The notebook on an ImageNet-shaped folder: 2 classes of odd numbers of JPEG files of odd sizes."""
    return full_run(NOTEBOOK, SMOKE, draw_folder(tmp_path_factory.mktemp("shaped"), (11, 14), (3, 4)))


@pytest.mark.slow
def test_a_run_killed_in_both_stages_ends_with_the_same_records(shaped, tmp_path):
    folders = {name: tmp_path / name for name in ("whole", "killed")}
    for folder in folders.values():
        folder.mkdir()
    for stage in ("ofq_imagenet_stage1", "run"):
        shaped.kill_training(shaped.start(folders["killed"]), folders["killed"] / stage, 3)
        assert not (folders["killed"] / stage / "seed-0" / "result.json").exists()
    assert (folders["killed"] / "ofq_imagenet_stage1" / "seed-0" / "result.json").exists()
    both = [shaped.start(folder) for folder in folders.values()]
    for process in both:
        output = process.communicate(timeout=200)[0]
        assert process.returncode == 0, output
    found = [{file.name: json.loads(file.read_text()) for file in folder.glob("*.json")}
             for folder in folders.values()]
    assert found[0].keys() == found[1].keys() and len(found[0]) == 3
    for name, whole in found[0].items():
        for key in ("metrics", "data_version", "checkpoint", "seeds", "images", "status", "scale", "method"):
            assert whole[key] == found[1][name][key], (name, key)
    assert {"top1", "top1_start", "top1_float", "open", "train_loss"} <= set(found[0]["record.json"]["metrics"])
    for stage in ("ofq_imagenet_stage1", "run"):
        logs = [(folder / stage / "seed-0" / "metrics.jsonl").read_text() for folder in folders.values()]
        assert logs[0] == logs[1] and len(logs[0].splitlines()) > 10
    config = json.loads((folders["whole"] / "run" / "seed-0" / "result.json").read_text())["config"]
    assert config["continue_from"] == str(folders["whole"] / "ofq_imagenet_stage1" / "seed-0")
