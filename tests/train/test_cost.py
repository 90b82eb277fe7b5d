"""The cost estimate: counted kernels are those of the step, figures scale as they must, the list is complete."""

import dataclasses

import pytest
import torch

import vitq
from vitq import zoo
from vitq.errors import InputError
from vitq.train import cost, plan, roofline
from vitq.train.run_config import RunConfig, TeacherConfig


@pytest.fixture
def config():
    return RunConfig.from_dict({
        "model": "mobilenet_micro", "data": {"image_size": 32}, "quant": {"weight_bits": 3, "act_bits": 3},
        "train": {"epochs": 2, "batch_size": 16, "device": "cpu"}, "remedies": [{"name": "tracking", "momentum": 0.1}]})


def test_measured_speed_is_that_of_the_run(config):
    speed = cost.measure(config, steps=2, classes=7)
    assert speed.how.startswith("measured here") and speed.images_per_second > 1
    assert 1e-4 < speed.checkpoint_gb < 0.02


def test_counted_kernels_grow_with_the_batch(config):
    counts = []
    for batch in (2, 4, 8):
        counter = roofline.StepCount()
        cost._steps(config, batch, 2, counter, 7)
        counts.append(counter)
    assert len({len(counter.kernels) for counter in counts}) == 1
    totals = [[sum(kernel[i] for kernel in counter.kernels) for i in (0, 1)] for counter in counts]
    for i in (0, 1):
        assert totals[2][i] == pytest.approx(roofline.extrapolate(totals[0][i], totals[1][i], (2, 4), 8), rel=0.01)
    assert counts[2].saved == pytest.approx(roofline.extrapolate(counts[0].saved, counts[1].saved, (2, 4), 8), rel=0.02)


def test_operations_are_three_times_those_of_the_forward_pass(config):
    from torch.utils.flop_counter import FlopCounterMode

    counter = roofline.StepCount()
    cost._steps(dataclasses.replace(config, quant=None, remedies=[]), 4, 2, counter, 7)
    net = zoo.load("mobilenet_micro", pretrained=False, num_classes=7)
    with FlopCounterMode(display=False) as mode:
        net(torch.randn(4, 3, 32, 32))
    ratio = sum(operations for _, operations in counter.kernels) / mode.get_total_flops()
    assert 2.8 < ratio <= 3.0  # the image itself needs no gradient


def test_remedies_cost_kernels(config):
    plain, tracked = roofline.StepCount(), roofline.StepCount()
    cost._steps(dataclasses.replace(config, remedies=[]), 2, 2, plain, 7)
    cost._steps(config, 2, 2, tracked, 7)
    assert len(tracked.kernels) > len(plain.kernels)


def test_bin_regularization_costs_passes_over_the_weights_although_it_begins_late(config):
    def counted(remedies):
        counter = roofline.StepCount()
        cost._steps(dataclasses.replace(config, remedies=remedies), 2, 2, counter, 7)
        return counter

    late = {"name": "bin_regularization", "weight": 0.01, "begin": 0.25, "epochs": 150, "crops": 4}
    plain, regularized = counted([]), counted([late])
    more = sum(moved for moved, _ in regularized.kernels) - sum(moved for moved, _ in plain.kernels)
    model = vitq.quantize(zoo.load(config.model, pretrained=False, num_classes=7), vitq.QuantSpec(3, 3))
    weights = 4 * sum(site.latent.numel() for site in vitq.weight_quantizers(model).values())
    assert 10 * weights < more < 150 * weights, "bytes of element-wise passes over the quantized weights"
    assert len(regularized.kernels) > len(plain.kernels)


def test_stochastic_depth_is_that_of_the_run(config):
    counts = []
    for rate in (0.5, False):
        counter = roofline.StepCount()
        changed = dataclasses.replace(config, model="vit_micro", remedies=[], stochastic_depth=rate)
        cost._steps(changed, 2, 2, counter, 7)
        counts.append(len(counter.kernels))
    assert counts[0] > counts[1]


