"""`vitq collect`: the notebook's own records from run folders, once; and why other folders give none."""

import json
import os
import shutil

import pytest
import yaml

from vitq import cli, collect
from vitq.errors import MissingError
from vitq.records import Record
from vitq.train import full, plan, rows, run
from vitq.train.checkpoints import save_checkpoint
from vitq.train.lock import RunLock

NAME = "nagel_imagenet_t6_mobilenetv2_w3a3_freeze"


@pytest.fixture(scope="module")
def runs(tmp_path_factory, draw_folder):
    """`params/` with one row of two seeds, made small, and `full/NAME/seed-0`, `seed-1`, finished."""
    root = tmp_path_factory.mktemp("collect")
    draw_folder(root / "images", (5, 5), (3, 3), size=(36, 40), grow=0)
    content = yaml.safe_load((rows.folder().parent / "smoke" / "nagel_imagenet.yml").read_text())
    content["config"] |= {"scale": "full", "train": content["config"]["train"] | {"epochs": 1, "device": "cpu"}}
    content["seeds"] = [0, 1]
    (root / "params").mkdir()
    (root / "params" / f"{NAME}.yml").write_text(yaml.safe_dump(content))
    row = rows.read(root / "params" / f"{NAME}.yml").changed(data={"path": str(root / "images")})
    for seed, config in row.runs().items():
        run(config, root / "full" / NAME / f"seed-{seed}")
        (root / "full" / NAME / f"seed-{seed}" / "config.yml").write_text(yaml.safe_dump(config.to_dict()))
    return root, row


@pytest.fixture
def place(runs, tmp_path):
    """A copy of the runs, which a test may change."""
    shutil.copytree(runs[0] / "full", tmp_path / "full")
    shutil.copytree(runs[0] / "params", tmp_path / "params")
    return tmp_path


def do(place, *words, code=0):
    arguments = ["collect", str(place / "full"), "--params", str(place / "params"), "--records", str(place / "records")]
    assert cli.main([*arguments, *words]) == code


def contents(folder):
    return {file.name: file.read_text() for file in sorted(folder.glob("*.json"))}


def edited(file, change):
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))


def test_records_are_those_of_the_notebook(runs, place, capsys):
    root, row = runs
    results = full.finished(row, root / "full" / NAME)
    assert len(results) == 2
    expected = {item.filename: item for item in rows.make_records(row, results, "full")}
    do(place)
    assert set(contents(place / "records")) == set(expected) and len(expected) == 2  # the row and full precision
    for file, item in expected.items():
        found = Record.read(place / "records" / file)
        for name in ("claim", "model", "method", "setting", "variant", "bits", "data", "scale", "metrics", "seeds",
                     "images", "data_version", "checkpoint", "config", "paper", "seconds", "peak_memory_mb", "status"):
            assert getattr(found, name) == getattr(item, name), name
        assert found.hardware == {"device": "cpu", "ranks": 1} and found.status == "done"
    assert "1 recorded, 0 already recorded, 0 not recorded" in capsys.readouterr().out


def test_collecting_again_changes_nothing(place, capsys):
    do(place)
    before = contents(place / "records")
    capsys.readouterr()
    do(place)
    assert contents(place / "records") == before
    assert "already recorded" in capsys.readouterr().out
    shutil.move(place / "full" / NAME, place / "full" / "another name")
    do(place)
    assert contents(place / "records") == before, "the configuration decides, not the name"


def test_a_row_that_was_not_run_is_replaced(runs, place):
    for record in rows.make_records(runs[1], [], "full", "no GPU"):
        record.write(place / "records")
    do(place)
    assert {Record.read(file).status for file in (place / "records").glob("*.json")} == {"done"}


def test_records_of_another_run_stay_unless_asked(place, capsys):
    do(place)
    before = contents(place / "records")
    for seed in (0, 1):
        edited(place / "full" / NAME / f"seed-{seed}" / "result.json", lambda r: r["metrics"].update(top1=77.0))
    capsys.readouterr()
    do(place)
    assert contents(place / "records") == before and "--replace" in capsys.readouterr().out
    do(place, "--replace")
    (file,) = [file for file in (place / "records").glob("*.json") if "freeze" in file.name]
    assert Record.read(file).metrics["top1"]["mean"] == 77.0


def test_more_seeds_than_the_file_asks_for_are_taken(place):
    file = place / "params" / f"{NAME}.yml"
    file.write_text(yaml.safe_dump(yaml.safe_load(file.read_text()) | {"seeds": [1]}))
    do(place)
    (file,) = [file for file in (place / "records").glob("*.json") if "freeze" in file.name]
    assert Record.read(file).seeds == [0, 1]
    file.unlink()
    shutil.rmtree(place / "full" / NAME / "seed-0")
    do(place)
    assert Record.read(file).seeds == [1] and Record.read(file).config["seed"] == 0, "as the notebook records it"


