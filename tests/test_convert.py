"""Conversion of timm models: what is quantized, overrides, calibration, bad input."""

import copy
import subprocess
import sys

import pytest
import timm
import torch
from torch import nn

import vitq
from vitq.convert import activation_quantizers
from vitq.errors import InputError
from vitq.testing import assert_same_after_reload


def build(name):
    torch.manual_seed(0)
    if name == "swin_micro_for_tests":
        from timm.models.swin_transformer import SwinTransformer

        return SwinTransformer(img_size=32, patch_size=4, embed_dim=16, depths=(2, 2), num_heads=(2, 4), window_size=4,
                               num_classes=7).eval(), torch.randn(2, 3, 32, 32)
    size = 160 if "vit" in name else 64
    return timm.create_model(name, num_classes=7).eval(), torch.randn(2, 3, size, size)


MODELS = ["test_vit", "test_efficientnet", "test_resnet", "mobilenetv3_small_050", "swin_micro_for_tests"]


@pytest.fixture(params=MODELS)
def case(request):
    return build(request.param)


def test_every_layer_is_quantized_and_first_and_last_have_8_bits(case):
    float_model, x = case
    model = vitq.calibrate(vitq.quantize(float_model, vitq.QuantSpec(3, 4)), [x])
    layers = [n for n, m in float_model.named_modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
    sites = vitq.weight_quantizers(model)
    assert list(sites) == layers
    bits = [s.quantizer.bits for s in sites.values()]
    assert bits[0] == 8 and bits[-1] == 8 and set(bits[1:-1]) == {3}
    inputs = {n: q for n, q in activation_quantizers(model).items() if n.endswith("input_quantizer")}
    assert len(inputs) == len(layers) - 1 and f"{layers[0]}.input_quantizer" not in inputs
    assert inputs[f"{layers[-1]}.input_quantizer"].bits == 8
    table = vitq.describe(model)
    assert set(layers) <= set(table["layer"]) and not (table["weight"] == "float").any()
    assert not any(isinstance(m, vitq.quantizers.Quantizer) for m in float_model.modules())


def test_reload_copy_and_gradients(case):
    float_model, x = case
    model = vitq.calibrate(vitq.quantize(float_model, vitq.QuantSpec(4, 4)), [x])
    assert_same_after_reload(model, vitq.quantize(float_model, vitq.QuantSpec(4, 4)), x)
    model.train()
    model(x).square().sum().backward()
    missing = [n for n, p in model.named_parameters() if p.grad is None]
    assert not missing


def test_attention_operands_are_quantized():
    float_model, x = build("test_vit")
    for on, number in ((True, 4), (False, 0)):
        model = vitq.quantize(float_model, vitq.QuantSpec(4, 4, attention=on))
        per_block = [n for n in activation_quantizers(model) if n.startswith("blocks.0.attn.") and "input" not in n]
        assert len(per_block) == number


def test_high_precision_attention_equals_the_float_model(case):
    float_model, x = case
    model = vitq.calibrate(vitq.quantize(float_model, vitq.QuantSpec(8, 8)), [x])
    with torch.no_grad():
        a, b = float_model(x), model(x)
    assert (a - b).norm() < 0.3 * a.norm()


def test_quantized_attention_is_exact_without_rounding(case, monkeypatch):
    # with every quantizer the identity, the rewritten attention must equal timm's
    float_model, x = case
    model = vitq.quantize(float_model, vitq.QuantSpec(8, 8))
    monkeypatch.setattr(vitq.quantizers.Quantizer, "forward", lambda self, t: t)
    with torch.no_grad():
        torch.testing.assert_close(model(x), float_model(x), rtol=1e-4, atol=1e-5)


def test_overrides_and_none_bits():
    float_model, x = build("test_efficientnet")
    overrides = {"*conv_dw": {"weight_bits": 8}, "classifier": {"weight_bits": None}}
    spec = vitq.QuantSpec(3, None, first_last_bits=None, overrides=overrides)
    model = vitq.quantize(float_model, spec)
    for name, site in vitq.weight_quantizers(model).items():
        assert site.quantizer.bits == (8 if name.endswith("conv_dw") else 3)
        assert (site.kind == "depthwise") == name.endswith("conv_dw")
    assert "classifier" not in vitq.weight_quantizers(model)
    assert not activation_quantizers(model)


def test_weight_only_8_bit_equals_rounded_weights():
    float_model, x = build("test_resnet")
    model = vitq.quantize(float_model, vitq.QuantSpec(8))
    site = next(iter(vitq.weight_quantizers(model).values()))
    torch.testing.assert_close(site.module.weight, site.quantizer.dequantize(site.codes()))
    assert torch.equal(site.latent, float_model.get_submodule(site.name).weight)


def test_codes_match_the_weights_used():
    float_model, x = build("test_vit")
    model = vitq.quantize(float_model, vitq.QuantSpec(2))
    for site in vitq.weight_quantizers(model).values():
        torch.testing.assert_close(site.module.weight, site.quantizer.dequantize(site.codes()), rtol=0, atol=0)


def test_compile_gives_the_same():
    float_model, x = build("test_resnet")
    model = vitq.calibrate(vitq.quantize(float_model, vitq.QuantSpec(4, 4)), [x])
    with torch.no_grad():
        torch.testing.assert_close(torch.compile(model, backend="aot_eager")(x), model(x), rtol=1e-5, atol=1e-5)


def test_scales_are_listed_once():
    float_model, x = build("test_vit")
    model = vitq.quantize(float_model, vitq.QuantSpec(4, 4))
    scales = vitq.scale_parameters(model)
    assert len(scales) == len({id(p) for p in scales}) == sum(n.endswith("scale") for n, _ in model.named_parameters())


@pytest.mark.parametrize(("arguments", "named"), [
    ({"weight_bits": 0}, "weight_bits"), ({"weight_bits": 1}, "weight_bits"), ({"act_bits": 9}, "act_bits"),
    ({"act_bits": 2.5}, "act_bits"), ({"weight": "magic"}, "weight"), ({"first_last_bits": 16}, "first_last_bits"),
    ({"overrides": {"*": {"bits": 3}}}, "overrides"), ({"weight_options": {"colour": 1}}, "weight_options"),
])
def test_a_wrong_spec_is_refused_at_once(arguments, named):
    with pytest.raises(InputError, match=named):
        vitq.QuantSpec(**arguments)


def test_unknown_keys_and_patterns_are_named():
    with pytest.raises(InputError, match="wieght_bits"):
        vitq.QuantSpec.from_dict({"wieght_bits": 3})
    with pytest.raises(InputError, match="nothing"):
        vitq.quantize(build("test_resnet")[0], vitq.QuantSpec(4, overrides={"nothing.*": {"weight_bits": 8}}))


def test_broken_models_are_refused():
    model, x = build("test_resnet")
    broken = copy.deepcopy(model)
    broken.layer2[0].conv1.weight.data[0, 0, 0, 0] = float("nan")
    with pytest.raises(InputError, match="layer2.0.conv1.weight"):
        vitq.quantize(broken, vitq.QuantSpec(4))
    quantized = vitq.quantize(model, vitq.QuantSpec(4, 4))
    with pytest.raises(InputError, match="parametrized already"):
        vitq.quantize(quantized, vitq.QuantSpec(4))
    with pytest.raises(InputError, match="batches"):
        vitq.calibrate(quantized, [])
    with pytest.raises(InputError, match="NaN"):
        vitq.calibrate(quantized, [x * float("nan")])
    with pytest.raises(InputError, match="MultiheadAttention"):
        vitq.quantize(nn.Sequential(nn.Linear(4, 4), nn.MultiheadAttention(4, 2)), vitq.QuantSpec(4))


def test_import_is_light():
    code = "import torch, sys; before = set(sys.modules); import vitq; new = set(sys.modules) - before; print(*new)"
    new = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"timm", "pandas", "matplotlib", "sklearn", "accelerate"} & set(new)


