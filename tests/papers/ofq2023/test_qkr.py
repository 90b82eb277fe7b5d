"""Query-key reparameterization against T7 to T9 and section 3.4, and the conversion against T12, T13 and 5.3."""

import pytest
import timm
import torch

import vitq
from vitq.convert import activation_quantizers
from vitq.errors import InputError
from vitq.papers.ofq2023 import ofq_spec, qkr
from vitq.quantizers import LSQ, OffsetLSQ, Quantizer, StatsQ
from vitq.testing import assert_same_after_reload

MODELS = ["vit_micro", "swin_micro", "deit"]


def build(name):
    import vitq.micro  # noqa: F401

    torch.manual_seed(0)
    if name == "deit":
        model = timm.create_model("deit_tiny_distilled_patch16_224", img_size=32, embed_dim=48, depth=2, num_heads=3,
                                  num_classes=7)
    else:
        model = timm.create_model(name)
    for n, p in model.named_parameters():  # large enough for every term of the logits to matter
        if n.endswith("bias"):
            torch.nn.init.normal_(p, std=0.5)
        if "qkv.weight" in n:
            torch.nn.init.normal_(p, std=0.2)
    return model.eval(), torch.randn(4, 3, 32, 32)


@pytest.fixture(params=MODELS)
def case(request):
    return build(request.param)


def converted(model, x, bits=2, **options):
    return vitq.calibrate(vitq.quantize(model, ofq_spec(bits, **options)), [x])


def without_quantizers(monkeypatch):
    monkeypatch.setattr(Quantizer, "forward", lambda self, x: x)


def test_exact_in_floating_point_with_a_query_bias(case, monkeypatch):
    model, x = case
    fused, qkr_model = (vitq.quantize(model, ofq_spec(4, query_key=form)) for form in ("fused", "reparameterized"))
    separate = vitq.quantize(model, vitq.QuantSpec(4, 4, query_key="separate"))
    released = vitq.quantize(model, ofq_spec(4, query_bias=False))
    without_quantizers(monkeypatch)
    x, expected = x.double(), model.double()(x.double())
    with torch.no_grad():
        for form in (fused, separate, qkr_model):
            torch.testing.assert_close(form.double()(x), expected, rtol=1e-9, atol=1e-9)
        assert (released.double()(x) - expected).abs().max() > 1e-3


