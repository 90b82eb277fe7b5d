"""VVTQ's full runs: the command's settings, soft labels looked at first, one command that goes on after a kill."""

import csv
import dataclasses
import json

import pytest
import timm
import torch
from contents import ROOT

import vitq
from vitq import comparison
from vitq.errors import InputError, MissingError
from vitq.papers.vvtq2023 import labels, mdq_spec
from vitq.plots import vvtq2023_imagenet as figures
from vitq.train import full, report, rows, stages
from vitq.train.remedies import build_remedy

FULL = ROOT / "notebooks" / "params" / "full"
FILES = sorted(FULL.glob("vvtq_*.yml"))
NOTEBOOK = ROOT / "notebooks" / "vvtq2023" / "imagenet.ipynb"
SMOKE = ROOT / "notebooks" / "params" / "smoke" / "vvtq_imagenet.yml"
LIST = ROOT / "book" / "results" / "tables" / "vvtq2023_full_runs.csv"
MAIN = [f"main_{net}_w{bits}a{bits}" for net in ("deit_t", "swin_t") for bits in (2, 3, 4)]
LOGS = [f"logs_deit_t_w{bits}a{bits}" for bits in (2, 3, 4)]
PARTS = [f"ablation_deit_t_w4a4_{part}" for part in ("heads", "single_crop", "without_mckd", "without_mdq",
                                                     "without_obr")]  # fmt: skip
# What an ablation changes of the run main_deit_t_w4a4: quantizer mode, crops, regularization
CHANGED = {"heads": ("head", 4, True), "single_crop": ("layer", 1, True), "without_mckd": ("layer", 0, True),
           "without_mdq": ("lsq", 4, True), "without_obr": ("layer", 4, False)}  # fmt: skip


def short(file):
    return file.stem.removeprefix("vvtq_imagenet_")


def test_the_runs_are_those_of_the_paper_and_of_its_ablation():
    assert sorted(map(short, FILES)) == sorted([*MAIN, *LOGS, *PARTS, "control_deit_t_fp32_mckd"])


@pytest.mark.parametrize("file", FILES, ids=short)
def test_settings_are_those_of_the_released_command(file):
    row, name = rows.read(file), short(file)
    config, train = row.config, row.config.train
    mode, crops, regularized = CHANGED.get(name.partition("w4a4_")[2], ("layer", 4, name.startswith("main")))
    assert (train.learning_rate, train.min_learning_rate, train.weight_decay, train.epochs) == (5e-4, 0, 1e-4, 150)
    assert (train.optimizer, train.decay, train.scale_learning_rate) == ("adamw", "weights", "with_weights")
    assert (train.schedule, train.schedule_per, train.warmup_epochs, train.warmup_steps) == ("cosine", "epoch", 0, 0)
    assert (train.precision, train.clip, train.label_smoothing, train.evaluate_every) == ("no", None, 0, None)
    assert train.batch_size == (1024 if name in LOGS else 512)
    assert (config.data.crop_pct, config.data.interpolation, config.data.augmentation) == (0.875, "bilinear", None)
    assert config.stochastic_depth == 0.1 and config.teacher is None and config.bn_reestimation.batches == 0
    given = config.soft_labels
    assert (0 if given is None else given.crops) == crops and (given is None or given.interpolation == "bilinear")
    assert "." in config.model and config.claim == row.main["table"] and config.scale == "full"
    assert row.unpublished == (name not in MAIN + LOGS) and "assumed" in file.read_text()
    remedies = {entry["name"]: build_remedy(entry) for entry in config.remedies}
    assert ("bin_regularization" in remedies) == regularized
    if regularized:
        remedy = remedies["bin_regularization"]
        assert (remedy.weight, remedy.begin, remedy.reduction, remedy.variance) == (0.01, 0.25, "mean", True)
        assert (remedy.epochs, remedy.crops, remedy.max_bits) == (150, max(1, crops), 8)
    if name.startswith("control"):
        assert not remedies and vitq.QuantSpec.from_dict(config.quant) == vitq.QuantSpec(None, None)
        return
    bits = int(row.main["bits"][-1])
    with torch.device("meta"):
        network = timm.create_model(config.model.removeprefix("timm:").partition(".")[0])
    assert vitq.QuantSpec.from_dict(config.quant) == mdq_spec(network, bits, bits, mode)
    assert row.main["bits"] == f"W{bits}A{bits}" and name.endswith(f"w{bits}a{bits}") != (name in PARTS)


