"""Reparameterization: tests 4 to 6 of the specification, and the padding of Swin's windows."""

import pytest
import timm
import torch
from torch import nn

from vitq import zoo
from vitq.convert import INPUT
from vitq.errors import InputError
from vitq.papers.erq2024.options import ErqOptions
from vitq.papers.erq2024.prepare import calibrate, floating, prepare, reparameterize
from vitq.papers.erq2024.repq import norm_pairs, reparameterize_layernorm
from vitq.quantizers.affine import Affine


def normal(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def pair(bias=True, channels=24, rows=10):
    norm, linear = nn.LayerNorm(channels).double(), nn.Linear(channels, rows, bias).double()
    with torch.no_grad():
        norm.weight.copy_(normal(channels, seed=1).abs() + 0.2)
        norm.bias.copy_(normal(channels, seed=2))
        linear.weight.copy_(normal(rows, channels, seed=3))
    x = normal(50, channels)
    quantizer = Affine(4, -1).double()
    quantizer.initialize(norm(x).detach())
    return norm, linear, quantizer, x


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("rounded", [True, False])
def test_the_output_stays(bias, rounded):
    norm, linear, quantizer, x = pair(bias)
    before = linear(norm(x))
    moved = quantizer.scale * (quantizer.zero_point - (quantizer.zero_point.mean().round() if rounded
                                                       else quantizer.zero_point.mean()))
    expected = -linear.weight @ moved + (linear.bias if bias else 0)
    reparameterize_layernorm(norm, linear, quantizer, rounded)
    assert (linear(norm(x)) - before).abs().max() < 1e-12
    torch.testing.assert_close(linear.bias, expected)
    assert quantizer.scale.shape == (1,) and quantizer.channel_axis is None


def test_the_output_stays_in_float32():
    norm, linear, quantizer, x = pair()
    norm, linear, quantizer, x = norm.float(), linear.float(), quantizer.float(), x.float()
    before = linear(norm(x))
    reparameterize_layernorm(norm, linear, quantizer)
    torch.testing.assert_close(linear(norm(x)), before, rtol=1e-5, atol=1e-5)


def test_integers_stay_with_a_rounded_zero_point_and_not_with_a_fractional_one():
    for rounded in (True, False):
        norm, linear, quantizer, x = pair()
        u = norm(x).detach()
        before, position = quantizer.codes(u), quantizer.position(u)
        clear = ((position - position.floor() - 0.5).abs() > 1e-6)
        reparameterize_layernorm(norm, linear, quantizer, rounded)
        after = quantizer.codes(norm(x).detach())
        assert (after == before)[clear].all() == rounded
        fine = torch.linspace(-20, 20, 40_001, dtype=torch.float64)
        assert quantizer(fine).unique().numel() == (16 if rounded else 17)


def test_equal_channels_change_nothing():
    norm, linear, quantizer, _ = pair()
    quantizer.set_grid(torch.full((24,), 0.25), torch.full((24,), 6.0))
    before = [p.detach().clone() for p in (norm.weight, norm.bias, linear.weight, linear.bias)]
    reparameterize_layernorm(norm, linear, quantizer)
    for old, new in zip(before, (norm.weight, norm.bias, linear.weight, linear.bias), strict=True):
        torch.testing.assert_close(new, old, rtol=0, atol=1e-15)


def test_zeros_put_in_behind_the_norm_stay_zeros():
    norm, linear, quantizer, x = pair()
    before = linear(nn.functional.pad(norm(x), (0, 0, 0, 7)))
    reparameterize_layernorm(norm, linear, quantizer, padded=True)
    assert (linear(nn.functional.pad(norm(x), (0, 0, 0, 7))) - before).abs().max() < 1e-12


def test_a_quantizer_of_the_tensor_is_refused():
    norm, linear, _, x = pair()
    quantizer = Affine(4).double()
    quantizer.initialize(x)
    with pytest.raises(InputError, match="channels"):
        reparameterize_layernorm(norm, linear, quantizer)


NETWORKS = {
    "vit": lambda: zoo.load("vit_micro"),
    "swin": lambda: zoo.load("swin_micro"),
    "deit": lambda: timm.create_model("deit_tiny_distilled_patch16_224", img_size=32, depth=2),
    "padded swin": lambda: timm.create_model("swin_tiny_patch4_window7_224", img_size=96, depths=(2, 2), embed_dim=24,
                                             num_heads=(2, 4)),
}


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("merge", [False, True])
def test_logits_of_a_whole_network_stay(name, merge):
    torch.manual_seed(0)
    model = NETWORKS[name]().double().eval()
    if name == "padded swin":
        for block in (m for m in model.modules() if isinstance(m, nn.LayerNorm)):
            nn.init.normal_(block.bias)  # so that a padded zero is far from what the norm gives
    size = 96 if name == "padded swin" else 32
    images = normal(3, 3, size, size)
    options = ErqOptions(merge=merge)
    prepared = prepare(model, options)
    calibrate(prepared, images)
    reparameterize(prepared, options)
    with torch.no_grad(), floating(prepared):
        torch.testing.assert_close(prepared(images), model(images), rtol=0, atol=1e-10)
    found = norm_pairs(model, merge)
    assert all(getattr(prepared.get_submodule(p.linear), INPUT).scale.numel() == 1 for p in found)
    merging = [p for p in found if p.linear.endswith("reduction")]
    assert bool(merging) == (merge and "swin" in name)
    assert any(p.padded for p in found) == (name == "padded swin")
    assert all(prepared.get_submodule(p.linear).bias is not None for p in merging)
