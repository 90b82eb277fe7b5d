"""Leave-one-out: what each group frees, that it is free in the forward pass, and that the rest is not."""

import pytest
import timm
import torch

from vitq import QuantSpec, calibrate, data, zoo
from vitq.convert import activation_quantizers, weight_quantizers
from vitq.errors import InputError
from vitq.papers.vvtq2023 import BinRegularization, leave_one_out, leave_one_out_sensitivity, spec_without
from vitq.papers.vvtq2023.sensitivity import MODULES, agreement, groups_of, inventory, outputs
from vitq.train.callbacks import TrainState

IMAGES = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def vit():
    return zoo.load("vit_micro")


def test_freed_weights_of_deit_tiny_are_those_of_the_specification():
    model = timm.create_model("deit_tiny_patch16_224")
    count = {g: inventory(leave_one_out(model, QuantSpec(2, 2, weight_options={"init": "max"}), g))
             for g in (None, *MODULES)}
    freed = {g: count[None]["weights"] - count[g]["weights"] for g in MODULES}
    assert freed == {"ffn": 3_538_944, "mhsa": 1_769_472, "query": 442_368, "key": 442_368, "value": 442_368}
    assert count[None] == {"weights": 5_308_416 + 339_456, "inputs": 73, "operands": 48}
    assert [count[g]["inputs"] for g in MODULES] == [49, 25, 61, 61, 61]
    assert [count[g]["operands"] for g in MODULES] == [48, 0, 36, 36, 36]


@pytest.mark.parametrize("name", ["vit_micro", "swin_micro"])
@pytest.mark.parametrize("group", MODULES)
def test_nothing_but_the_group_is_free(name, group):
    model = zoo.load(name)
    quantized = calibrate(leave_one_out(model, QuantSpec(3, 3), group), [IMAGES])
    names = {"ffn": ("fc1", "fc2"), "mhsa": ("query", "key", "value", "proj")}.get(group, (group,))
    for path, module in quantized.named_modules():
        if isinstance(module, (torch.nn.Linear, torch.nn.Conv2d)):
            block = ".blocks." in f".{path}" or path.startswith("blocks.")
            assert (path in weight_quantizers(quantized)) != (block and path.rsplit(".", 1)[1] in names), path
    seen = set(activation_quantizers(quantized))
    reached = set()
    for path, quantizer in activation_quantizers(quantized).items():
        quantizer.register_forward_hook(lambda *_, path=path: reached.add(path))
    outputs(quantized, IMAGES)
    assert reached == seen


def test_a_free_layer_sees_floating_point_input_and_the_two_others_do_not(vit):
    quantized = calibrate(leave_one_out(vit, QuantSpec(3, 2), "key"), [IMAGES])
    seen = {}
    for name in ("query", "key", "value"):
        layer = getattr(quantized.blocks[0].attn, name)
        layer.register_forward_hook(lambda _, args, out, name=name: seen.update({name: args[0].unique().numel()}))
    outputs(quantized, IMAGES)
    assert seen["query"] <= 4 and seen["value"] <= 4 and seen["key"] > 1000


def test_a_head_is_free_and_the_others_as_before(vit):
    spec = QuantSpec(2, 2)
    whole, free = leave_one_out(vit, spec, None), leave_one_out(vit, spec, "head 2")
    rows = slice(32, 48)
    attn, other, latent = free.blocks[1].attn, whole.blocks[1].attn, vit.blocks[1].attn
    assert attn.key.weight[rows].equal(latent.qkv.weight[64:128][rows])
    assert attn.key.weight[:32].equal(other.key.weight[:32]) and attn.key.weight[48:].equal(other.key.weight[48:])
    assert attn.proj.weight[:, rows].equal(latent.proj.weight[:, rows])
    assert attn.proj.weight[:, :32].equal(other.proj.weight[:, :32])
    calibrate(free, [IMAGES])
    seen = {}
    attn.query_quantizer.register_forward_hook(lambda _, args, out: seen.update(query=(args[0], out)))
    outputs(free, IMAGES)
    given, out = seen["query"]
    assert out[:, 2].equal(given[:, 2]) and out[:, 1].unique().numel() <= 4
    count = [inventory(m) for m in (whole, free)]
    assert count[0]["weights"] - count[1]["weights"] == 4 * 4 * 64 * 16
    assert count[0]["operands"] - count[1]["operands"] == pytest.approx(4)


