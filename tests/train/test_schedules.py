import math

import pytest

from vitq.errors import InputError
from vitq.train import TrainConfig
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


OFQ = {"epochs": 300, "cooldown_epochs": 10, "learning_rate": 5.47e-4, "min_learning_rate": 1e-5, "warmup_epochs": 5,
       "schedule_per": "epoch"}


@pytest.mark.parametrize("epoch, rate", [(0, 1e-6), (1, 1.102e-4), (2, 2.194e-4), (3, 3.286e-4), (4, 4.378e-4),
                                         (5, 5.466e-4), (150, 2.785e-4), (299, 1.0015e-5), (300, 1e-5), (309, 1e-5)])
def test_ofq_rates_of_the_specification(epoch, rate):
    config, per_epoch = TrainConfig.from_dict(OFQ), 7
    total = config.total_steps(per_epoch)
    assert total == 310 * per_epoch
    rates = {config.rate(epoch * per_epoch + step, total, per_epoch) for step in range(per_epoch)}
    assert len(rates) == 1 and rates.pop() == pytest.approx(rate, rel=1e-4)


def test_ofq_annealing_rate_is_the_minimum_throughout():
    config = TrainConfig(epochs=30, learning_rate=1e-5, schedule="constant")
    assert {config.rate(step, 300, 10) for step in range(300)} == {1e-5}


def test_warm_up_that_replaces_leaves_the_rest_of_the_cosine_where_it_was():
    with_it, without = TrainConfig.from_dict(OFQ), TrainConfig.from_dict(OFQ | {"warmup_epochs": 0})
    rates = [[config.rate(step, 310, 1) for step in range(310)] for config in (with_it, without)]
    assert rates[0][5:] == rates[1][5:] and all(a < b for a, b in zip(rates[0][:5], rates[1][:5], strict=True))


def test_a_minimum_also_holds_for_a_cosine_that_moves_each_step():
    config = TrainConfig(steps=100, learning_rate=0.1, min_learning_rate=0.02)
    assert config.rate(50, 100, 10) == pytest.approx(0.06) and config.rate(99, 100, 10) > 0.02


@pytest.mark.parametrize("fields, message", [
    ({"min_learning_rate": 1.0}, "min_learning_rate=1.0: give at most learning_rate=0.000547"),
    ({"min_learning_rate": -1.0}, "min_learning_rate=-1.0"),
    ({"warmup_epochs": -1}, "warmup_epochs=-1"),
    ({"schedule_per": "step", "cooldown_epochs": 0}, "warmup_epochs=5: give schedule_per: epoch"),
    ({"schedule_per": "step", "warmup_epochs": 0}, "cooldown_epochs=10: give schedule_per: epoch"),
    ({"warmup_steps": 3}, "warmup_epochs=5: with warmup_steps=3"),
    ({"epochs": None, "steps": 9}, "cooldown_epochs=10: give epochs"),
])
def test_a_schedule_that_makes_no_sense_is_refused(fields, message):
    with pytest.raises(InputError, match=message):
        TrainConfig.from_dict(OFQ | fields)
