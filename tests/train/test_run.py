import json

import pytest
import torch
import yaml
from safetensors.torch import load_file

import vitq
from vitq import data, zoo
from vitq.errors import InputError
from vitq.train import Callback, RunConfig, evaluate, register_remedy, run
from vitq.train.__main__ import main

CRASH_AT = {"step": None}


class Crash(Callback):
    """Remedy of the tests: stops the run after a step."""

    def after_step(self, state):
        if state.step == CRASH_AT["step"]:
            raise KeyboardInterrupt


def smoke(**changes):
    fields = {
        "model": "mobilenet_micro", "data": {"name": "digits", "train_images": 128, "test_images": 40},
        "quant": {"weight_bits": 3, "act_bits": 4}, "bn_reestimation": {"batches": 3}, "scale": "smoke",
        "train": {"steps": 6, "batch_size": 16, "learning_rate": 0.02, "checkpoint_every": 2, "log_every": 2,
                  "device": "cpu"},
        "remedies": [{"name": "tracking", "momentum": 0.1}, {"name": "freezing", "threshold": 0.05, "momentum": 0.1}],
    }
    return RunConfig.from_dict(fields | changes)


def same_weights(*folders):
    """Whether the models of two folders are the same, bit for bit."""
    first, second = (load_file(folder / "model.safetensors") for folder in folders)
    assert first.keys() == second.keys() and len(first) > 50
    return all(torch.equal(first[name], second[name]) for name in first)


def test_a_run_from_start_to_end(tmp_path):
    config = smoke()
    result = run(config, tmp_path)
    metrics = result["metrics"]
    assert json.loads((tmp_path / "result.json").read_text()) == result
    assert {"top1", "top1_pre_bn", "top1_float", "top1_start", "train_loss", "oscillating", "frozen"} <= metrics.keys()
    assert result["steps"] == 6 and result["seconds"] > 0 and result["peak_memory_mb"] > 50 and metrics["frozen"] > 0
    assert result["test_images"] == 40 and RunConfig.from_dict(result["config"]) == config
    test = data.load("digits", "test", images=40)
    for file, name in (("model.safetensors", "top1_pre_bn"), ("model_bn.safetensors", "top1")):
        model = vitq.load(tmp_path / file)
        pixels = zoo.preprocessing(model)
        seen = evaluate(model, test.normalized_for(pixels["mean"], pixels["std"]))
        assert seen["top1"] == pytest.approx(metrics[name])
        assert seen["loss"] == pytest.approx(metrics[name.replace("top1", "loss")], rel=1e-5)
    assert run(config, tmp_path) == result
    with pytest.raises(InputError, match="another run"):
        run(smoke(seed=1), tmp_path)


@pytest.mark.parametrize("quantized", [True, False])
def test_the_averaged_weights_are_a_file_too(tmp_path, quantized):
    train = smoke().to_dict()["train"] | {"ema": 0.5}
    config = smoke(train=train, evaluate_before=False, **({} if quantized else {"quant": None, "remedies": []}))
    metrics = run(config, tmp_path)["metrics"]
    if quantized:
        model = vitq.load(tmp_path / "model_ema.safetensors")
    else:
        model = zoo.load("mobilenet_micro", checkpoint=tmp_path / "model_ema.safetensors", num_classes=10)
    pixels, test = zoo.preprocessing(model), data.load("digits", "test", images=40)
    seen = evaluate(model, test.normalized_for(pixels["mean"], pixels["std"]))
    assert seen["loss"] == pytest.approx(metrics["loss_ema"], rel=1e-5) != pytest.approx(metrics["loss_pre_bn"])
    assert seen["top1"] == pytest.approx(metrics["top1_ema"])


def test_a_crashed_run_ends_with_the_same_metrics(tmp_path):
    register_remedy("crash", f"{__name__}.Crash")
    config = smoke(remedies=[*smoke().remedies, {"name": "crash"}])
    whole = run(config, tmp_path / "whole")
    for CRASH_AT["step"] in (3, 5):
        with pytest.raises(KeyboardInterrupt):
            run(config, tmp_path / "broken")
    CRASH_AT["step"] = None
    assert run(config, tmp_path / "broken")["metrics"] == whole["metrics"]
    assert (tmp_path / "broken" / "metrics.jsonl").read_text() == (tmp_path / "whole" / "metrics.jsonl").read_text()
    assert same_weights(tmp_path / "broken", tmp_path / "whole")