@pytest.mark.parametrize("name", ["test_vit", "test_efficientnet"])
def test_a_network_of_features_has_no_last_layer(name):
    torch.manual_seed(0)
    features = timm.create_model(name, num_classes=0)
    bits = [s.quantizer.bits for s in vitq.weight_quantizers(vitq.quantize(features, vitq.QuantSpec(3, 4))).values()]
    assert bits[0] == 8 and set(bits[1:]) == {3}
    image = 160 if "vit" in name else 64
    model = vitq.calibrate(vitq.quantize(features, vitq.QuantSpec(3, 4)), [torch.randn(2, 3, image, image)])
    assert {q.bits for q in activation_quantizers(model).values()} == {4}


@pytest.mark.parametrize(("wrong", "complaint"), [
    ({"weight_scales": "head"}, "weight_scales='head' needs query_key='separate'"),
    ({"weight_scales": "head", "query_key": "separate"}, "lsq has no scale a head; use weight='mdq'"),
    ({"weight_scales": "row"}, "weight_scales='row'"),
    ({"gelu_offset": True}, "gelu_offset=True: lsq learns no such offset"),
])  # fmt: skip
def test_scales_that_a_quantizer_has_not_are_refused(wrong, complaint):
    with pytest.raises(InputError, match=complaint):
        vitq.QuantSpec(3, 3, **wrong)


def test_a_spec_written_before_these_fields_means_the_same():
    old = vitq.QuantSpec(3, 4, query_key="separate").to_dict()
    del old["weight_scales"], old["gelu_offset"]
    assert vitq.QuantSpec.from_dict(old) == vitq.QuantSpec(3, 4, query_key="separate")
