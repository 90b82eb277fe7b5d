"""Bin regularization, against tests T14 to T18 of the specification."""

import math

import pytest
import torch

from vitq import QuantSpec, quantize, zoo
from vitq.convert import weight_quantizers
from vitq.errors import InputError
from vitq.papers.nagel2022 import dampening_loss
from vitq.papers.vvtq2023 import BinRegularization, bin_regularization, found_by_float_test
from vitq.quantizers import LSQ, StatsQ, Uniform
from vitq.train.callbacks import TrainState


def quantizer(bits=3, scale=1.0, **options):
    q = LSQ(bits, **options)
    q.scale.data = torch.tensor([scale])
    q.initialized = True
    return q


def by_definition(w, q, reduction="mean", variance=True):
    """The formula, one bin after another, through autograd; the bins of each scale apart."""
    step = q.step_size(w)
    low, high = q.limits(w) if isinstance(q, StatsQ) else (q.qmin * step, q.qmax * step)
    clipped = torch.minimum(torch.maximum(w, low), high)
    codes = q.codes(w)
    residual = q.dequantize(codes, w).detach() - clipped
    total = residual.pow(2).mean() if reduction == "mean" else residual.pow(2).sum()
    scales = torch.arange(step.numel()).reshape(step.shape).expand(w.shape)
    for number in range(step.numel() if variance else 0):
        for k in range(q.qmin, q.qmax + 1):
            members = clipped[(codes == k) & (scales == number)]
            if members.numel() > 1:
                total = total + members.var()
    return total


CASES = [LSQ(2), LSQ(3, channel_axis=0), LSQ(4), LSQ(8), LSQ(3, channel_axis=1), LSQ(4, grad_scale="lsq"),
         Uniform(3, True), StatsQ(2), StatsQ(4)]  # fmt: skip


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("variance", [True, False])
@pytest.mark.parametrize("q", CASES, ids=repr)
def test_value_and_gradient_are_those_of_the_definition(q, reduction, variance):
    torch.manual_seed(0)
    w = torch.randn(24, 40, dtype=torch.float64)
    w[0, :3] = torch.tensor([9.0, -9.0, 8.0])  # clipped
    q.initialize(w)
    q.double()
    a, b = w.clone().requires_grad_(), w.clone().requires_grad_()
    loss, expected = bin_regularization(a, q, reduction, variance), by_definition(b, q, reduction, variance)
    torch.testing.assert_close(loss, expected)
    own = torch.autograd.grad(loss, [a, *q.parameters()], allow_unused=True)
    if isinstance(q, StatsQ):
        return  # its scale is a statistic of the weight: the definition through autograd differentiates that too
    theirs = torch.autograd.grad(expected, [b, *q.parameters()], allow_unused=True)
    torch.testing.assert_close(own[0], theirs[0])
    if own[1:] and variance:
        torch.testing.assert_close(own[1], theirs[1], atol=1e-9, rtol=1e-6)


def test_zero_on_the_grid_and_quadratic_in_the_scale():
    grid = (torch.arange(-4.0, 4).repeat(8) * 0.37).reshape(8, 8)
    assert bin_regularization(grid, quantizer(scale=0.37)).item() == pytest.approx(0, abs=1e-12)
    w = torch.randn(32, 32)
    one, four = bin_regularization(w, quantizer(scale=0.3)), bin_regularization(4 * w, quantizer(scale=1.2))
    torch.testing.assert_close(four, 16 * one)
    shuffled = w.flatten()[torch.randperm(1024)].reshape(32, 32)
    torch.testing.assert_close(bin_regularization(shuffled, quantizer(scale=0.3)), one)


def test_the_scale_has_no_gradient_from_the_distance():
    q, w = quantizer(4, 0.2), torch.randn(64, 64, requires_grad=True)
    bin_regularization(w, q, variance=False).backward()
    assert q.scale.grad is None or q.scale.grad.item() == 0