def test_kernels_of_ofq_are_counted_as_on_a_gpu(config):
    ofq = dataclasses.replace(
        config, model="vit_micro", teacher=None, remedies=[], data=dataclasses.replace(config.data, image_size=32),
        quant={"weight_bits": 2, "act_bits": 2, "weight": "statsq", "act": "offset_lsq", "activation_scales": "token",
               "first_last_weight": "lsq", "image_bits": 8, "query_key": "reparameterized"})
    from vitq.quantizers import offset_lsq

    chunk = offset_lsq.CHUNK
    offset_lsq.CHUNK = 2**10  # on a processor in parts, whose number grows with the batch
    try:
        plain = cost.count(ofq, classes=7)
        taught = cost.count(dataclasses.replace(ofq, teacher=TeacherConfig(kind="hard_and_soft")), classes=7)
        assert offset_lsq.CHUNK == 2**10
    finally:
        offset_lsq.CHUNK = chunk
    assert plain.images_per_second > taught.images_per_second, "the teacher costs time"


def test_time_is_the_slowest_of_bytes_operations_and_launch():
    device = roofline.Device("test", 100.0, 1000.0, "", bandwidth_share=0.5, peak_share=0.1, launch=1.0)
    assert device.seconds(500, 50) == 10.0 and device.seconds(5, 2000) == 20.0 and device.seconds(5, 5) == 1.0
    small, large = [(100, 0), (0, 100)], [(200, 0), (0, 200)]
    assert roofline.step_seconds(small, large, (1, 2), 10, device) == pytest.approx(20 + 10)


def test_hours_follow_steps_seeds_and_evaluations(config):
    speed = cost.Speed("x", "y", images_per_second=10.0, memory_gb=None, checkpoint_gb=1.0)
    once = cost.estimate(config, speed, train_images=1600, test_images=300)
    assert once.device_hours == pytest.approx((2 * 1600 + 4 * 300 / 3) / 10 / 3600)
    thrice = cost.estimate(config, speed, train_images=1600, test_images=300, seeds=3)
    assert thrice.device_hours == pytest.approx(3 * once.device_hours) and thrice.disk_gb == 3 * once.disk_gb == 12
    limited = cost.estimate(dataclasses.replace(config, limit_batches=1), speed, train_images=1600, test_images=300)
    assert limited.device_hours < once.device_hours / 2


def test_an_average_of_the_weights_is_evaluated_too_and_a_pass_of_crops_only_once(config):
    speed = cost.Speed("x", "y", images_per_second=10.0, memory_gb=None, checkpoint_gb=1.0)

    def hours(**changes):
        changed = dataclasses.replace(config, train=dataclasses.replace(config.train, evaluate_every=None, **changes))
        return cost.estimate(changed, speed, train_images=1600, test_images=300)

    more = hours(ema=0.9).device_hours - hours().device_hours
    assert more == pytest.approx((2 + 1) * 100 / 10 / 3600), "after both epochs and at the end"
    soft = dataclasses.replace(config, teacher=None, soft_labels={"crops": 2}, train=dataclasses.replace(
        config.train, evaluate_every=None, batch_size=2))
    single = dataclasses.replace(soft, soft_labels={"crops": 1})
    seconds = [3600 * cost.estimate(one, speed, train_images=1600, test_images=300).device_hours
               for one in (single, soft)]
    assert seconds[0] - seconds[1] == pytest.approx(100 / 10)


def test_runs_that_differ_in_bits_are_counted_once_and_one_in_full_precision_apart(config, monkeypatch):
    counted = []
    monkeypatch.setattr(plan, "count", lambda config: counted.append(config) or len(counted))
    known, wide = {}, dataclasses.replace(config, quant=config.quant | {"weight_bits": 7})
    plain = dataclasses.replace(config, quant=None)
    assert [plan.speed_of(one, known) for one in (config, wide, plain)] == [1, 1, 2]


def test_list_of_runs(tmp_path, capsys):
    assert plan.main([str(tmp_path), "--out", str(tmp_path / "runs.csv")]) == 3
    assert capsys.readouterr().err.count("\n") == 1
    with pytest.raises(InputError, match="markers|needs the lines"):
        plan.with_table("no table here", [], "nagel2022")


def test_freezing_does_not_change_the_kernels_that_are_counted():
    entry = {"name": "freezing", "threshold": 0.02, "final": 0.01, "momentum": 0.5, "begin": 0.0}
    assert cost._without_frozen(entry) == entry | {"threshold": 1.0, "final": None}
    assert cost._without_frozen({"name": "tracking", "momentum": 0.5}) == {"name": "tracking", "momentum": 0.5}
