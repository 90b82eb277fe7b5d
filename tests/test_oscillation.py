"""The tracker's rule, against the values of the spec of Nagel 2022, and statistics near thresholds."""

import pytest
import torch

from vitq import QuantSpec, calibrate, zoo
from vitq.errors import InputError
from vitq.oscillation import OscillationTracker, OscillationTracking, boundary_range, distance_to_code
from vitq.papers.vvtq2023 import leave_one_out
from vitq.quantizers import LSQ, offset_lsq
from vitq.train.callbacks import TrainState

CODES = [0, 1, 0, 1, 0, 0, 2, 3, 1]


def feed(tracker, codes):
    out = []
    for c in codes:
        tracker.update(torch.tensor([c], dtype=torch.int8))
        out.append(tracker.frequency.item())
    return out


def test_frequency_of_the_spec():
    expected = [0, 0, 0.1, 0.19, 0.271, 0.2439, 0.31951, 0.287559, 0.358803]
    assert feed(OscillationTracker(0.1), CODES) == pytest.approx(expected, abs=1e-6)


def test_frequency_of_the_printed_algorithm():
    expected = [0, 0.1, 0.19, 0.271, 0.3439, 0.30951, 0.378559, 0.340703, 0.406633]
    assert feed(OscillationTracker(0.1, variant="paper"), CODES) == pytest.approx(expected, abs=1e-6)


def test_monotone_codes_never_oscillate():
    assert max(feed(OscillationTracker(0.1), range(10))) == 0


PATTERNS = [([0, 1], 1), ([1, 1, 0], 2 / 3), ([1, 1, 1, 0], 0.5), ([1] * 9 + [0], 0.2)]


@pytest.mark.parametrize(("pattern", "frequency"), PATTERNS)
def test_steady_patterns_tend_to_two_over_the_period(pattern, frequency):
    m = 0.01
    steps = int(20 / m) // len(pattern) * len(pattern) + len(pattern)
    assert feed(OscillationTracker(m), (pattern * steps)[:steps])[-1] == pytest.approx(frequency, abs=2 * m)


def test_eight_bit_codes_do_not_overflow():
    tracker = OscillationTracker(0.5)
    assert feed(tracker, [-128, 127, -128])[-1] == 0.5


def by_definition(codes, momentum, variant):
    """The rule of the module's docstring over whole tensors in 64-bit integers, one step after another."""
    last, frequency, mean, reversals = torch.zeros(codes[0].shape), torch.zeros(codes[0].shape), codes[0].float(), []
    for before, now in zip(codes, codes[1:], strict=False):
        change = (now.long() - before.long()).sign()
        reversals.append((change != 0) & ((change == -last) | ((last == 0) & (variant == "paper"))))
        last = torch.where(change != 0, change.float(), last)
        frequency = torch.lerp(frequency, reversals[-1].float(), momentum)
        mean = torch.lerp(mean, now.float(), momentum)
    return reversals, frequency, mean, last


GRIDS = [(-3, 2, torch.int8), (-128, 127, torch.int8), (0, 255, torch.int16)]


@pytest.mark.parametrize("variant", ["corrected", "paper"])
@pytest.mark.parametrize(("low", "high", "dtype"), GRIDS)
@pytest.mark.parametrize("shape", [(1000,), (90, 7, 3), ()])
def test_parts_give_the_bits_of_the_whole(monkeypatch, variant, low, high, dtype, shape):
    monkeypatch.setattr(offset_lsq, "CHUNK", 256)
    generator = torch.Generator().manual_seed(0)
    codes = [torch.randint(low, high + 1, shape, generator=generator).to(dtype) for _ in range(9)]
    tracker = OscillationTracker(0.1, variant)
    found = [tracker.update(c) for c in codes][1:]
    reversals, frequency, mean, last = by_definition(codes, 0.1, variant)
    assert all(map(torch.equal, found, reversals)) and found[0].dtype == torch.bool
    assert torch.equal(tracker.frequency, frequency) and torch.equal(tracker.mean_codes, mean)
    assert torch.equal(tracker.direction.float(), last) and torch.equal(tracker.previous, codes[-1])