def test_two_stages_have_a_record_each_and_full_precision_one(tmp_path):
    from vitq.train.fields import config_hash

    row = rows.read("ofq_imagenet_main_deit_t_w2a2").changed(data={"path": "/data"})
    for stage, top1 in zip(row.stages(), (60.0, 64.0), strict=True):
        folder = tmp_path / "full" / stage.name / "seed-0"
        folder.mkdir(parents=True)
        before = None if stage.before is None else f"/gone/{stage.before.name}/seed-0"
        config = json.loads(json.dumps(stage.config.to_dict())) | {"continue_from": before}
        (folder / "result.json").write_text(json.dumps({
            "config": config, "config_hash": config_hash(config), "metrics": {"top1": top1, "top1_float": 74.5},
            "test_images": 50000, "data_version": "v", "fingerprint": "f", "seconds": 1.0, "peak_memory_mb": 2.0,
            "device": "cuda:0", "ranks": 8}))
    found = collect.collect([tmp_path / "full"], records=tmp_path / "records")
    assert [entry.state for entry in found] == [collect.RECORDED] * 2
    made = {(r.method, r.bits): r for r in map(Record.read, (tmp_path / "records").glob("*.json"))}
    assert {key: r.metrics["top1"]["mean"] for key, r in made.items()} == {
        ("StatsQ + QKR", "W2A2"): 60.0, ("StatsQ + QKR + CGA", "W2A2"): 64.0, ("FP32", "FP32"): 74.5}
    assert made["StatsQ + QKR + CGA", "W2A2"].config["continue_from"] is None
    assert made["StatsQ + QKR + CGA", "W2A2"].paper["value"] == 64.33 and made["StatsQ + QKR", "W2A2"].paper is None
    assert len(found[0].files) + len(found[1].files) == 3 == len(made)


def refused(place, capsys, code=0):
    do(place, code=code)
    assert not (place / "records").exists()
    line, counts = capsys.readouterr().out.splitlines()
    assert counts == "0 recorded, 0 already recorded, 1 not recorded"
    return line


def test_unfinished_seeds_are_reported(place, capsys):
    seed = place / "full" / NAME / "seed-1"
    (seed / "result.json").unlink()
    line = refused(place, capsys)
    assert "seed 1: stopped at step 2, in epoch 1 of 1; the same command goes on" in line
    with RunLock(seed):
        edited(seed / ".lock", lambda owner: owner.update(pid=os.getppid(), born=_born(os.getppid())))
        assert "seed 1: running on" in refused(place, capsys)
        (seed / ".lock").write_text("")
    shutil.rmtree(seed / "checkpoints")
    assert "seed 1: no checkpoint yet" in refused(place, capsys)
    shutil.rmtree(seed)
    assert "seed 1: never started" in refused(place, capsys)
    save_checkpoint(seed / "checkpoints", 1, {}, {"epoch": 0})
    shutil.copy(place / "full" / NAME / "seed-0" / "config.yml", seed)
    assert "seed 1: stopped at step 1, in epoch 1 of 1;" in refused(place, capsys)


def _born(pid):
    import psutil

    return psutil.Process(pid).create_time()


@pytest.mark.parametrize("change, words", [
    (lambda c: c.update(limit_batches=3), "a try of 3 batches"),
    (lambda c: c.update(scale="smoke"), "scale smoke, not a full run"),
    (lambda c: c["train"].update(learning_rate=0.5), "train.learning_rate differs from"),
    (lambda c: c["quant"].update(weight_bits=4), "quant.weight_bits differs from"),
    (lambda c: c["remedies"].pop(), "remedies differs from"),
])
def test_runs_that_are_not_the_rows_are_refused(place, change, words, capsys):
    from vitq.train.fields import config_hash

    def changed(result):
        change(result["config"])
        result["config_hash"] = config_hash(result["config"])

    for seed in (0, 1):
        edited(place / "full" / NAME / f"seed-{seed}" / "result.json", changed)
    assert words in refused(place, capsys)


def test_how_a_run_was_computed_may_differ(place):
    from vitq.train.fields import config_hash

    def changed(result):
        result["config"]["train"].update(log_every=7, checkpoint_every=50, device="auto", accumulation=2)
        result["config"]["data"]["path"] = "/elsewhere"
        result["config_hash"] = config_hash(result["config"])

    for seed in (0, 1):
        edited(place / "full" / NAME / f"seed-{seed}" / "result.json", changed)
    do(place)
    (file,) = [file for file in (place / "records").glob("*.json") if "freeze" in file.name]
    assert Record.read(file).config["train"]["accumulation"] == 2 and Record.read(file).config["data"]["path"] is None


@pytest.mark.parametrize("change, words", [
    (lambda r: r["config"].update(seed=5), "its configuration was changed"),
    (lambda r: r.pop("fingerprint"), "it lacks fingerprint"), (lambda r: r.pop("config"), "config")])
def test_broken_results_are_named_and_end_with_2(place, change, words, capsys):
    edited(place / "full" / NAME / "seed-0" / "result.json", change)
    assert words in refused(place, capsys, code=2)
    (place / "full" / NAME / "seed-0" / "result.json").write_text('{"config": ')
    assert "result.json is no result of a run" in refused(place, capsys, code=2)


def test_what_is_not_there(place, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    for folders, words in (([tmp_path / "absent"], "no folder"), ([tmp_path / "empty"], "there is no run")):
        with pytest.raises(MissingError, match=words):
            collect.collect(folders, place / "params", place / "records")
    assert cli.main(["collect", str(place / "full"), "--params", str(tmp_path / "empty")]) == 3
    assert "no parameter file" in capsys.readouterr().err


def test_rows_of_the_book_are_told_apart():
    known = [rows.read(file) for file in plan.parameter_files(rows.folder())]
    for row in known:
        config = row.changed(train={"device": "cuda"}, data={"path": "/data"}).config.to_dict() | {"seed": 3}
        for name in (row.name, collect._default_name(row), "any"):
            found, reason = collect._row(collect.Path(name), [json.loads(json.dumps(config))], known)
            assert found is not None and found.name == row.name, (name, reason)


def test_epochs_are_those_that_training_counts():
    from vitq.collect import _epochs
    from vitq.train import rows

    soft = rows.read("vvtq_imagenet_main_deit_t_w4a4").config
    assert (soft.train.epochs, soft.soft_labels.crops) == (150, 4)
    assert _epochs(soft) == 38  # 37 passes with four crops, then two single-crop epochs that share one
    assert _epochs(rows.read("nagel_imagenet_t6_mobilenetv2_w3a3_freeze").config) == 90
