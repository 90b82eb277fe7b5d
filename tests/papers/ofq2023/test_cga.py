"""Boundary range, confidence-guided annealing and noise injection: T4 to T6 and section 4."""

import pytest
import torch

import vitq
from vitq import zoo
from vitq.errors import InputError
from vitq.oscillation import boundary_range
from vitq.papers.ofq2023 import ConfidenceGuidedAnnealing, densities, inject_noise, ofq_spec
from vitq.papers.ofq2023.errata import lose_tensors
from vitq.quantizers import LSQ, StatsQ
from vitq.train import TrainConfig, fit
from vitq.train.callbacks import TrainState

T4 = [.001, -.0024, .0026, .498, -.502, .503, .497, .999, .7, -.7, .7, -.7, .7, -.7, .7, .095]


def test_boundary_range_of_the_specification():
    open_ = boundary_range(torch.tensor([T4]), StatsQ(2), 0.005)
    assert open_.nonzero()[:, 1].tolist() == [0, 1, 3, 4]
    assert StatsQ(2).step_size(torch.tensor([T4])).item() == pytest.approx(0.5)


def test_boundary_range_of_lsq_lies_at_half_codes():
    quantizer = LSQ(2, init="max")
    quantizer.initialize(torch.tensor([-1.0, 1.0]))
    weight = torch.tensor([-1.5, -0.5, 0.5, 1.5, -2.5, 0.0, 0.504, 0.506])
    assert boundary_range(weight, quantizer, 0.005).tolist() == [True, True, True, False, False, False, True, False]


@pytest.mark.parametrize(("density", "bits", "shares"), [
    ("gaussian", 2, [0.48, 0.80, 1.11, 1.58]), ("gaussian", 3, [0.51, 0.85, 1.19, 1.71]),
    ("gaussian", 4, [0.52, 0.87, 1.21, 1.74]), ("laplace", 2, [0.53, 0.88, 1.23, 1.74]),
])
def test_boundary_shares_of_smooth_densities(density, bits, shares):
    weight = densities.sample(density)
    found = [densities.boundary_share(weight, StatsQ(bits), x) for x in (0.003, 0.005, 0.007, 0.01)]
    assert found == pytest.approx(shares, abs=0.03)
    if density == "gaussian":
        assert densities.gaussian_boundary_share(bits, 0.005) == pytest.approx(found[1], rel=0.03)


def model_and_batch(bits=2, **options):
    torch.manual_seed(0)
    x, y = torch.randn(16, 3, 32, 32), torch.randint(41, (16,))
    return vitq.calibrate(vitq.quantize(zoo.load("vit_micro"), ofq_spec(bits, **options)), [x]), x, y


@pytest.mark.parametrize("precision", ["no", "bf16"])
@pytest.mark.parametrize("reading", ["released", "intended"])
def test_frozen_weights_stay_bit_for_bit_under_adamw(precision, reading):
    model, x, y = model_and_batch()
    warm = TrainConfig(steps=3, batch_size=16, learning_rate=1e-3, optimizer="adamw", weight_decay=0.05, log_every=3,
                       scale_learning_rate="with_weights")
    cga = ConfidenceGuidedAnnealing(0.02, reading)
    seen = []

    class Watch(ConfidenceGuidedAnnealing):
        def on_start(self, state):
            self.on = False
            self.low = [s for s in vitq.weight_quantizers(state.model).values()
                        if s.is_parameter and s.quantizer.bits == 2]

        def after_backward(self, state):
            self.before = [(boundary_range(s.latent.detach(), s.quantizer, 0.02), s.latent.detach().clone())
                           for s in self.low]

        def after_step(self, state):
            for site, (open_, before) in zip(self.low, self.before, strict=True):
                assert torch.equal(site.latent[~open_], before[~open_])
                seen.append((int(open_.sum()), bool((site.latent[open_] != before[open_]).any())))

        def metrics(self):
            return {}

        def state_dict(self):
            return {}

    fit(model, (x, y), warm)  # moments that are not zero
    config = TrainConfig(steps=4, batch_size=16, learning_rate=1e-4, optimizer="adamw", weight_decay=0.05, log_every=4,
                         schedule="constant", precision=precision, scale_learning_rate="with_weights")
    result = fit(model, (x, y), config, callbacks=[cga, Watch()])
    assert any(moved for _, moved in seen) and 0 < result.final["open"] < 0.2
    assert (cga.open_share > 0).all() and len(cga.open_share) == 4


