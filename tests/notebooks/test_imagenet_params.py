"""The parameter files of the full runs, and the notebook that runs them: whole, honest, going on after a kill."""

import csv
import dataclasses
import json

import pytest
import torch
from contents import ROOT

import vitq
from vitq import comparison, zoo
from vitq.errors import InputError, MissingError
from vitq.records import Record, load_records
from vitq.train import full, rows
from vitq.train.remedies import build_remedy

FULL = ROOT / "notebooks" / "params" / "full"
FILES = sorted(FULL.glob("nagel_*.yml"))
NOTEBOOK = ROOT / "notebooks" / "nagel2022" / "imagenet.ipynb"
LIST = ROOT / "book" / "results" / "tables" / "nagel2022_full_runs.csv"
SMOKE = ROOT / "notebooks" / "params" / "smoke" / "nagel_imagenet.yml"
SCRIPTS = {  # what the released scripts set: learning rate, weight decay, epochs
    ("MobileNetV2", "LSQ + Dampen", "W3A3"): (0.01, 2.5e-5, 90),
    ("MobileNetV2", "LSQ + Freeze", "W4A4"): (0.0033, 5e-5, 90),
    ("EfficientNet-lite", "LSQ + Dampen", "W4A4"): (0.0033, 1e-4, 50),
}


def listed() -> list[dict[str, str]]:
    return list(csv.DictReader(LIST.open()))


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_file_is_a_run_of_a_published_row(file):
    row = rows.read(file)
    config = row.config
    assert config.claim == row.main["table"] and config.scale == "full" and config.bn_reestimation.batches == 50
    bits = config.quant
    assert row.main["bits"] == f"W{bits['weight_bits']}" + (f"A{bits['act_bits']}" if bits["act_bits"] else "")
    names = [entry["name"] for entry in config.remedies]
    assert ("dampening" in names) == ("Dampen" in row.main["method"])
    assert ("freezing" in names) == ("Freeze" in row.main["method"])
    assert [build_remedy(entry) for entry in config.remedies] or bits["weight_bits"] == 8
    vitq.QuantSpec.from_dict(bits)
    assert f"published {rows.published_top1(row)['value']:g}" in file.read_text().splitlines()[0].replace(".50 ", ".5 ")
    assert row.seeds == ((0,) if bits["act_bits"] else (0, 1, 2))


def test_settings_are_those_of_the_scripts():
    table = comparison.published("nagel2022_scripts")
    known = {(r["model"], r["method"], r["bits"], r["metric"]): r["value"] for r in table.to_dict("records")}
    checked = 0
    for row in (row for row in map(rows.read, FILES) if row.config.quant["act_bits"]):
        model = row.main["model"].replace("-lite", "-lite0")
        given = dataclasses.asdict(row.config.train)
        for entry in row.config.remedies:
            start, end = {"dampening": ("weight", "lambda"), "freezing": ("threshold", "threshold"),
                          "tracking": ("", "")}[entry["name"]]
            given |= {f"{end}_start": entry.get(start), f"{end}_end": entry.get("final")} if start else {}
        given["momentum"] = next(entry["momentum"] for entry in row.config.remedies if "momentum" in entry)
        for name, value in given.items():
            published = known.get((model, row.main["method"], row.main["bits"], name))
            if published is not None:
                assert value == pytest.approx(published), (row.name, name)
                checked += 1
    assert checked > 30
    for (model, method, bits), expected in SCRIPTS.items():
        (row,) = [r for r in map(rows.read, FILES)
                  if (r.main["model"], r.main["method"], r.main["bits"]) == (model, method, bits)]
        train = row.config.train
        assert (train.learning_rate, train.weight_decay, train.epochs) == expected


def test_every_published_row_has_a_file_or_a_reason():
    has = {tuple(entry[key] for key in rows.KEYS) for file in FILES for entry in rows.read(file).published}
    reasons = {(r["table"], r["model"], r["method"]): r["reason"] for r in csv.DictReader(
        (FULL / "without_file.csv").open())}
    seen = 0
    for file in sorted(comparison.published_folder().glob("nagel2022_t?.csv")):
        for line in comparison.published(file.stem).to_dict("records"):
            key = (file.stem, *(line[name] for name in rows.KEYS[1:]))
            assert (key in has) != bool(reasons.get(key[:3])), key
            seen += key in has
    assert seen > 60


def test_unknown_settings_say_that_they_are_assumed():
    for file in FILES:
        if "mobilenetv3s" in file.stem or "_t2_" in file.stem or file.stem.endswith("_lsq"):
            assert "assumed" in file.read_text(), file.name


@pytest.mark.parametrize("model", sorted({rows.read(file).config.model for file in FILES}))
def test_network_is_pinned_and_can_be_quantized(model):
    assert "." in model or model == "efficientnet_lite0"
    net = vitq.quantize(zoo.load(model, pretrained=False), vitq.QuantSpec(3, 3)).eval()
    images = torch.randn(2, 3, 64, 64)
    vitq.calibrate(net, [images])
    with torch.no_grad():
        assert net(images).shape == (2, 1000)


def test_list_of_runs_is_that_of_the_files():
    lines, readme = listed(), (FULL / "README.md").read_text()
    assert [line["file"] for line in lines] == [file.stem for file in FILES]
    for line in lines:
        row = rows.read(FULL / f"{line['file']}.yml")
        assert float(line["published top-1"]) == rows.published_top1(row)["value"] and line["source"]
        assert f"{line['status']}: {line['reason']}".removesuffix(": ") == rows.status(row)
        assert 0 < float(line["GPU hours"]) < 1000
        assert f"`{line['file']}.yml`" in readme and f"/{line['file']}.yml -p data_path" in readme


