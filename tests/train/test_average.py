"""The averaged weights are what the formula says, are evaluated beside the others, and come back with a checkpoint."""

import pytest
import torch

import vitq
from vitq.papers.nagel2022.freezing import IterativeFreezing
from vitq.train import Callback, fit
from vitq.train.checkpoints import latest_checkpoint


class Watch(Callback):
    """The average by its formula, and a crash on demand."""

    def __init__(self, decay, crash=None):
        self.decay, self.crash, self.average = decay, crash, None

    def after_step(self, state):
        now = {name: value.double() if value.is_floating_point() else value.clone()
               for name, value in state.model.state_dict().items()}
        self.average = now if self.average is None else {
            name: self.decay * self.average[name] + (1 - self.decay) * value if value.is_floating_point() else value
            for name, value in now.items()}
        if state.step == self.crash:
            raise KeyboardInterrupt


def averaged(folder):
    tensors = latest_checkpoint(folder / "checkpoints")[0]
    return {name.partition("WeightAverage.")[2]: value for name, value in tensors.items() if "WeightAverage." in name}


@pytest.mark.parametrize("quantized", [False, True])
def test_it_is_the_moving_average_of_all_floats(data, make_network, config, tmp_path, quantized):
    net, watch = make_network(), Watch(0.8)
    if quantized:
        net = vitq.quantize(net, vitq.QuantSpec(weight_bits=3, act_bits=4))
        vitq.calibrate(net, [data[0]])
    settings = config(ema=0.8, evaluate_every=5)
    result = fit(net, data, settings, callbacks=[watch], evaluate=data, out=tmp_path)
    seen = averaged(tmp_path)
    assert seen.keys() == net.state_dict().keys()
    for name, value in seen.items():
        assert torch.allclose(value.double(), watch.average[name].double(), rtol=1e-4, atol=1e-6), name
    assert {"top1", "top1_ema", "loss", "loss_ema"} <= result.final.keys() and "images_ema" not in result.final
    assert result.final["loss"] != result.final["loss_ema"]
    plain = make_network()
    plain.load_state_dict(seen) if not quantized else net.load_state_dict(seen)
    assert vitq.train.evaluate(net if quantized else plain, data)["loss"] == pytest.approx(result.final["loss_ema"])


def test_it_goes_with_freezing_that_begins_later(data, make_network, config, digest_of, tmp_path):
    def attempt(folder, crash=None):
        net = vitq.quantize(make_network(), vitq.QuantSpec(weight_bits=3, act_bits=4))
        vitq.calibrate(net, [data[0]])
        freezing = IterativeFreezing(0.1, 0.05, momentum=0.1, begin=0.3)
        result = fit(net, data, config(ema=0.9, checkpoint_every=4, learning_rate=0.2), evaluate=data,
                     callbacks=[freezing, Watch(0.9, crash)], out=tmp_path / folder)
        return digest_of(net), result.final

    whole = attempt("whole")
    assert whole[1]["frozen"] > 0, "nothing was frozen: the test is vacuous"
    seen = averaged(tmp_path / "whole")
    assert any(name.endswith("frozen") for name in seen)
    for crash in (3, 15):  # before the masks are there, and after
        with pytest.raises(KeyboardInterrupt):
            attempt("broken", crash)
    assert attempt("broken") == whole
    assert all(value.equal(averaged(tmp_path / "broken")[name]) for name, value in seen.items())


def test_it_changes_nothing_in_training_and_survives_a_crash(data, make_network, config, digest_of, tmp_path):
    settings = config(ema=0.9, checkpoint_every=4, evaluate_every=5)

    def attempt(folder, crash=None, settings=settings):
        net = make_network(dropout=0.2)
        result = fit(net, data, settings, callbacks=[Watch(0.9, crash)], evaluate=data, out=tmp_path / folder)
        return digest_of(net), result.final, result.history

    whole = attempt("whole")
    with pytest.raises(KeyboardInterrupt):
        attempt("broken", 10)
    assert attempt("broken") == whole
    without = attempt("without", settings=config(checkpoint_every=4, evaluate_every=5))
    assert without[0] == whole[0] and without[1]["loss"] == whole[1]["loss"]