def test_remedies_of_strength_zero_change_nothing(tmp_path):
    plain = run(smoke(remedies=[], evaluate_before=False), tmp_path / "plain")
    zero = run(smoke(evaluate_before=False, remedies=[
        {"name": "tracking"}, {"name": "dampening", "weight": 0.0, "final": 0.0},
        {"name": "freezing", "threshold": 0.0}]), tmp_path / "zero")
    assert {name: zero["metrics"][name] for name in plain["metrics"]} == plain["metrics"]
    assert same_weights(tmp_path / "plain", tmp_path / "zero")


def test_a_teacher_alone_needs_no_labels(tmp_path):
    result = run(smoke(teacher={"model": "self"}, remedies=[], evaluate_before=False), tmp_path)
    assert "top1" not in result["metrics"]
    assert 0 <= result["metrics"]["agreement_pre_bn"] <= 100 and "agreement" in result["metrics"]
    with pytest.raises(InputError, match="another run"):
        run(smoke(), tmp_path)


def test_a_float_run_writes_weights_that_the_zoo_reads(tmp_path):
    result = run(smoke(quant=None, remedies=[], bn_reestimation={"batches": 0}, evaluate_before=False), tmp_path)
    assert result["metrics"]["top1"] == result["metrics"]["top1_pre_bn"]
    assert zoo.load("mobilenet_micro", checkpoint=tmp_path / "model.safetensors", num_classes=10).num_classes == 10


@pytest.mark.parametrize("entry, message", [
    ({"name": "dampning"}, "unknown name 'dampning'; valid names: .*dampening"),
    ({"name": "dampening", "lamda": 1}, "no argument 'lamda'; valid arguments: weight"),
    ({"name": "dampening", "weight": -1}, "weight=-1"),
    ({"name": "freezing"}, "threshold"),
    ("dampening", "give mappings"),
])
def test_a_wrong_remedy_is_refused_before_any_work(tmp_path, entry, message):
    with pytest.raises(InputError, match=message):
        run(smoke(remedies=[entry]), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def written(folder, mapping):
    (folder / "run.yml").write_text(mapping if isinstance(mapping, str) else yaml.safe_dump(mapping))
    return ["--config", str(folder / "run.yml"), "--out", str(folder / "out")]


@pytest.mark.parametrize("changes, status, message", [
    ({"modle": "x"}, 2, "did you mean 'model'"),
    ({"model": "resnet"}, 2, "resnet"),
    ({"quant": {"weight_bits": 9}}, 2, "weight_bits"),
    ({"quant": {"weight_bits": 2.5}}, 2, "weight_bits"),
    ({"train": {"steps": "6"}}, 2, "train.steps='6'"),
    ({"data": {"name": "imagenet", "path": "/nowhere"}}, 3, "/nowhere"),
    ({"checkpoint": "/nowhere.safetensors"}, 3, "/nowhere.safetensors"),
    ({"train": {"steps": 1, "device": "cuda"}}, 3, "cuda"),
])
def test_the_command_line_says_what_is_wrong_in_one_line(tmp_path, capsys, monkeypatch, changes, status, message):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert main(written(tmp_path, smoke(remedies=[]).to_dict() | changes)) == status
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1 and message in error


@pytest.mark.parametrize("text, status", [("a: [", 2), ("just text", 2), (None, 3)])
def test_a_configuration_that_is_none_is_one_line_too(tmp_path, capsys, text, status):
    arguments = written(tmp_path, text or "")
    if text is None:
        (tmp_path / "run.yml").unlink()
    assert main(arguments) == status
    assert capsys.readouterr().err.count("\n") == 1


def test_a_folder_that_cannot_be_written_is_one_line_too(tmp_path, capsys):
    arguments = written(tmp_path, smoke(remedies=[]).to_dict())
    (tmp_path / "out").touch()
    assert main(arguments) == 3
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and str(tmp_path / "out") in error


def test_limit_batches_tries_the_whole_path(tmp_path, capsys):
    assert main([*written(tmp_path, smoke(remedies=[]).to_dict()), "--limit-batches", "1"]) == 0
    metrics = json.loads(capsys.readouterr().out)
    result = json.loads((tmp_path / "out" / "result.json").read_text())
    assert result["metrics"] == metrics and result["steps"] == 1 and result["test_images"] == 32
