"""A run that goes on from another one: its weights, scales and moments, and nothing of its schedule."""

import dataclasses

import pytest
import torch
from safetensors.torch import load_file

from vitq.errors import InputError, MissingError
from vitq.train import Callback, RunConfig, continuation, register_remedy, run
from vitq.train.checkpoints import latest_checkpoint

SEEN = {}


class Look(Callback):
    """Remedy of the tests: keeps what the run begins with."""

    def on_start(self, state):
        SEEN["model"] = {name: value.clone() for name, value in state.model.state_dict().items()}
        moments = state.optimizer.state_dict()["state"]
        SEEN["moments"] = [moments[index]["exp_avg"].clone() for index in sorted(moments)]
        SEEN["groups"] = [dict(group) for group in state.optimizer.param_groups]

    def after_step(self, state):
        SEEN.setdefault("counts", []).append(max(v["step"].item() for v in state.optimizer.state.values()))
        if state.step == SEEN.get("crash"):
            raise KeyboardInterrupt


register_remedy("look", f"{__name__}.Look")


@pytest.fixture(autouse=True)
def nothing_seen():
    SEEN.clear()


def first(**changes):
    fields = {
        "model": "vit_micro", "data": {"name": "digits", "train_images": 64, "test_images": 32}, "scale": "smoke",
        "quant": {"weight_bits": 2, "act_bits": 2, "weight": "statsq", "act": "offset_lsq",
                  "activation_scales": "token", "first_last_weight": "lsq", "image_bits": 8,
                  "query_key": "reparameterized"},
        "teacher": {"kind": "hard_and_soft"}, "evaluate_before": False,
        "train": {"steps": 4, "batch_size": 16, "optimizer": "adamw", "learning_rate": 1e-3, "weight_decay": 0.05,
                  "decay": "transformer", "scale_learning_rate": "with_weights", "device": "cpu", "log_every": 1},
    }
    return RunConfig.from_dict(fields | changes)


def second(folder, steps=3, **changes):
    """The annealing stage of `first`."""
    train = dataclasses.replace(first().train, steps=steps, schedule="constant", learning_rate=1e-5, weight_decay=0.01)
    return first(train=train.to_dict(), continue_from=str(folder), remedies=[{"name": "look"}], **changes)


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "first"
    run(first(), folder)
    return folder


def test_it_begins_with_weights_scales_and_moments_and_its_own_rates(done, tmp_path):
    result = run(second(done, evaluate_before=True), tmp_path)
    trained = load_file(done / "model.safetensors")
    assert SEEN["model"].keys() == trained.keys()
    assert all(torch.equal(SEEN["model"][name], value) for name, value in trained.items())
    tensors, _ = latest_checkpoint(done / "checkpoints")
    moments = [tensors[f"optimizers.0.{i}.exp_avg"] for i in range(len(SEEN["moments"]))]
    assert len(moments) > 50 and all(map(torch.equal, SEEN["moments"], moments))
    assert {group["weight_decay"] for group in SEEN["groups"]} == {0.01, 0.0}
    assert SEEN["counts"] == [5, 6, 7] and result["steps"] == 3
    ended = latest_checkpoint(done / "checkpoints")[1]["final"]["top1"]
    assert result["metrics"]["top1_start"] == ended


def test_two_stages_of_one_rate_equal_one_run_but_for_the_order_of_images(done, tmp_path):
    """The network after no further step is the one that the first run wrote, whatever calibration would have set."""
    config = second(done, steps=1)
    frozen = dataclasses.replace(config, train=dataclasses.replace(config.train, learning_rate=1e-30))
    run(frozen, tmp_path)
    mine, its = (load_file(folder / "model.safetensors") for folder in (tmp_path, done))
    assert all(torch.equal(mine[name], its[name]) for name in its)


def test_it_resumes_like_any_other(done, tmp_path):
    config = second(done)
    config = dataclasses.replace(config, train=dataclasses.replace(config.train, checkpoint_every=1))
    whole = run(config, tmp_path / "whole")
    SEEN["crash"] = 2
    with pytest.raises(KeyboardInterrupt):
        run(config, tmp_path / "broken")
    SEEN.clear()
    assert run(config, tmp_path / "broken")["metrics"] == whole["metrics"]
    assert SEEN["counts"] == [6, 7]
    states = [load_file(tmp_path / name / "model.safetensors") for name in ("whole", "broken")]
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())


def test_the_folder_of_checkpoints_serves_too(done):
    assert continuation.read(done)[1] == continuation.read(done / "checkpoints")[1]


def test_a_missing_foreign_or_unfinished_run_is_refused_before_any_work(done, tmp_path):
    with pytest.raises(MissingError, match=r"continue_from='.*nowhere': no such folder; give"):
        run(second(tmp_path / "nowhere"), tmp_path / "out")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="it holds no checkpoint"):
        run(second(tmp_path / "empty"), tmp_path / "out")
    SEEN["crash"] = 2
    config = second(done)
    config = dataclasses.replace(config, train=dataclasses.replace(config.train, checkpoint_every=1))
    with pytest.raises(KeyboardInterrupt):
        run(config, tmp_path / "broken")
    with pytest.raises(InputError, match="stopped at step 1 and is not finished"):
        run(second(tmp_path / "broken"), tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("changes, message", [
    ({"model": "swin_micro"}, "another network or quantization"),
    ({"quant": first().quant | {"weight_bits": 3}}, "another network or quantization .*bits=3"),
    ({"quant": first().quant | {"query_key": "fused"}}, "another network or quantization"),
    ({"train": second("").train.to_dict() | {"decay": "all"}}, "other optimizers"),
    ({"train": second("").train.to_dict() | {"optimizer": "sgd"}}, "other optimizers"),
    ({"train": second("").train.to_dict() | {"scale_learning_rate": 1e-5}}, "other optimizers"),
])
def test_a_run_of_another_kind_is_refused_in_one_line(done, tmp_path, changes, message):
    config = dataclasses.replace(second(done), **{"remedies": [], **changes})
    with pytest.raises(InputError, match=message) as caught:
        run(config, tmp_path / "out")
    assert "\n" not in str(caught.value) and not (tmp_path / "out" / "checkpoints").exists()


def test_a_finished_run_needs_the_other_no_more(tmp_path):
    config = first(train=first().train.to_dict() | {"steps": 1})
    run(config, tmp_path / "first")
    result = run(second(tmp_path / "first", steps=1), tmp_path / "second")
    import shutil

    shutil.rmtree(tmp_path / "first")
    assert run(second(tmp_path / "first", steps=1), tmp_path / "second") == result