def test_published_table_of_settings_agrees():
    config = rows.read("vvtq_imagenet_main_deit_t_w4a4").config
    (remedy,) = (entry for entry in config.remedies if entry["name"] == "bin_regularization")
    given = dataclasses.asdict(config.train) | {"crops": config.soft_labels.crops, "drop_path": config.stochastic_depth,
                                                "bin_regularization": remedy["weight"], "top_k": 5}  # fmt: skip
    lines = comparison.published("vvtq2023_scripts").to_dict("records")
    assert len(lines) == 10
    for line in lines:
        assert given[line["metric"]] == pytest.approx(line["value"]), line["metric"]


def test_every_published_row_has_a_file_or_a_reason():
    has = {tuple(entry[key] for key in rows.KEYS) for file in FILES for entry in rows.read(file).published}
    reasons = {tuple(r[key] for key in ("table", "model", "method", "setting")): r["reason"] for r in csv.DictReader(
        (FULL / "without_file.csv").open()) if r["table"].startswith("vvtq")}
    used = set()
    for name in ("vvtq2023_main", "vvtq2023_gain", "vvtq2023_logs", "vvtq2023_curves"):
        for line in comparison.published(name).to_dict("records"):
            key = (name, *(line[field] for field in rows.KEYS[1:]))
            why = {key[:4], (*key[:3], "*")} & set(reasons)
            assert (key in has) != bool(why), key
            used |= why
    assert used == set(reasons)


def test_published_values_are_in_the_first_line():
    for file in FILES:
        paper, first = rows.published_top1(rows.read(file)), file.read_text().splitlines()[0]
        assert ("no published figure" in first) if paper is None else (f"published {paper['value']:.2f} %" in first)


def test_list_of_runs_is_that_of_the_files():
    lines, readme = list(csv.DictReader(LIST.open())), (FULL / "README.md").read_text()
    assert [line["file"] for line in lines] == [file.stem for file in FILES]
    for line in lines:
        row = rows.read(line["file"])
        paper = rows.published_top1(row)
        assert line["published top-1"] == ("" if paper is None else f"{paper['value']:g}")
        assert f"{line['status']}: {line['reason']}".removesuffix(": ") == rows.status(row)
        assert 0 < float(line["GPU hours"]) < 2000
        assert f"notebooks/vvtq2023/imagenet.ipynb -f notebooks/params/full/{line['file']}.yml -p data_path" in readme


def test_passes_are_those_of_the_paper():
    config = rows.read("vvtq_imagenet_main_deit_t_w4a4").config
    assert figures.passes(config, 1_281_167) == [*range(0, 148, 4), 148, 149]
    assert figures.passes(rows.read("vvtq_imagenet_ablation_deit_t_w4a4_without_mckd").config, 9) == [*range(150)]
    assert len(figures.plan(config, 1_281_167).axes) == 2


def test_the_offer_names_command_disk_and_hours():
    text = labels.offer("/data", "/labels", seen=150)
    assert "--teacher timm:tf_efficientnet_l2.ns_jft_in1k_475 --data /data --crops 500" in text
    assert "18.6 GB" in text and "36.5 GB" in text and "5.6 GB" in text and "-p labels_path /labels" in text
    assert labels.teacher_hours(500) == pytest.approx(500 / 150 * labels.teacher_hours(150))
    assert 500 < labels.teacher_hours() < 10_000
    assert timm.is_model(labels.TEACHER)


@pytest.fixture(scope="module")
def folder(tmp_path_factory, draw_folder):
    return draw_folder(tmp_path_factory.mktemp("shaped"), (11, 14), (3, 4))


def resolved(folder, scale="smoke", **changes):
    row = rows.read(SMOKE).changed(data={"path": str(folder)})
    return dataclasses.replace(row, config=dataclasses.replace(row.config, scale=scale, **changes))