def descend(w, q, reduction, variance, rate, steps=200):
    w = w.clone().requires_grad_()
    codes, path = q.codes(w), [w.detach().clone()]
    for _ in range(steps):
        (gradient,) = torch.autograd.grad(bin_regularization(w, q, reduction, variance), w)
        w.data -= rate * gradient
        assert q.codes(w).equal(codes)
        path.append(w.detach().clone())
    return path


def test_the_distance_moves_a_weight_to_the_centre_and_never_changes_its_bin():
    path = torch.stack(descend(torch.tensor([[1.4, -0.4, 2.0, 1.6]]), quantizer(), "sum", False, 0.02))
    distance = (path - torch.tensor([1.0, 0.0, 2.0, 2.0])).abs()
    assert (distance.diff(dim=0) <= 1e-7).all() and distance[-1].max() < 1e-3


def test_the_variance_keeps_the_means_of_bins_and_shrinks_their_spread():
    torch.manual_seed(0)
    w, q = torch.rand(1, 400) * 0.8 + torch.randint(-3, 3, (1, 400)) - 0.3, quantizer()
    alone = [bin_regularization(w.clone().requires_grad_(), q, "mean", v) for v in (True, False)]
    v = w.clone().requires_grad_()
    (pull,) = torch.autograd.grad(bin_regularization(v, q) - bin_regularization(v, q, variance=False), v)
    assert alone[0] > alone[1]
    for k in range(-3, 3):
        members = q.codes(w) == k
        assert pull[members].sum().abs() < 1e-5
        expected = 2 * (w[members] - w[members].mean()) / (members.sum() - 1)
        torch.testing.assert_close(pull[members], expected, atol=1e-5, rtol=1e-4)
        assert (w - 5 * pull)[members].std() < w[members].std()


def test_bins_of_one_member_or_none_count_for_nothing():
    w = torch.tensor([[0.1, 2.2, 2.4]])
    value = bin_regularization(w, quantizer(), "sum")
    assert value.item() == pytest.approx(0.01 + 0.04 + 0.16 + 0.02)  # the variance of 2.2 and 2.4 alone


def test_integer_codes_find_every_weight_and_the_float_test_does_not():
    torch.manual_seed(0)
    found = []
    for _ in range(60):
        q, w = quantizer(8, 0.01 + torch.rand(1).item()), torch.randn(64, 64) * 20
        found.append(found_by_float_test(w, q))
    assert min(found) < 0.98 and max(found) <= 1
    # a bin that the float test loses has variance here
    q, w = quantizer(8, 0.01 + torch.rand(1).item()), torch.randn(64, 64) * 20
    torch.testing.assert_close(bin_regularization(w, q), by_definition(w, q))


def test_without_variance_and_summed_it_is_dampening():
    q, w = quantizer(3, 0.4), torch.randn(16, 16, requires_grad=True)
    ours, theirs = bin_regularization(w, q, "sum", variance=False), dampening_loss(w, q, "sum")
    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(torch.autograd.grad(ours, w), torch.autograd.grad(theirs, w))


def test_frozen_weights_are_left_alone_by_the_variance_only_if_their_code_says_so():
    q, w = quantizer(), torch.tensor([[0.4, 0.4]])
    q.freeze(torch.tensor([[True, False]]), torch.tensor([[1, 0]], dtype=torch.int8))
    w.requires_grad_()
    bin_regularization(w, q, "sum", variance=False).backward()
    assert w.grad.flatten().tolist() == pytest.approx([2 * (0.4 - 1), 2 * 0.4])


def test_schedule_of_the_release():
    remedy = BinRegularization(epochs=150)
    table = {36: 0, 40: 1.2e-5, 60: 9.55e-4, 75: 2.5e-3, 93.75: 5e-3, 120: 8.35e-3, 148: 9.99e-3}
    for epoch, value in table.items():
        assert remedy.strength(epoch, 150) == pytest.approx(value, rel=0.02)
    values = [remedy.strength(0.5 * t, 150) for t in range(301)]
    assert values == sorted(values) and max(values) <= 0.01 and set(values[:75]) == {0.0}


