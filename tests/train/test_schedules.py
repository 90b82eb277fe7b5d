import math

import pytest

from vitq.errors import InputError
from vitq.train.schedules import cosine_schedule, learning_rate


@pytest.mark.parametrize("step, value", [(25, 0.1), (40, 0.0914058), (62.5, 0.055), (80, 0.0248891), (99, 0.0100395),
                                         (100, 0.01), (0, 0.1), (24.9, 0.1), (130, 0.01)])
def test_the_freezing_threshold_of_the_specification(step, value):
    assert cosine_schedule(step, 100, 0.1, 0.01, 0.25) == pytest.approx(value, abs=5e-8)


@pytest.mark.parametrize("step, value", [(10, 0.0), (40, 0.0095492), (62.5, 0.05), (80, 0.0834565), (100, 0.1)])
def test_the_dampening_weight_of_the_specification(step, value):
    assert cosine_schedule(step, 100, 0.0, 0.1, 0.25) == pytest.approx(value, abs=5e-8)


@pytest.mark.parametrize("total, begin", [(0, 0.25), (-1, 0.0), (10, 1.0), (10, -0.1)])
def test_a_schedule_without_room_is_refused(total, begin):
    with pytest.raises(InputError, match="total|begin_fraction"):
        cosine_schedule(0, total, 0.0, 1.0, begin)


def test_learning_rate_per_step_falls_from_the_peak_to_zero():
    rates = [learning_rate(step, 100, 0.4) for step in range(101)]
    assert rates[0] == 0.4 and rates[50] == pytest.approx(0.2) and rates[100] == 0
    assert all(a > b for a, b in zip(rates, rates[1:], strict=False))


def test_learning_rate_per_epoch_moves_at_epoch_boundaries_only():
    rates = [learning_rate(step, 40, 1.0, steps_per_epoch=10) for step in range(40)]
    expected = [0.5 * (1 + math.cos(math.pi * epoch / 4)) for epoch in range(4)]
    assert rates == pytest.approx([value for value in expected for _ in range(10)])


def test_warm_up_rises_linearly_and_ends_at_the_peak():
    rates = [learning_rate(step, 20, 1.0, warmup=5) for step in range(6)]
    assert rates == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0, 1.0])
    assert learning_rate(7, 20, 1.0, schedule="constant", warmup=5) == 1.0