def test_labels_are_looked_at_before_anything_starts(folder, tmp_path, capsys):
    row, state = resolved(folder), report.State(facts={"train": 25})
    shown = labels.check(row, state, tmp_path, str(folder), "small")
    assert state.reason == "no soft labels given (labels_path)" and shown.config.soft_labels.path is None
    assert "vitq labels make" in capsys.readouterr().out
    with pytest.raises(MissingError, match="parameter labels_path: no soft labels given.*vitq labels make") as error:
        labels.check(row, report.State(), tmp_path, str(folder), "full")
    assert "\n" not in str(error.value)
    with pytest.raises(MissingError, match="parameter labels_path: soft_labels.path='nowhere'"):
        labels.check(labels.at(row, "nowhere"), report.State(), tmp_path, str(folder), "full")
    made = labels.check(row, report.State(), tmp_path, str(folder), "smoke")
    assert made.config.soft_labels.path == str(tmp_path / "labels")
    assert labels.check(row, report.State(), tmp_path, str(folder), "smoke") == made, "made once"
    assert "25 images, 8 crops each" in capsys.readouterr().out
    with pytest.raises(InputError, match="parameter gpus: the batch of 8 crops is no multiple of 6"):
        labels.check(made, report.State(processes=3), tmp_path, str(folder), "full")
    fewer = made.changed(data={"train_images": 20})
    with pytest.raises(InputError, match="parameter labels_path: .*holds labels of"):
        labels.check(fewer, report.State(), tmp_path, str(folder), "full")
    assert labels.reading_speed(made.config, 1) > 0


def test_the_parameter_is_refused_where_it_is_not_used():
    with pytest.raises(InputError, match="parameter labels_path='x': .*without_mckd does not train on soft labels"):
        rows.resolve("vvtq_imagenet_ablation_deit_t_w4a4_without_mckd", {}, [], [], "full", "", "auto", 0,
                     labels_path="x")
    row = rows.resolve("vvtq_imagenet_main_deit_t_w4a4", {}, [], [], "full", "", "auto", 0, labels_path="x")
    assert row.config.soft_labels.path == "x" and row.config.soft_labels.crops == 4
    made = rows.make_records(row, [], "full", "no GPU")
    assert made[0].config["soft_labels"]["path"] is None and made[0].status == "not run"


def test_stages_ask_for_the_labels(folder, tmp_path, monkeypatch, capsys):
    monkeypatch.delenv("VITQ_LABELS", raising=False)
    command = [str(SMOKE), "--data-path", str(folder), "--out", str(tmp_path / "run")]
    assert stages.main(command) == 3 and "soft_labels.path=None" in capsys.readouterr().err
    labels.check(resolved(folder), report.State(), tmp_path, str(folder), "smoke")
    monkeypatch.setenv("VITQ_LABELS", str(tmp_path / "labels"))
    assert stages.main(command) == 0
    written = full.runs(resolved(folder, soft_labels={"path": str(tmp_path / "labels"), "crops": 2}), tmp_path)[0]
    assert vitq.train.RunConfig.from_yaml(tmp_path / "run" / "seed-0" / "config.yml") == written


def test_committed_notebook_shows_the_row_and_says_that_it_was_not_run(shown_outputs):
    shown = shown_outputs(NOTEBOOK)
    for words in ("not run: no ImageNet folder given (data_path)", "measured here", "estimated from", "labels make"):
        assert words in shown
    assert "top1:" not in shown


@pytest.mark.slow
def test_a_run_killed_in_a_pass_ends_with_the_same_record(full_run, folder, tmp_path):
    notebook = full_run(NOTEBOOK, SMOKE, folder)
    folders = {name: tmp_path / name for name in ("whole", "killed")}
    for place in folders.values():
        place.mkdir()
    notebook.kill_training(notebook.start(folders["killed"]), folders["killed"] / "run", 3, limit=500)
    assert not (folders["killed"] / "run" / "seed-0" / "result.json").exists()
    both = [notebook.start(place) for place in folders.values()]
    for process in both:
        output = process.communicate(timeout=600)[0]
        assert process.returncode == 0, output
    found = [json.loads((place / "record.json").read_text()) for place in folders.values()]
    for key in ("metrics", "data_version", "checkpoint", "seeds", "images", "status", "scale", "method"):
        assert found[0][key] == found[1][key], key
    assert {"top1", "top1_start", "top1_float", "bin_gradient_share", "train_loss"} <= set(found[0]["metrics"])
    logs = [(place / "run" / "seed-0" / "metrics.jsonl").read_text() for place in folders.values()]
    assert logs[0] == logs[1] and len(logs[0].splitlines()) > 18
