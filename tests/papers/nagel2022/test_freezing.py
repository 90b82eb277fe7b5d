"""Iterative freezing, against tests 4 to 7 of the spec, and the defects of the released tracker."""

import pytest
import torch

import vitq
from vitq import zoo
from vitq.errors import InputError
from vitq.papers.nagel2022 import FreezingTracker, IterativeFreezing
from vitq.quantizers import offset_lsq
from vitq.train.callbacks import TrainState


def step(tracker, code, threshold):
    out = tracker.step(torch.tensor([code], dtype=torch.int8), threshold)
    return out.item(), tracker.frequency.item(), tracker.frozen.item(), tracker.mean_codes.item()


def test_freeze_of_the_spec():
    tracker, rows = FreezingTracker(0.1), []
    for i in range(16):
        rows.append(step(tracker, (1, 1, 0)[i % 3], 0.35))
    assert [r[2] for r in rows] == [False] * 9 + [True] * 7  # call 10
    assert rows[9][1] == pytest.approx(0.38165, abs=1e-5)
    assert rows[8][3] == pytest.approx(0.77396, abs=1e-5) and rows[9][3] == pytest.approx(0.796564, abs=1e-5)
    assert all(r[0] == 1 for r in rows[9:])
    assert [r[1] for r in rows[10:12]] == pytest.approx([0.343489, 0.309140], abs=1e-5)


@pytest.mark.parametrize("duty", [0.1, 0.3, 0.45, 0.55, 0.7, 0.9])
def test_the_frozen_integer_is_the_majority(duty):
    m, tracker = 0.01, FreezingTracker(0.01)
    codes = [int((i + 1) * duty) - int(i * duty) for i in range(1200)]
    for i, code in enumerate(codes):
        out = step(tracker, code, min(duty, 1 - duty) if i > 6 / m else 0.0)
    assert out[2] and out[0] == round(duty)


def test_a_frozen_weight_never_changes_again():
    tracker, seen = FreezingTracker(0.01), set()
    for i in range(1000):
        value, _, frozen, _ = step(tracker, i % 2, 0.5)
        if frozen:
            seen.add(value)
    assert len(seen) == 1


@pytest.mark.parametrize(("variant", "chatters"), [("released", True), ("corrected", False)])
def test_a_stored_integer_that_is_rewritten_chatters(variant, chatters):
    # alternating codes, frozen once the average has come within m of a half: the released rule flips at every step
    tracker, values = FreezingTracker(0.01, variant), []
    for i in range(2600):
        value, _, frozen, _ = step(tracker, i % 2, 0.995)
        if frozen:
            values.append(value)
    flips = sum(a != b for a, b in zip(values, values[1:], strict=False))
    assert len(values) > 1900
    assert flips == (len(values) - 1 if chatters else 0)


def test_the_released_tracker_freezes_minorities_and_the_corrected_does_not():
    # 4000 weights with duties over (0, 1); the threshold rises from 0 to 0.1 after a warm-up
    duty = torch.linspace(0.02, 0.98, 4000)
    wrong = {}
    for variant in ("released", "corrected"):
        tracker = FreezingTracker(0.005, variant)
        for i in range(1500):
            codes = (((i + 1) * duty).floor() - (i * duty).floor()).to(torch.int8)
            tracker.step(codes, 0.1 if i >= 1400 else 0.0)
        clear = tracker.frozen & ((duty - 0.5).abs() > 0.05)
        wrong[variant] = (tracker.frozen_codes[clear] != duty[clear].round()).float().mean().item()
        assert clear.sum() > 2000
    assert wrong["corrected"] == 0
    assert wrong["released"] > 0.1


def test_frozen_count_never_falls_and_threshold_zero_freezes_nothing():
    generator = torch.Generator().manual_seed(0)
    for threshold in (0.0, 0.2):
        tracker, counts = FreezingTracker(0.1), []
        for _ in range(60):
            tracker.step(torch.randint(0, 2, (500,), generator=generator).to(torch.int8), threshold)
            counts.append(int(tracker.frozen.sum()))
        assert counts == sorted(counts)
        assert (counts[-1] > 0) == (threshold > 0)


def swinging(steps, shape, seed=0):
    """Codes that swing about a centre of their own, more or less far."""
    generator = torch.Generator().manual_seed(seed)
    centre, width = torch.randn(shape, generator=generator), torch.rand(shape, generator=generator)
    return [(centre + width * torch.randn(shape, generator=generator)).round().clamp(-4, 3).to(torch.int8)
            for _ in range(steps)]