def test_the_two_readings_differ_in_query_and_key_alone():
    gradients = {}
    for reading in ("released", "intended"):
        model, x, y = model_and_batch()
        model.train()
        cga = ConfidenceGuidedAnnealing(0.02, reading)
        cga.on_start(TrainState(model, torch.device("cpu"), 1))
        torch.nn.functional.cross_entropy(model(x), y).backward()
        site = vitq.weight_quantizers(model)["blocks.0.attn.query_key"]
        gradients[reading] = site.module.query.weight.grad.clone(), model.head.parametrizations.weight.original.grad
    (free, head), (masked, same_head) = gradients["released"], gradients["intended"]
    assert torch.equal(head, same_head)  # the forward pass is the same
    assert masked.norm() < 0.5 * free.norm() and masked.norm() > 0


def test_the_intended_reading_masks_the_gradient_of_the_product():
    model, x, y = model_and_batch()
    site = vitq.weight_quantizers(model)["blocks.0.attn.query_key"]
    cga = ConfidenceGuidedAnnealing(0.01, "intended")
    cga.on_start(TrainState(model, torch.device("cpu"), 1))
    latent = site.latent.detach().requires_grad_()
    upstream = torch.randn(latent.shape)
    site.quantizer(latent).backward(upstream)
    open_ = boundary_range(latent.detach(), site.quantizer, 0.01)
    assert torch.equal(latent.grad, upstream * open_)


def test_the_open_set_shrinks_and_the_scale_settles():
    torch.manual_seed(0)
    weight = torch.nn.Parameter(torch.randn(16, 128) / 10)
    quantizer, target = StatsQ(2), torch.randn(16, 128) / 10
    layer = torch.nn.Linear(128, 16, bias=False)
    layer.weight = weight
    torch.nn.utils.parametrize.register_parametrization(layer, "weight", quantizer)
    layer.quant_spec = None
    cga = ConfidenceGuidedAnnealing(0.02)
    state = TrainState(layer, torch.device("cpu"), 400)
    cga.on_start(state)
    optimizer = torch.optim.AdamW(layer.parameters(), lr=1e-4, weight_decay=0.05)
    scales = []
    for state.step in range(400):
        optimizer.zero_grad()
        x = torch.randn(32, 128)
        (x @ (layer.weight - target).T).square().mean().backward()
        cga.after_backward(state)
        optimizer.step()
        cga.after_step(state)
        scales.append(quantizer.step_size(layer.parametrizations.weight.original.detach()).flatten())
    assert cga.open_share[-50:].mean() < 0.3 * cga.open_share[:10].mean()
    late, early = torch.stack(scales[-50:]).std(0).mean(), torch.stack(scales[:50]).std(0).mean()
    assert late < 0.3 * early


def test_noise_kinds():
    model, x, _ = model_and_batch(bits=3)
    flipped = {}
    for kind in ("within", "random", "flip"):
        noisy, share = inject_noise(model, 0.02, kind, seed=1)
        flipped[kind] = share["flipped"]
        assert share["perturbed"] == pytest.approx(inject_noise(model, 0.02, "within", seed=2)[1]["perturbed"])
        for name, site in vitq.weight_quantizers(noisy).items():
            old = vitq.weight_quantizers(model)[name]
            torch.testing.assert_close(site.latent, old.latent, rtol=0, atol=0)
            if site.quantizer.bits == 8:
                assert torch.equal(site.codes(), old.codes())
            else:
                moved = (site.codes().int() - old.codes().int()).abs()
                assert moved.max() <= 1
                inside = boundary_range(old.latent.detach(), old.quantizer, 0.02)
                assert kind != "within" or not moved[~inside].any()
        assert torch.isfinite(noisy(x)).all()
    _, perturbed = inject_noise(model, 0.02, "flip")
    assert flipped["flip"] == pytest.approx(perturbed["perturbed"], rel=1e-6)
    assert 0.3 < flipped["within"] / flipped["flip"] < 0.7 and flipped["random"] < 0.1 * flipped["flip"]


@pytest.mark.parametrize("name", ["vit_micro", "swin_micro"])
def test_what_the_released_conversion_loses(name):
    model = zoo.load(name)
    broken, lost = lose_tensors(model)
    for key, value in model.state_dict().items():
        assert torch.equal(value, broken.state_dict()[key]) == (key not in lost), key
    assert any("proj" in key for key in lost)
    assert any("relative_position_bias_table" in key for key in lost) == (name == "swin_micro")
    with pytest.raises(InputError, match="attention"):
        lose_tensors(zoo.load("mobilenet_micro"))


@pytest.mark.parametrize("arguments", [{"x": 0}, {"x": 0.6}, {"reading": "both"}])
def test_wrong_arguments(arguments):
    with pytest.raises(InputError, match=next(iter(arguments))):
        ConfidenceGuidedAnnealing(**arguments)
