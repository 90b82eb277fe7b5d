"""StatsQ against T1 to T3 of the specification, and its edge cases."""

import pytest
import torch

from vitq.errors import InputError
from vitq.papers.ofq2023 import densities
from vitq.quantizers import StatsQ
from vitq.testing import assert_on_grid

ROWS = torch.tensor([[0.5, -0.1, 0.2, -1.2], [0.0, 0.3, -0.3, 0.6]])


@pytest.mark.parametrize(("bits", "expected"), [
    (2, [[0.25, -0.25, 0.25, -0.75], [0.15, 0.15, -0.45, 0.45]]),
    (3, [[0.625, -0.125, 0.125, -0.875], [0.075, 0.375, -0.225, 0.525]]),
    (4, [[0.5625, -0.0625, 0.1875, -0.9375], [0.0375, 0.3375, -0.2625, 0.5625]]),
])
def test_levels_of_the_specification(bits, expected):
    quantizer = StatsQ(bits)
    torch.testing.assert_close(quantizer(ROWS), torch.tensor(expected))
    torch.testing.assert_close((quantizer.step_size(ROWS) * quantizer.n).flatten(), torch.tensor([1.0, 0.6]))


@pytest.mark.parametrize("bits", range(1, 9))
def test_the_gradient_is_the_identity_bit_for_bit(bits):
    weight = (3 * torch.randn(8, 50, generator=torch.Generator().manual_seed(bits))).requires_grad_()
    upstream = torch.randn(8, 50)
    StatsQ(bits)(weight).backward(upstream)
    assert torch.equal(weight.grad, upstream)


@pytest.mark.parametrize("bits", range(1, 9))
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
def test_every_bit_width_and_precision_stays_on_the_grid(bits, dtype):
    weight = torch.randn(6, 300, generator=torch.Generator().manual_seed(0)).to(dtype)
    quantizer = StatsQ(bits)
    assert_on_grid(quantizer, weight)
    odd = quantizer.odd_codes(weight)
    assert (odd % 2 != 0).all() and odd.abs().max() <= 2**bits - 1
    assert odd.dtype == (torch.int8 if bits < 8 else torch.int16)
    unit = quantizer.step_size(weight) / 2
    torch.testing.assert_close((odd * unit).to(dtype), quantizer(weight))
    assert max(len(row.unique()) for row in quantizer(weight)) <= 2**bits


def test_edge_cases():
    for bits in (1, 2, 4):
        quantizer = StatsQ(bits)
        assert torch.isfinite(quantizer(torch.zeros(2, 5))).all()
        assert quantizer.codes(torch.zeros(1, 5)).tolist() == [[0] * 5]  # a weight of 0 goes to +D/2
    one = StatsQ(1)(torch.tensor([[-3.0, -0.1, 0.2, 0.7]]))
    assert one.tolist() == [[-1.0, -1.0, 1.0, 1.0]]  # mean|w| = 1
    with pytest.raises(InputError, match="bits"):
        StatsQ(0)
    with pytest.raises(InputError, match="signed"):
        StatsQ(2, signed=False)


def test_equivariance():
    weight, quantizer = torch.randn(5, 40), StatsQ(3)
    scale = torch.tensor([0.5, 1.0, 2.0, 4.0, 8.0])[:, None]
    assert torch.equal(quantizer(weight * scale), quantizer(weight) * scale)
    order = torch.randperm(40)
    torch.testing.assert_close(quantizer(weight[:, order]), quantizer(weight)[:, order])


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_uniform_weights_use_every_level_equally(bits):
    weight = torch.linspace(-1, 1, 200_001, dtype=torch.float64)[None]
    quantizer = StatsQ(bits)
    scale = quantizer.step_size(weight).item() * quantizer.n
    assert scale == pytest.approx(1.000005, abs=1e-6)
    found = densities.level_statistics(weight, bits)
    assert found["occupancy"] == pytest.approx([2.0**-bits] * 2**bits, abs=2e-5)
    error = (quantizer(weight) - weight).square().mean().item()
    assert error * 12 / (scale / quantizer.n) ** 2 == pytest.approx(1.00001, abs=1e-4)


@pytest.mark.parametrize(("density", "bits", "half", "entropy", "error"), [
    ("gaussian", 2, [0.2124, 0.2875], 1.984, 0.137), ("laplace", 2, [0.1839, 0.3158], 1.949, None),
    ("gaussian", 3, [0.1158, 0.0965, 0.1325, 0.1550], 2.979, 0.0705), ("gaussian", 4, None, 3.948, 0.049),
    ("laplace", 3, None, 2.909, None), ("laplace", 4, None, 3.848, None),
])
def test_occupancy_of_smooth_densities(density, bits, half, entropy, error):
    found = densities.level_statistics(densities.sample(density), bits)
    if half:
        assert found["occupancy"] == pytest.approx(half + half[::-1], abs=0.003)
    assert found["entropy"] == pytest.approx(entropy, abs=0.003)
    if error:
        assert found["relative_error"] == pytest.approx(error, rel=0.02)
        assert found["clipped"] == pytest.approx(0.1105, abs=0.001)


def test_one_scale_for_the_whole_tensor_is_that_of_one_long_row():
    weight = torch.randn(6, 10, generator=torch.Generator().manual_seed(4))
    assert StatsQ(3, channel_axis=None)(weight).equal(StatsQ(3)(weight.reshape(1, -1)).reshape(6, 10))


def test_frozen_entries_are_loaded_onto_the_quantizer_s_device():
    saved = StatsQ(3)
    saved.freeze(torch.tensor([[True, False]]), torch.tensor([[1, 0]], dtype=torch.int8))
    assert set(saved.state_dict()) == {"frozen", "frozen_codes", "_extra_state"}
    here, elsewhere = StatsQ(3), StatsQ(3).to("meta")
    here.load_state_dict(saved.state_dict())
    elsewhere.load_state_dict(saved.state_dict())
    assert torch.equal(here.frozen, saved.frozen) and torch.equal(here.frozen_codes, saved.frozen_codes)
    assert (elsewhere.frozen.device.type, elsewhere.frozen_codes.device.type) == ("meta", "meta")