def test_codes_given_are_not_kept_or_changed():
    tracker, codes = OscillationTracker(0.1), torch.zeros(4, dtype=torch.int8)
    for k in range(4):
        codes.fill_(k % 2)  # the same tensor at each step
        reversals = tracker.update(codes)
        assert (codes == k % 2).all() and reversals.all() == (k > 1)


def test_state_is_in_buffers():
    a, b = OscillationTracker(0.1), OscillationTracker(0.1)
    feed(a, CODES[:5])
    b.load_state_dict(a.state_dict())
    assert feed(a, CODES[5:]) == feed(b, CODES[5:])
    assert set(a.state_dict()) == {"frequency", "mean_codes", "previous", "direction"}
    assert all(not t.requires_grad for t in a.state_dict().values())


def test_mean_codes_start_at_the_first_codes():
    tracker = OscillationTracker(0.1)
    feed(tracker, [3, 3, 2])
    assert tracker.mean_codes.item() == pytest.approx(2.9)


def test_wrong_arguments():
    with pytest.raises(InputError, match="momentum"):
        OscillationTracker(0)
    with pytest.raises(InputError, match="variant"):
        OscillationTracker(0.1, variant="fast")
    with pytest.raises(InputError, match="update first"):
        OscillationTracker().oscillating(0.1)
    tracker = OscillationTracker()
    tracker.update(torch.zeros(3, dtype=torch.int8))
    with pytest.raises(InputError, match="shape"):
        tracker.update(torch.zeros(4, dtype=torch.int8))


def test_what_is_left_in_floating_point_is_not_counted():
    model = calibrate(leave_one_out(zoo.load("vit_micro"), QuantSpec(2, 2), "head 1"), [torch.randn(2, 3, 32, 32)])
    remedy = OscillationTracking(momentum=0.5)
    remedy.on_start(TrainState(model, torch.device("cpu"), 10))
    assert sum(remedy.weights.sizes) - remedy.weights.count == 4 * 4 * 64 * 16  # 4 layers with 4 such weights
    quantizer = model.blocks[0].attn.query.parametrizations.weight[0]
    with torch.no_grad():
        for step in range(4):  # every code of this weight swings to and fro
            model.blocks[0].attn.query.parametrizations.weight.original.copy_(quantizer.scale * (step % 2))
            remedy.after_step(None)
    frequency = remedy.frequencies()["blocks.0.attn.query"]
    assert (frequency[16:32] == 0).all() and (frequency[:16] > 0.4).all() and (frequency[32:] > 0.4).all()
    assert remedy.metrics()["oscillating"].item() == pytest.approx(48 * 64 / remedy.weights.count)


def test_boundary_range_holds_internal_thresholds_only():
    q = LSQ(2)
    q.scale.data.fill_(2.0)
    q.initialized = True
    w = torch.tensor([-5.0, -3.0, -3.02, -1.0, 0.0, 0.99, 1.0, 1.03, 3.0])  # thresholds -3, -1, 1
    assert boundary_range(w, q, 0.01).tolist() == [False, True, True, True, False, True, True, False, False]
    with pytest.raises(InputError, match="x="):
        boundary_range(w, q, 0)


def test_share_in_the_boundary_range_of_a_gaussian():
    # density argument: 2 x D sum_k phi(t_k); D = 1 here, 3 bit: thresholds -3.5..2.5 for codes -4..3
    q = LSQ(3)
    q.initialized = True
    w = torch.randn(2_000_000, generator=torch.Generator().manual_seed(0))
    t = torch.arange(-4, 3) + 0.5
    expected = 2 * 0.01 * torch.exp(-(t**2) / 2).sum() / (2 * torch.pi) ** 0.5
    assert boundary_range(w, q, 0.01).float().mean().item() == pytest.approx(expected.item(), rel=0.03)


def test_distance_to_code():
    q = LSQ(3)
    q.initialized = True
    torch.testing.assert_close(distance_to_code(torch.tensor([0.4, 0.6, -1.0]), q), torch.tensor([-0.4, 0.4, 0.0]))
