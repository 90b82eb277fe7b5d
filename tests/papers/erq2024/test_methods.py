"""Whole networks: tests 22 to 24 of the specification on shipped networks, saving, and the order of methods."""

import copy

import pytest
import timm
import torch

import vitq
from vitq import data, zoo
from vitq.convert import activation_quantizers, weight_quantizers
from vitq.errors import InputError
from vitq.papers.erq2024 import METHODS, PAPER_CODE, ErqOptions, quantize_erq, quantize_repq, save_erq
from vitq.papers.erq2024.collect import rebatch

IMAGES = torch.randn(16, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def state(found):
    return found.model.state_dict()


def same(a, b):
    return all(x.equal(y) if isinstance(x, torch.Tensor) else True for x, y in zip(a.values(), b.values(), strict=True))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", ["vit_micro", "swin_micro"])
def test_every_weight_lies_on_a_grid_of_so_many_levels(name, method):
    model = zoo.load(name)
    before = copy.deepcopy(model.state_dict())
    found = METHODS[method](model, IMAGES[:6], 3, 4)
    assert same(before, model.state_dict())
    sites = weight_quantizers(found.model)
    assert len(sites) == len(found.layers) == sum(isinstance(m, (torch.nn.Linear, torch.nn.Conv2d))
                                                  for m in model.modules())
    for site in sites.values():
        assert site.module.weight.equal(site.latent)  # rounding again changes nothing
        assert site.codes().min() >= 0 and site.codes().max() <= 7
    assert torch.isfinite(found.model(IMAGES)).all()


def test_images_in_one_batch_or_many_give_the_same_model():
    model = zoo.load("vit_micro")
    whole = quantize_erq(model, IMAGES, 4, 4)
    for parts in (list(IMAGES.split(2)), IMAGES.split(5), ((x, torch.zeros(len(x))) for x in IMAGES.split(3))):
        other = quantize_erq(model, parts, 4, 4)
        assert same(state(whole), state(other)) and other.images == 16


def test_repeated_and_parallel_runs_give_the_same_model():
    model = zoo.load("swin_micro")
    whole = quantize_erq(model, IMAGES, 4, 4)
    assert same(state(whole), state(quantize_erq(model, IMAGES, 4, 4)))
    assert same(state(whole), state(quantize_erq(model, IMAGES, 4, 4, workers=2)))


@pytest.mark.parametrize("method", ["erq", "erq_plus", "nearest"])
@pytest.mark.parametrize("name", ["vit_micro", "swin_micro", "mobilenet_micro"])
def test_a_saved_model_gives_the_same_outputs(name, method, tmp_path):
    found = METHODS[method](zoo.load(name), IMAGES, 4, 4, merge=True)
    loaded = vitq.load(save_erq(found.model, tmp_path / "model.safetensors"))
    with torch.no_grad():
        assert loaded(IMAGES).equal(found.model(IMAGES))


def test_a_padded_swin_survives_saving(tmp_path):
    make = {"img_size": 96, "depths": (2, 2), "embed_dim": 24, "num_heads": (2, 4)}
    model = timm.create_model("swin_tiny_patch4_window7_224", **make).eval()
    images = torch.randn(4, 3, 96, 96)
    found = quantize_erq(model, images)
    from vitq.papers.erq2024.prepare import rebuild

    fresh = rebuild(timm.create_model("swin_tiny_patch4_window7_224", **make), found.model.erq_options)
    fresh.load_state_dict(state(found), strict=True)
    with torch.no_grad():
        assert fresh.eval()(images).equal(found.model(images))


def test_reports_are_the_errors_of_the_layers():
    found = quantize_erq(zoo.load("vit_micro"), IMAGES, 3, 3)
    table = found.table().set_index("name")
    corrected = table[table.index != "patch_embed.proj"]
    assert (corrected.error_aqer <= corrected.error_inputs * (1 + 1e-9)).all()
    assert (table.error_weight_now < table.error_weight).mean() > 0.9
    assert (corrected.error < corrected.error_nearest).mean() > 0.9
    assert table.loc["patch_embed.proj", "error_inputs"] < 1e-9
    assert (table.seconds_weights > 0).all() and table.flips.sum() > 0
    assert table.loc["patch_embed.proj", "kind"] == "conv" and table.loc["head", "kind"] == "vector"
    assert set(found.seconds) == {"ranges", "moments", "layers", "total"} and found.peak_memory > 0


@pytest.mark.parametrize("name", ["vit_micro", "swin_micro", "mobilenet_micro"])
def test_the_reported_error_is_that_of_the_layer_on_the_images(name):
    model = zoo.load(name)
    found = quantize_erq(model, IMAGES, 4, None)  # float activations: layers can be compared one by one
    inputs, outputs = {}, {}
    for path in [r.name for r in found.layers]:
        def hook(module, args, output, path=path):
            inputs[path], outputs[path] = args[0], output

        model.get_submodule(path).register_forward_hook(hook)
    with torch.no_grad():
        model(IMAGES)
        for report in found.layers:
            change = found.model.get_submodule(report.name)(inputs[report.name]) - outputs[report.name]
            relative = change.double().square().sum() / outputs[report.name].double().square().sum()
            assert report.error == pytest.approx(relative.item(), rel=1e-3, abs=1e-9)


def test_corrections_help_on_images_that_they_have_not_seen():
    model = zoo.load("vit_micro")
    pixels, test = _pixels(model, "train", 128), _pixels(model, "test", 200)
    with torch.no_grad():
        exact = model(test)
        error = {name: (METHODS[name](model, pixels, 4, 4).model(test) - exact).square().mean().item()
                 for name in ("nearest", "repq", "erq")}
    assert error["erq"] < error["repq"] < error["nearest"], error


def _pixels(model, split, count):
    images = data.load("glyphs", split, size=32, images=count).for_model(model)
    return images.normalize(images.images)


def test_eight_bits_are_close_to_float():
    model = zoo.load("vit_micro")
    found = quantize_erq(model, IMAGES, 8, 8, probability="uniform")
    with torch.no_grad():
        error = (found.model(IMAGES) - model(IMAGES)).square().mean() / model(IMAGES).square().mean()
    assert error < 2e-3


def test_sequential_inputs_and_float_weights_or_activations():
    model = zoo.load("vit_micro")
    found = quantize_erq(model, IMAGES, 4, 4, data_path="sequential")
    assert [r.name for r in found.layers] == [r.name for r in quantize_erq(model, IMAGES).layers]
    assert not same(state(found), state(quantize_erq(model, IMAGES)))
    assert not weight_quantizers(quantize_erq(model, IMAGES, None, 4).model)
    assert not activation_quantizers(quantize_erq(model, IMAGES, 4, None).model)


def test_the_released_switches_have_a_level_more_and_can_be_saved(tmp_path):
    found = quantize_erq(zoo.load("vit_micro"), IMAGES, 4, 4, **PAPER_CODE)
    folded = found.model.blocks[0].attn.qkv.input_quantizer
    fine = torch.linspace(-30, 30, 10_001)
    assert folded.fractional and folded(fine).unique().numel() == 17
    assert found.model.blocks[0].mlp.fc1.parametrizations.weight[0].outlier.sum() > 0
    assert found.table().stuck.max() > 0
    with torch.no_grad():
        loaded = vitq.load(save_erq(found.model, tmp_path / "model.safetensors"))
        assert loaded(IMAGES).equal(found.model(IMAGES))


@pytest.mark.parametrize(("name", "bits"), [("vit_micro", 3), ("vit_micro", 4), ("swin_micro", 3)])
def test_exact_gain_is_never_worse_on_a_layer_than_the_released_rule(name, bits):
    model = zoo.load(name)
    ours, theirs = (quantize_erq(model, _pixels(model, "train", 16), bits, 4, flip_rule=rule).table()
                    for rule in ("exact_gain", "snap_code"))
    assert (ours.error_weight_now <= theirs.error_weight_now * (1 + 1e-9)).all()


def test_what_is_quantized():
    found = quantize_repq(zoo.load("vit_micro"), IMAGES, 4, 5, image_bits=8)
    quantizers = activation_quantizers(found.model)
    assert quantizers["patch_embed.proj.input_quantizer"].bits == 8
    assert {q.bits for n, q in quantizers.items() if "patch_embed" not in n} == {5}
    assert type(quantizers["blocks.0.attn.probability_quantizer"]).__name__ == "LogSqrt2"
    assert all(q.scale.numel() == 1 for q in quantizers.values())


def test_wrong_arguments_are_refused_before_any_work():
    model = zoo.load("vit_micro")
    for name, value in (("flip_rule", "soft"), ("coe", -1.0), ("weight_bits", 1), ("chunk", 0), ("refine", True)):
        with pytest.raises(InputError, match=name):
            quantize_erq(model, IMAGES, **{name: value})
    with pytest.raises(InputError, match="unknown speed"):
        quantize_erq(model, IMAGES, speed=3)
    with pytest.raises(InputError, match="images is empty"):
        quantize_erq(model, [])
    with pytest.raises(InputError, match="N, C, H, W"):
        quantize_erq(model, [IMAGES[0]])
    with pytest.raises(InputError, match="quantized already"):
        quantize_erq(quantize_erq(model, IMAGES).model, IMAGES)
    with pytest.raises(InputError, match="NaN"):
        quantize_erq(model, IMAGES * torch.nan)
    assert ErqOptions.from_dict(ErqOptions(k=2).to_dict()) == ErqOptions(k=2)


def test_rebatch():
    parts = list(rebatch([IMAGES[:3], IMAGES[3:10], IMAGES[10:]], 4))
    assert [len(p) for p in parts] == [4, 4, 4, 4] and torch.cat(parts).equal(IMAGES)
    assert [len(p) for p in rebatch(IMAGES, 7)] == [7, 7, 2]