def test_free_heads_train_and_remedies_skip_them(vit):
    model = calibrate(leave_one_out(vit, QuantSpec(2, 2), "head 0"), [IMAGES])
    remedy = BinRegularization(1.0, begin=0.0, reduction="sum")
    state = TrainState(model, torch.device("cpu"), total_steps=10, step=5)
    remedy.on_start(state)
    latent = model.blocks[0].attn.query.parametrizations.weight.original
    (pull,) = torch.autograd.grad(remedy.loss(state), latent)
    assert pull[:16].abs().max() == 0 and pull[16:].abs().max() > 0
    model(IMAGES).square().sum().backward()
    assert latent.grad[:16].abs().max() > 0
    fresh = leave_one_out(vit, QuantSpec(2, 2), "head 0")
    calibrate(fresh, [torch.zeros_like(IMAGES) + 0.1])
    fresh.load_state_dict(model.state_dict(), strict=True)
    assert outputs(fresh, IMAGES).equal(outputs(model, IMAGES))


def test_one_block_only(vit):
    count = [inventory(leave_one_out(vit, QuantSpec(3, 3), group, block)) for group, block in
             ((None, None), ("mhsa", "blocks.2"), ("head 1", "blocks.2"))]
    assert count[0]["weights"] - count[1]["weights"] == 4 * 64 * 64
    assert count[0]["weights"] - count[2]["weights"] == 64 * 64
    with pytest.raises(InputError, match="block='blocks.9'"):
        leave_one_out(vit, QuantSpec(3, 3), "ffn", "blocks.9")


def test_the_spec_of_a_group_is_a_plain_configuration(vit):
    spec = spec_without(vit, QuantSpec(3, 3), "value")
    assert QuantSpec.from_dict(spec.to_dict()) == spec and spec.query_key == "separate"
    assert len(spec.overrides) == 8
    features = spec_without(zoo.load("vit_micro", num_classes=0), QuantSpec(3, 3), None)
    assert features.overrides == {}


def test_the_table():
    model = zoo.load("vit_micro")
    images = data.load("glyphs", "test", images=64)
    images = images.normalize(images.images)
    assert groups_of(model) == ["ffn", "mhsa", "query", "key", "value", "head 0", "head 1", "head 2", "head 3"]
    groups, spec = ["ffn", "mhsa", "head 1"], QuantSpec(3, 3, act_options={"init": "lsq"})
    table = leave_one_out_sensitivity(model, images, spec, groups).set_index("group")
    assert list(table.index) == ["nothing", *groups]
    assert table.loc["nothing", "gain_db"] == 0 and table.loc["nothing", "freed_weights"] == 0
    assert (table.loc[["ffn", "mhsa"], "gain_db"] > 1).all()
    assert table.loc["mhsa", "freed_weights"] == 4 * 4 * 64 * 64
    exact = leave_one_out_sensitivity(model, images[:32], QuantSpec(8, 8, act_options={"init": "max"}), ["ffn"])
    assert (exact["sqnr_db"] > 20).all() and (exact["agreement"] > 0.9).all()


def test_agreement_of_features_is_that_of_the_nearest_image():
    features = torch.randn(20, 8)
    rotation = torch.linalg.qr(torch.randn(8, 8))[0]
    assert agreement(features, features @ rotation, features=True) == 1
    assert agreement(features, torch.randn(20, 8), features=True) < 0.5


def test_what_cannot_be_left_out_is_named(vit):
    with pytest.raises(InputError, match="group='head 4': choose one of ffn, .* head 3"):
        leave_one_out(vit, QuantSpec(3, 3), "head 4")
    with pytest.raises(InputError, match="no attention"):
        leave_one_out(zoo.load("mobilenet_micro"), QuantSpec(3, 3), "ffn")