@pytest.fixture
def model():
    return quantize(zoo.load("vit_micro"), QuantSpec(3, overrides={"blocks.1.*": {"weight_bits": None}}))


def training(model, remedy, epoch, step=0):
    state = TrainState(model, torch.device("cpu"), total_steps=100, step=step, epoch=epoch)
    remedy.on_start(state)
    return state


def test_the_callback_adds_all_quantized_layers_and_skips_float_ones(model):
    remedy = BinRegularization(0.02, begin=0.0, epochs=150, crops=4)
    state = training(model, remedy, epoch=18)
    term = remedy.loss(state)
    sites = weight_quantizers(model).values()
    expected = sum(bin_regularization(s.latent, s.quantizer) for s in sites)
    torch.testing.assert_close(term, remedy.strength(72, 150) * expected)
    assert len(sites) == 2 + 3 * 4 and {s.quantizer.bits for s in sites} == {3, 8}
    term.backward()
    assert model.blocks[1].attn.qkv.weight.grad is None
    assert BinRegularization(epochs=150).loss(training(model, BinRegularization(), epoch=30)) is None
    assert len(training_sites(model, max_bits=4)) == 12


def training_sites(model, **options):
    remedy = BinRegularization(**options)
    training(model, remedy, 0)
    return remedy.sites


def test_gradient_share_is_the_ratio_of_root_mean_squares(model):
    remedy = BinRegularization(0.5, begin=0.0)
    state = training(model, remedy, epoch=0, step=90)
    latents = [site.latent for site in weight_quantizers(model).values()]
    own = torch.autograd.grad(remedy.loss(state), latents)
    loss = model(torch.randn(2, 3, 32, 32)).square().mean() + remedy.loss(state)
    loss.backward()
    remedy.after_backward(state)
    norm = [math.sqrt(sum(g.square().sum().item() for g in some)) for some in (own, [p.grad for p in latents])]
    assert float(remedy.metrics()["bin_gradient_share"]) == pytest.approx(norm[0] / norm[1], rel=1e-4)
    quiet = BinRegularization(begin=0.25)
    assert quiet.loss(training(model, quiet, 0)) is None and quiet.metrics()["bin_gradient_share"] == 0


@pytest.mark.parametrize("wrong", [{"weight": -1}, {"begin": 1}, {"reduction": "max"}, {"epochs": 0}, {"crops": 0}])
def test_wrong_arguments_are_named(wrong):
    with pytest.raises(InputError, match=next(iter(wrong))):
        BinRegularization(**wrong)
    with pytest.raises(InputError, match="max_bits"):
        training(quantize(zoo.load("vit_micro"), QuantSpec(3)), BinRegularization(max_bits=2), 0)


def test_oscillation_stops_under_the_summed_distance():
    """T20: gradient descent on a target between two levels keeps switching; a strong enough pull ends that."""
    switches = {}
    for strength in (0.0, 1.0):
        q, w = quantizer(), torch.tensor([[0.45]], requires_grad=True)
        codes = []
        for _ in range(2000):
            loss = 0.5 * (0.6 - q(w)).square().sum()
            loss = loss + strength * bin_regularization(w, q, "sum", variance=False)
            (gradient,) = torch.autograd.grad(loss, w)
            w.data -= 0.01 * gradient
            codes.append(q.codes(w).item())
        tail = codes[1000:]
        switches[strength] = sum(a != b for a, b in zip(tail, tail[1:], strict=False))
        if not strength:
            assert sum(tail) / 1000 == pytest.approx(0.6, abs=0.05)  # (w* - a) / (b - a)
    assert switches[0.0] > 50 and switches[1.0] == 0
