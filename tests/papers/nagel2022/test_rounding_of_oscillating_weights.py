"""Stochastic rounding and binary optimisation of the oscillating weights (Table 3)."""

import pytest
import torch
from torch import nn

import vitq
from vitq.errors import InputError
from vitq.papers.nagel2022 import optimize_rounding, sample_model, sample_rounding, with_codes


@pytest.fixture
def model():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 8, 3), nn.ReLU(), nn.Flatten(), nn.LazyLinear(5))
    net(torch.zeros(1, 3, 8, 8))
    return vitq.quantize(net, vitq.QuantSpec(3)).eval()


def site(model):
    return vitq.weight_quantizers(model)["2"]


def test_samples_follow_the_average():
    mean = torch.tensor([-1.25, 0.0, 2.9]).repeat(20_000, 1)
    draw = sample_rounding(mean, torch.Generator().manual_seed(0))
    assert set(draw[:, 0].tolist()) == {-2, -1} and set(draw[:, 1].tolist()) == {0}
    torch.testing.assert_close(draw.mean(0), mean[0], atol=0.02, rtol=0)


def test_only_masked_weights_change(model):
    codes = site(model).codes()
    mask = torch.zeros_like(codes, dtype=torch.bool)
    mask[0] = True
    other = sample_model(model, {"2": mask}, {"2": codes.float() + 0.5}, seed=1)
    changed = site(other).codes() != codes
    assert changed.any() and not changed[~mask].any()
    assert torch.equal(site(model).codes(), codes)


def test_unknown_layers_are_refused(model):
    with pytest.raises(InputError, match="nowhere"):
        with_codes(model, {"nowhere": torch.ones(1, dtype=torch.bool)}, {})


def test_optimisation_finds_the_better_rounding(model):
    # the target network has every masked weight in its upper state; the start is undecided
    codes = site(model).codes()
    mask = torch.rand(codes.shape, generator=torch.Generator().manual_seed(2)) < 0.3
    mask &= codes < site(model).quantizer.qmax
    target = with_codes(model, {"2": mask}, {"2": codes + 1})
    x = torch.randn(64, 3, 8, 8, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        wanted = target(x)
    found = optimize_rounding(model, {"2": mask}, {"2": codes + 0.5}, [(x, wanted)] * 300, nn.functional.mse_loss,
                              steps=300, learning_rate=0.05, strength=1e-5)
    share = (site(found).codes()[mask] == codes[mask] + 1).float().mean()
    assert share > 0.9
    assert torch.equal(site(found).codes()[~mask], codes[~mask])
    with torch.no_grad():
        assert (found(x) - wanted).pow(2).mean() < 0.2 * (model(x) - wanted).pow(2).mean()


def test_optimisation_needs_something_to_do(model):
    mask = torch.zeros_like(site(model).codes(), dtype=torch.bool)
    with pytest.raises(InputError, match="masks"):
        optimize_rounding(model, {"2": mask}, {"2": mask.float()}, [], nn.functional.mse_loss, steps=1)


def test_the_penalty_drives_every_weight_to_one_of_its_states(model, monkeypatch):
    from vitq.papers.nagel2022.adaround import SoftRounding

    codes, seen = site(model).codes(), []
    mask = torch.ones_like(codes, dtype=torch.bool)
    penalty = SoftRounding.penalty

    def watched(self, beta):
        seen.append(penalty(self, beta))
        return seen[-1]

    monkeypatch.setattr(SoftRounding, "penalty", watched)
    batches = [(torch.zeros(1, 3, 8, 8), None)] * 200
    means = codes.clamp(max=2) + torch.rand(codes.shape, generator=torch.Generator().manual_seed(1))
    optimize_rounding(model, {"2": mask}, {"2": means}, batches, lambda logits, _: 0 * logits.sum(), steps=200,
                      learning_rate=0.1, strength=1.0)
    assert seen[-1] < 0.05 * mask.sum()
