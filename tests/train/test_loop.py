import json

import pytest
import torch
from torch import Tensor, nn

from vitq.errors import InputError
from vitq.train import Callback, DivergedError, TrainConfig, fit


def test_it_learns_and_reports(data, make_network, config, tmp_path):
    result = fit(make_network(), data, config(steps=60), evaluate=data, out=tmp_path, loss=nn.CrossEntropyLoss())
    assert result.steps == 60 and result.seconds > 0
    assert result.final["top1"] > 60 and result.final["train_loss"] < 1
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert lines == result.history
    assert [line["step"] for line in lines if line["event"] == "train"] == [10, 20, 30, 40, 50, 60]
    assert [line["step"] for line in lines if line["event"] == "evaluation"] == [60]


def test_it_is_plain_sgd_with_a_cosine(data, make_network, config):
    """Ten lines of torch give the same weights."""
    ours, theirs = make_network(), make_network()
    fit(ours, data, config(steps=6, weight_decay=1e-3, epochs=None))
    optimizer = torch.optim.SGD(theirs.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-3, fused=True)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 6)
    from vitq.train.sources import TensorSource
    for images, labels in TensorSource(*data, 16, train=True).iterate():
        nn.functional.cross_entropy(theirs.train()(images), labels).backward()
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.allclose(a, b, atol=1e-7)


def test_accumulation_equals_the_large_batch(data, make_network, config):
    nets = [make_network(norm=False) for _ in range(2)]
    losses = [fit(net, data, config(accumulation=parts)).final["train_loss"]
              for net, parts in zip(nets, (1, 4), strict=True)]
    assert losses[0] == pytest.approx(losses[1], abs=1e-6)
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(nets[0].parameters(), nets[1].parameters(), strict=True))


@pytest.mark.parametrize("changes", [{"precision": "bf16"}, {"channels_last": False}, {"optimizer": "adamw"},
                                     {"decay": "weights", "weight_decay": 0.1}, {"schedule_per": "epoch"}])
def test_options_train(data, make_network, config, changes):
    result = fit(make_network(), data, config(steps=40, **changes))
    assert result.final["train_loss"] < result.history[0]["loss"] < 2
    assert all(p.dtype == torch.float32 for p in make_network().parameters())


def test_no_decay_on_norms_and_biases_when_asked(data, make_network):
    from vitq.train.optimizers import build_optimizers
    optimizer, = build_optimizers(make_network(), TrainConfig(steps=1, decay="weights", weight_decay=0.1), scales=[])
    decayed, free = optimizer.param_groups
    assert decayed["weight_decay"] == 0.1 and all(p.ndim > 1 for p in decayed["params"])
    assert free["weight_decay"] == 0 and all(p.ndim == 1 for p in free["params"])


def test_scales_have_their_own_adam_unless_they_go_with_the_weights(make_network):
    from vitq.train.optimizers import build_optimizers
    net = make_network()
    scale = net[0].bias
    main, own = build_optimizers(net, TrainConfig(steps=1, weight_decay=0.1), scales=[scale])
    assert [p is scale for p in own.param_groups[0]["params"]] == [True] and own.param_groups[0]["lr"] == 1e-5
    assert own.param_groups[0]["weight_decay"] == 0 and isinstance(own, torch.optim.Adam)
    assert all(p is not scale for p in main.param_groups[0]["params"])
    both = build_optimizers(net, TrainConfig(steps=1, scale_learning_rate="with_weights"), scales=[scale])
    assert len(both) == 1 and any(p is scale for p in both[0].param_groups[0]["params"])


def test_clipping_bounds_the_step(data, make_network, config):
    class Norm(Callback):
        def after_step(self, state):
            self.weights = torch.cat([p.detach().flatten() for p in state.model.parameters()])

    net, seen = make_network(), Norm()
    before = torch.cat([p.detach().flatten() for p in net.parameters()]).clone()
    fit(net, data, config(steps=1, clip=1e-3, learning_rate=1.0, momentum=0.0), callbacks=[seen])
    assert (seen.weights - before).norm() == pytest.approx(1e-3, rel=1e-3)


def test_a_step_moves_no_value_from_the_device(data, make_network, config, monkeypatch):
    watched = {"on": False}
    for name in ("item", "tolist", "__bool__", "__float__", "__int__", "cpu", "numpy"):
        original = getattr(Tensor, name)

        def refuse(self, *arguments, _original=original, _name=name, **options):
            assert not watched["on"], f"Tensor.{_name} was called in a training step"
            return _original(self, *arguments, **options)
        monkeypatch.setattr(Tensor, name, refuse)

    class Watch(Callback):
        def on_start(self, state):
            watched["on"] = True

        def after_step(self, state):
            watched["on"] = state.step < state.total_steps

    result = fit(make_network(), data, config(clip=1.0, log_every=100), callbacks=[Watch()])
    assert result.steps == 20


class Poison(Callback):
    """Puts a NaN into a weight after one step."""

    def __init__(self, step):
        self.step = step

    def after_step(self, state):
        if state.step == self.step:
            state.model[3].weight.data[0] = float("nan")


def test_nan_in_training_is_one_clear_error_and_the_good_checkpoint_stays(data, make_network, config, tmp_path):
    settings = config(checkpoint_every=5, log_every=20)
    with pytest.raises(DivergedError, match=r"step 15, .*step-0000000010"):
        fit(make_network(), data, settings, callbacks=[Poison(12)], out=tmp_path / "a")
    assert [path.name[-2:] for path in sorted((tmp_path / "a" / "checkpoints").iterdir())] == ["05", "10"]
    with pytest.raises(DivergedError, match=r"step 15, first in parameter '3.weight'.*step-0000000010"):
        fit(make_network(), data, settings, callbacks=[Poison(15)], out=tmp_path / "b")
    with pytest.raises(DivergedError, match=r"step 20, first in parameter '3.weight'.*no checkpoint"):
        fit(make_network(), data, settings, callbacks=[Poison(20)])


def test_nan_in_an_activation_is_named(data, make_network, config):
    class Root(nn.Module):
        def forward(self, x):
            return (x - 1e9).sqrt()

    net = make_network()
    net[4] = Root()
    with pytest.raises(DivergedError, match="first in"):
        fit(net, data, config())
    with pytest.raises(DivergedError, match="in the images|first in parameter"):
        fit(make_network(), (data[0] * float("nan"), data[1]), config())


@pytest.mark.parametrize("changes, message", [({"batch_size": 1024}, "batch_size=1024")])
def test_data_that_does_not_fit_is_refused_before_training(data, make_network, config, changes, message):
    with pytest.raises(InputError, match=message):
        fit(make_network(), data, config(**changes))
    with pytest.raises(InputError, match="images and"):
        fit(make_network(), (data[0], data[1][:5]), config())
    with pytest.raises(InputError, match="data of type"):
        fit(make_network(), 3, config())
    with pytest.raises(InputError, match="TrainConfig"):
        fit(make_network(), data, {"steps": 3})
