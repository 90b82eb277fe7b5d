"""The remedies inside the training loop, against tests 7, 16 and 17 of the spec."""

import copy

import pytest
import torch

import vitq
from vitq import data, zoo
from vitq.errors import InputError
from vitq.oscillation import LowBitWeights, OscillationTracking
from vitq.papers.nagel2022 import BatchNormReestimation, Dampening, IterativeFreezing, batch_norm_divergence
from vitq.trace import WeightTrace
from vitq.train import TrainConfig, evaluate, fit

STEPS = 60


@pytest.fixture(scope="module")
def images():
    return data.load("glyphs", "train", images=640)


@pytest.fixture(scope="module")
def start(images):
    model = vitq.quantize(zoo.load("mobilenet_micro"), vitq.QuantSpec(3))
    return vitq.calibrate(model, [next(iter(data.batches(images, 64)))[0]])


def train(start, images, *callbacks, steps=STEPS, rate=0.01):
    model = copy.deepcopy(start)
    config = TrainConfig(steps=steps, batch_size=32, learning_rate=rate, checkpoint_every=0, device="cpu",
                         schedule="constant")
    result = fit(model, images, config, callbacks=callbacks, seed=3)
    return model, result


def latents(model):
    return torch.cat([s.latent.flatten() for s in vitq.weight_quantizers(model).values()]).detach()


@pytest.fixture(scope="module")
def plain(start, images):
    tracking = OscillationTracking(0.05)
    return *train(start, images, tracking), tracking


@pytest.mark.parametrize("remedy", [
    lambda: Dampening(0.0), lambda: Dampening(0.0, 0.0), lambda: IterativeFreezing(0.0, momentum=0.05),
    lambda: OscillationTracking(0.3), lambda: WeightTrace("conv_stem", 1, 5),
])
def test_at_zero_strength_training_is_that_of_plain_lsq_bit_for_bit(start, images, plain, remedy):
    model, _ = train(start, images, remedy())
    for name, value in plain[0].state_dict().items():
        assert torch.equal(value, model.state_dict()[name]), name


def test_evaluation_leaves_the_tracker_and_the_frozen_weights_alone(start, images, plain):
    freezing = IterativeFreezing(0.1, momentum=0.05)
    model, _ = train(start, images, freezing)
    before = {k: v.clone() for k, v in freezing.state_dict().items()} | copy.deepcopy(model.state_dict())
    evaluate(model, images)
    model.eval()(torch.zeros(1, 3, 32, 32))
    after = freezing.state_dict() | model.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())


def test_frozen_weights_keep_their_integer_and_their_latent_follows_it(start, images):
    freezing = IterativeFreezing(0.1, momentum=0.05)
    model, _ = train(start, images, freezing)
    frozen = freezing.tracker.frozen
    assert 0 < frozen.float().mean() < 0.9
    low = LowBitWeights(model)
    assert torch.equal(low.codes()[frozen], freezing.tracker.frozen_codes[frozen])
    for site in low.sites.values():
        held, mask = site.quantizer.dequantize(site.codes()), site.quantizer.frozen
        torch.testing.assert_close(site.latent[mask], held[mask], rtol=0, atol=0)
        torch.testing.assert_close(site.module.weight[mask], held[mask], rtol=0, atol=0)


def test_the_released_freezing_lets_the_latent_drift(start, images):
    freezing = IterativeFreezing(0.1, momentum=0.05, variant="released")
    model, _ = train(start, images, freezing)
    drift = [(s.latent - s.quantizer.dequantize(s.codes()))[s.quantizer.frozen].abs().max()
             for s in LowBitWeights(model).sites.values() if s.quantizer.frozen.any()]
    assert max(drift) > 0


def test_the_released_tracker_decays_at_every_evaluation(start, images):
    freezing = IterativeFreezing(0.0, momentum=0.05, variant="released", evaluation_batches=10)
    train(start, images, freezing)
    before = freezing.tracker.frequency.clone()
    freezing.before_evaluation(None)
    torch.testing.assert_close(freezing.tracker.frequency, before * 0.95**10)


def test_remedies_reduce_oscillation_the_more_the_stronger(start, images, plain):
    def share(*remedies):
        tracking = OscillationTracking(0.05)
        train(start, images, *remedies, tracking)
        return tracking.tracker.oscillating(0.1).float().mean().item()

    base = plain[2].tracker.oscillating(0.1).float().mean().item()
    weak, strong = (share(Dampening(w, reduction="sum")) for w in (0.01, 0.3))
    assert base > weak > strong
    assert base > share(IterativeFreezing(0.1, momentum=0.05)) > share(IterativeFreezing(0.06, momentum=0.05))


def test_a_weight_that_flips_at_the_end_shifts_depthwise_statistics_most(start, images, plain):
    batches = [x for x, _ in data.batches(images, 64)]
    kl = batch_norm_divergence(plain[0], batches).groupby("kind")["max_kl"].mean()
    assert kl["depthwise"] > kl["pointwise"]


def test_trace_keeps_the_last_steps(start, images, plain):
    trace = WeightTrace("blocks.1.0.conv_dw", 2, last=7)
    model, _ = train(start, images, trace)
    site = vitq.weight_quantizers(model)["blocks.1.0.conv_dw"]
    assert trace.latent.shape == (7, 9)
    assert torch.equal(trace.codes[-1], site.codes()[2].flatten())
    assert (trace.latent.diff(dim=0).abs().amax(1) > 0).all()
    whole = WeightTrace("blocks.1.0.conv_dw", last=3)
    train(start, images, whole)
    assert torch.equal(whole.codes[-1], site.codes().flatten())
    with pytest.raises(InputError, match="layer"):
        train(start, images, WeightTrace("nowhere"))


def test_reestimation_callback_overwrites_the_statistics_for_good(start, images):
    model, _ = train(start, images, steps=10)
    config = TrainConfig(steps=10, batch_size=32, checkpoint_every=0, device="cpu", schedule="constant")
    other = copy.deepcopy(start)
    fit(other, images, config, callbacks=[BatchNormReestimation(5)], evaluate=lambda m: {}, seed=3)
    assert torch.equal(latents(model), latents(other))
    assert not torch.equal(model.bn1.running_mean, other.bn1.running_mean)
    with pytest.raises(InputError, match="batches"):
        BatchNormReestimation(0)