def test_a_wrong_row_is_refused(tmp_path):
    with pytest.raises(InputError, match="nagel_imagenet_t6"):
        rows.read("nagel_imagenet_t6_mobilenet")
    text = (FULL / "nagel_imagenet_t6_mobilenetv2_w3a3_lsq.yml").read_text()
    for old, new in (("bits: W3A3", "bits: W2A2"), ("epochs: 90", "epoch: 90"), ("seeds: [0]", "seeds: [-1]"),
                     ("published:", "publish:")):
        (tmp_path / "row.yml").write_text(text.replace(old, new))
        with pytest.raises(InputError, match="row.yml"):
            rows.read(tmp_path / "row.yml")


def test_full_scale_asks_for_data_classes_and_a_gpu(shaped, monkeypatch):
    config = rows.read(FILES[0]).config
    with pytest.raises(MissingError, match="data_path"):
        full.check_data(config)
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, path=str(shaped.data)))
    with pytest.raises(InputError, match="data_path.*3 class folders, expected 1000"):
        full.check_data(config)
    assert full.check_data(config, whole=False)["train"] == 37
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(MissingError, match="device"):
        full.processes(config)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    assert full.processes(config, gpus=2) == 2
    with pytest.raises(InputError, match="gpus=3"):
        full.processes(config)
    with pytest.raises(MissingError, match="gpus=4"):
        full.processes(config, gpus=4)


def test_not_run_never_replaces_a_result(tmp_path):
    row = rows.read(FILES[0])
    result = {"metrics": {"top1": 70.0, "oscillating": 0.01, "top1_float": 69.7}, "test_images": 10, "seconds": 1.0,
              "data_version": "v", "fingerprint": "f", "peak_memory_mb": 5.0}
    done = rows.make_records(dataclasses.replace(row, seeds=(0,)), [result], "full")
    (file, *_) = rows.write_records(done, str(tmp_path))
    assert done[0].metrics["oscillating_percent"]["mean"] == 1.0 and done[0].paper["source"].startswith("Nagel 2022")
    (again, *_) = rows.write_records(rows.make_records(row, [], "full", "no data"), str(tmp_path))
    assert again == file and Record.read(file).status == "done"


def test_records_stand_for_every_row_and_for_full_precision(tmp_path):
    row = rows.read("nagel_imagenet_t2_mobilenetv2_w3_lsq")
    result = {"metrics": {"top1": 69.0, "top1_float": 72.0}, "test_images": 10, "seconds": 1.0, "data_version": "v",
              "fingerprint": "f", "peak_memory_mb": 5.0}
    rows.write_records(rows.make_records(row, [result] * 3, "full"), str(tmp_path))
    table = load_records(tmp_path)
    assert set(table["claim"]) == {f"nagel2022_t{i}" for i in (2, 3, 4, 5, 6)}
    parity = table[table["method"] == "FP32"]
    assert len(parity) == 1 and parity.iloc[0]["mean"] == 72.0
    assert Record.read(tmp_path / parity.iloc[0]["file"]).paper["value"] == 71.7


def test_committed_notebook_shows_the_row_and_says_that_it_was_not_run(shown_outputs):
    shown = shown_outputs(NOTEBOOK)
    for words in ("not run: no ImageNet folder given (data_path)", "measured here", "estimated from"):
        assert words in shown
    assert "top1:" not in shown


@pytest.fixture(scope="module")
def shaped(tmp_path_factory, draw_folder, full_run):
    """The notebook on an ImageNet-shaped folder: 3 classes of odd numbers of JPEG files of odd sizes."""
    return full_run(NOTEBOOK, SMOKE, draw_folder(tmp_path_factory.mktemp("shaped"), (9, 13, 15), (3, 5, 7)))


@pytest.mark.slow
def test_killed_run_goes_on_and_ends_with_the_same_record(shaped, tmp_path):
    folders = {name: tmp_path / name for name in ("whole", "killed")}
    for folder in folders.values():
        folder.mkdir()
    output = shaped.kill_training(shaped.start(folders["killed"]), folders["killed"] / "run", 6)
    assert "torchrun" in output and not (folders["killed"] / "record.json").exists()
    steps = list((folders["killed"] / "run" / "seed-0" / "checkpoints").glob("step-*"))
    assert steps and not (folders["killed"] / "run" / "seed-0" / "result.json").exists()
    both = [shaped.start(folder) for folder in folders.values()]
    for process in both:
        output = process.communicate(timeout=100)[0]
        assert process.returncode == 0, output
    whole, again = (json.loads((folder / "record.json").read_text()) for folder in folders.values())
    for name in ("metrics", "config", "data_version", "checkpoint", "seeds", "images", "status", "scale"):
        assert whole[name] == again[name], name
    assert {"top1", "top1_pre_bn", "top1_float", "oscillating_percent", "frozen", "train_loss"} <= set(whole["metrics"])
    assert whole["images"] == 15 and whole["status"] == "done" and whole["scale"] == "smoke"
    logs = [(folder / "run" / "seed-0" / "metrics.jsonl").read_text() for folder in folders.values()]
    assert logs[0] == logs[1] and len(logs[0].splitlines()) == 19