def test_without_a_query_bias_the_released_form_is_exact_too(case, monkeypatch):
    model, x = case
    for n, p in model.named_parameters():
        if n.endswith("qkv.bias"):
            p.data[: len(p) // 3] = 0
    released = vitq.quantize(model, ofq_spec(4, query_bias=False))
    without_quantizers(monkeypatch)
    with torch.no_grad():
        torch.testing.assert_close(released.double()(x.double()), model.double()(x.double()), rtol=1e-9, atol=1e-9)


def test_the_post_offset_of_the_product_is_dead(case):
    model, x = case
    model = converted(model, x).train()
    quantizer = next(q for n, q in activation_quantizers(model).items() if n.endswith("query_key_quantizer"))
    model(x).square().sum().backward()
    live = quantizer.pre_offset.grad.abs().max()
    assert quantizer.post_offset.grad.abs().max() < 1e-4 * max(live, 1)
    with torch.no_grad():
        before = model.eval()(x)
        quantizer.post_offset.add_(0.5)
        assert (model(x) - before).abs().max() < 0.05 * before.abs().max()  # round-off alone moves single codes
        quantizer.pre_offset.add_(0.5)


def test_gradients_hold_the_real_valued_partner():
    query, key = (torch.nn.Linear(6, 6, bias=False, dtype=torch.float64) for _ in range(2))
    product = qkr.QueryKeyReparameterization(query, key, 2, StatsQ(2))
    upstream = torch.randn(12, 6, dtype=torch.float64)
    product.weight.backward(upstream)
    for h in range(2):
        g, q, k = upstream[6 * h : 6 * h + 6], query.weight[3 * h : 3 * h + 3], key.weight[3 * h : 3 * h + 3]
        torch.testing.assert_close(query.weight.grad[3 * h : 3 * h + 3], k @ g.T)
        torch.testing.assert_close(key.weight.grad[3 * h : 3 * h + 3], q @ g)
        torch.testing.assert_close(product.latent[6 * h : 6 * h + 6], q.T @ k)
        assert torch.linalg.matrix_rank(product.latent[6 * h : 6 * h + 6]) == 3
        assert torch.linalg.matrix_rank(product.weight[6 * h : 6 * h + 6]) > 3


def test_one_scale_for_each_head_and_query_side_feature(case):
    model, x = case
    for name, site in vitq.weight_quantizers(converted(model, x)).items():
        if not site.is_parameter:
            assert name.endswith("query_key") and site.kind == "query_key"
            heads, channels = site.module.heads, site.module.query.in_features
            assert site.shape == (heads * channels, channels) == site.codes().shape
            assert site.quantizer.step_size(site.latent).numel() == heads * channels


@pytest.mark.parametrize(("tokens", "channels", "heads", "macs", "ratio", "weights"), [
    (198, 192, 3, 22.1e6, 2.01, 1.5), (198, 384, 6, 73.4e6, 3.61, 3), (49, 96, 3, None, 1.80, 1.5),
    (49, 192, 6, None, 3.34, 3), (49, 384, 12, None, 6.36, 6), (49, 768, 24, None, 12.4, 12),
])
def test_cost_of_the_specification(tokens, channels, heads, macs, ratio, weights):
    found = qkr.cost(tokens, channels, heads)
    assert found["macs_qkr"] / found["macs"] == pytest.approx(ratio, rel=0.005)
    assert found["weights_qkr"] / found["weights"] == weights
    if macs:
        assert found["macs"] == pytest.approx(macs, rel=0.003)


@pytest.mark.parametrize(("name", "block", "shapes", "tensors", "values", "float_params", "params"), [
    ("deit_tiny_distilled_patch16_224", "blocks.0", [198, 594, 192, 198, 198, 198, 198], 90, 23_509, 5_910_800,
     6_081_569),
    ("swin_tiny_patch4_window7_224", "layers.0.blocks.0", [49, 147, 96, 49, 49, 56, 56], 91, 14_623, 28_288_354,
     28_608_256),
])
def test_counts_of_the_specification(name, block, shapes, tensors, values, float_params, params):
    model = timm.create_model(name)
    assert sum(p.numel() for p in model.parameters()) == float_params
    reductions = sum(m.out_features for n, m in model.named_modules() if n.endswith("reduction"))
    model = converted(model, torch.randn(1, 3, 224, 224), query_bias=False)
    lsq = [q for q in model.modules() if isinstance(q, (LSQ, OffsetLSQ))]
    assert (len(lsq), sum(q.scale.numel() for q in lsq)) == (tensors, values)
    # The released code has a constant a StatsQ among its parameters, and a new bias in Swin's patch merging.
    constants = sum(isinstance(q, StatsQ) for q in model.modules())
    assert sum(p.numel() for p in model.parameters()) + constants + reductions == params
    sites = activation_quantizers(model)
    order = ["attn.input", "attn.query_key", "attn.value", "attn.probability", "attn.proj.input", "mlp.fc1.input",
             "mlp.fc2.input"]
    found = [sites[f"{block}.{site}_quantizer"] for site in order]
    assert [q.scale.numel() for q in found] == shapes
    assert [q.signed for q in found] == [True] * 3 + [False] + [True] * 2 + [False]
    assert all(q.bits == 2 for q in found)
    eight = {n for n, q in sites.items() if q.bits == 8} | {
        n for n, s in vitq.weight_quantizers(model).items() if s.quantizer.bits == 8}
    assert len(eight) == (6 if "deit" in name else 4)


@pytest.mark.parametrize("form", ["fused", "separate", "reparameterized"])
def test_every_pretrained_tensor_survives(case, form):
    model, x = case
    names = dict(model.named_parameters())
    new = vitq.quantize(model, ofq_spec(2, query_key=form))
    kept = {n.replace("parametrizations.weight.original", "weight").replace("query_key.", ""): p
            for n, p in new.named_parameters()}
    for name, value in names.items():
        if "attn.qkv." in name and form != "fused":
            parts = [kept.get(name.replace("qkv", part)) for part in ("query", "key", "value")]
            if form == "reparameterized" and name.endswith("bias"):
                assert parts[1] is None  # the key's bias cancels in the softmax
                parts[1] = value.chunk(3)[1]
            assert torch.equal(torch.cat(parts), value), name
        else:
            assert torch.equal(kept[name], value), name


def test_reload_gradients_and_any_image_size(case):
    model, x = case
    new = converted(model, x)
    assert_same_after_reload(new, vitq.quantize(model, ofq_spec(2)), x)
    new.train()
    new(x).square().sum().backward()
    missing = [n for n, p in new.named_parameters() if p.grad is None]
    assert not missing
    free = converted(model, x, scales="channel")
    token_scales = sum(p.numel() for n, p in new.named_parameters() if n.endswith("scale"))
    assert sum(p.numel() for n, p in free.named_parameters() if n.endswith("scale")) < token_scales


def test_what_cannot_be_reparameterized_is_refused():
    normed = timm.create_model("vit_tiny_patch16_224", img_size=32, depth=1, qk_norm=True)
    with pytest.raises(InputError, match="query_key.*normalizes"):
        vitq.quantize(normed, ofq_spec(2))
    with pytest.raises(InputError, match="query_key.*attention"):
        vitq.quantize(timm.create_model("test_resnet"), vitq.QuantSpec(4, query_key="separate"))
    with pytest.raises(InputError, match="query_key"):
        vitq.QuantSpec(2, query_key="product")
    with pytest.raises(InputError, match="activation_scales"):
        vitq.QuantSpec(2, activation_scales="row")


def test_compiled_gives_the_same():
    model, x = build("vit_micro")
    new = converted(model, x).train()
    compiled = torch.compile(new, backend="aot_eager", fullgraph=True)(x)
    torch.testing.assert_close(compiled, new(x), rtol=1e-3, atol=1e-3)
    compiled.square().sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in new.parameters())


def test_half_precision(case):
    model, x = case
    new = converted(model, x).train()
    with torch.autocast("cpu", torch.bfloat16):
        y = new(x)
    assert torch.isfinite(y).all()
    y.float().square().sum().backward()
    assert all(p.grad.dtype == torch.float32 and torch.isfinite(p.grad).all() for p in new.parameters())