@pytest.mark.parametrize("variant", ["corrected", "paper", "released"])
@pytest.mark.parametrize("shape", [(1000,), (90, 7, 3)])
def test_parts_give_the_bits_of_the_whole(monkeypatch, variant, shape):
    whole, parts = FreezingTracker(0.05, variant), FreezingTracker(0.05, variant)
    changes = []
    for i, codes in enumerate(swinging(60, shape)):
        threshold = 0.0 if i < 10 else 0.3 - 0.004 * (i - 10)
        monkeypatch.setattr(offset_lsq, "CHUNK", 2**40)
        out = whole.step(codes, threshold)
        before = None if i == 0 else (parts.frozen.clone(), parts.frozen_codes.clone())
        monkeypatch.setattr(offset_lsq, "CHUNK", 128)
        changes.append(parts.observe(codes, threshold))
        assert torch.equal(out, torch.where(parts.frozen, parts.frozen_codes, codes))
        for name, value in whole.state_dict().items():
            assert torch.equal(value, parts.state_dict()[name]), (i, name)
        if i and not changes[-1]:
            assert torch.equal(parts.frozen, before[0]) and torch.equal(parts.frozen_codes, before[1])
    assert 0.1 < whole.frozen.float().mean() < 1 and not any(changes[1:10]) and any(changes)


@pytest.mark.parametrize("weight", ["lsq", "statsq"])
def test_quantizers_have_the_tracker_s_masks_after_each_step_and_after_a_resume(weight):
    model = vitq.quantize(zoo.load("vit_micro"), vitq.QuantSpec(3, weight=weight))
    state = TrainState(model, torch.device("cpu"), 100)
    remedy = IterativeFreezing(0.2, momentum=0.1)
    remedy.on_start(state)
    generator, frozen = torch.Generator().manual_seed(0), []
    sites = remedy.weights.sites
    start = {name: site.latent.detach().clone() for name, site in sites.items()}

    def step(model, remedy):
        for name, site in remedy.weights.sites.items():  # all weights but those of one layer wander
            width = 0.0 if name == "blocks.1.mlp.fc1" else 0.3 * start[name].std()
            noise = torch.randn(site.shape, generator=generator)
            with torch.no_grad():
                site.latent.copy_(start[name] + width * noise)
        remedy.after_step(state)
        masks, codes = (remedy.weights.split(t) for t in (remedy.tracker.frozen, remedy.tracker.frozen_codes))
        for name, site in remedy.weights.sites.items():
            own, mask = site.quantizer, masks[name]
            assert torch.equal(own.frozen, mask) and torch.equal(own.frozen_codes[mask], codes[name][mask])
            if weight == "lsq":
                assert torch.equal(site.latent[mask], own.dequantize(codes[name])[mask])
        frozen.append(int(remedy.tracker.frozen.sum()))

    for _ in range(12):
        step(model, remedy)
    assert not masks_of(remedy)["blocks.1.mlp.fc1"].any() and frozen[0] == 0 < frozen[5] < frozen[-1]
    again = vitq.quantize(zoo.load("vit_micro"), vitq.QuantSpec(3, weight=weight))
    resumed = IterativeFreezing(0.2, momentum=0.1)
    state.model = again
    again.load_state_dict(model.state_dict())
    resumed.on_start(state)
    resumed.load_state_dict({name: value.clone() for name, value in remedy.state_dict().items()})
    generator_state = generator.get_state()
    step(model, remedy)
    generator.set_state(generator_state)
    step(again, resumed)
    for name, value in model.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), name
    for name, value in remedy.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name


def masks_of(remedy):
    return remedy.weights.split(remedy.tracker.frozen)


def test_threshold_schedule_of_the_spec():
    f = IterativeFreezing(0.1, 0.01)
    values = {t: f.threshold_at(t, 100) for t in (24, 25, 40, 62.5, 80, 99, 100)}
    expected = {24: 0, 25: 0.1, 40: 0.0914058, 62.5: 0.055, 80: 0.0248891, 99: 0.0100395, 100: 0.01}
    assert values == pytest.approx(expected, abs=1e-7)
    assert IterativeFreezing(0.02).threshold_at(1, 100) == 0.02


@pytest.mark.parametrize("arguments", [{"threshold": -0.1}, {"threshold": 0.1, "final": 2}])
def test_wrong_thresholds(arguments):
    with pytest.raises(InputError, match="threshold|final"):
        IterativeFreezing(**arguments)
    with pytest.raises(InputError, match="variant"):
        IterativeFreezing(0.1, variant="best")
