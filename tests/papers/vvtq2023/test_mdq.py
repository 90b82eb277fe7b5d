"""Module-dependent quantization of networks: T8 and T9 of the specification."""

from collections import Counter

import pytest
import timm
import torch

import vitq
from vitq import calibrate, zoo
from vitq.convert import activation_quantizers, weight_quantizers
from vitq.errors import InputError
from vitq.papers.vvtq2023 import BinRegularization, mdq_spec, quantize_mdq
from vitq.train.callbacks import TrainState

IMAGES = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(("name", "few", "eight", "ends"), [
    ("deit_tiny_patch16_224", 5_308_416, 339_456, 2), ("swin_tiny_patch4_window7_224", 25_878_528, 2_320_896, 1),
])  # fmt: skip
def test_counts_of_the_specification(name, few, eight, ends):
    model = calibrate(quantize_mdq(timm.create_model(name), 2, 2), [torch.randn(1, 3, 224, 224)])
    sites = weight_quantizers(model).values()
    assert sum(site.quantizer.bits == 2 for site in sites) == 72
    assert [sum(s.latent.numel() for s in sites if s.quantizer.bits == b) for b in (2, 8)] == [few, eight]
    kinds = Counter((q.bits, q.signed, q.offset is not None) for q in activation_quantizers(model).values())
    assert kinds == {(2, True, False): 72, (2, False, False): 12, (2, False, True): 12, (8, True, False): ends}


def test_separate_layers_hold_the_rows_of_the_fused_one():
    model = zoo.load("vit_micro")
    quantized = quantize_mdq(model, 4, 4)
    for own, block in zip(quantized.blocks, model.blocks, strict=True):
        latents = [getattr(own.attn, n).parametrizations.weight.original for n in ("query", "key", "value")]
        assert torch.cat(latents).equal(block.attn.qkv.weight)


@pytest.mark.parametrize("name", ["vit_micro", "swin_micro"])
def test_head_scales_lie_where_heads_are(name):
    model = calibrate(quantize_mdq(zoo.load(name), 3, 3, "head"), [IMAGES])
    attention = next(m for n, m in model.named_modules() if n.endswith("attn"))
    heads = attention.num_heads
    for layer, axis in (("query", 0), ("value", 0), ("proj", 1)):
        q = getattr(attention, layer).parametrizations.weight[0]
        assert q.scale.shape == (heads,) and q.head_axis == axis
        shape = [1, 1]
        shape[axis] = getattr(attention, layer).weight.shape[axis]
        assert list(q.step_size(getattr(attention, layer).parametrizations.weight.original).shape) == shape
    for operand in ("query", "key", "value", "probability"):
        assert getattr(attention, f"{operand}_quantizer").scale.shape == (heads,)
    fc = next(s for n, s in weight_quantizers(model).items() if n.endswith("fc1"))
    assert fc.quantizer.scale.shape == (1,)


def test_head_mode_with_equal_scales_is_layer_mode():
    layer = calibrate(quantize_mdq(zoo.load("vit_micro"), 3, 3, "layer"), [IMAGES])
    head = calibrate(quantize_mdq(zoo.load("vit_micro"), 3, 3, "head"), [IMAGES])
    ours, theirs = dict(head.named_parameters()), dict(layer.named_parameters())
    with torch.no_grad():
        assert not head(IMAGES).equal(layer(IMAGES))
        for name, parameter in ours.items():
            parameter.copy_(theirs[name])
        assert head(IMAGES).equal(layer(IMAGES))


@pytest.mark.parametrize("mode", ["layer", "head", "lsq"])
def test_each_mode_trains_with_the_regularizer(mode):
    torch.manual_seed(0)
    model = calibrate(quantize_mdq(zoo.load("vit_micro"), 3, 3, mode), [IMAGES])
    remedy = BinRegularization(0.1, begin=0.0)
    state = TrainState(model, torch.device("cpu"), total_steps=10, step=5)
    remedy.on_start(state)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
    losses = []
    for _ in range(8):
        loss = torch.nn.functional.cross_entropy(model(IMAGES), torch.tensor([1, 2, 3, 4]))
        losses.append(loss.item())
        (loss + remedy.loss(state)).backward()
        remedy.after_backward(state)
        assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
        optimizer.step()
        optimizer.zero_grad()
    assert losses[-1] < 0.7 * losses[0] and 0 < float(remedy.metrics()["bin_gradient_share"]) < 1


@pytest.mark.parametrize("mode", ["layer", "head", "lsq"])
@pytest.mark.parametrize("name", ["vit_micro", "swin_micro"])
def test_a_saved_network_gives_the_same_outputs(name, mode, tmp_path):
    model = calibrate(quantize_mdq(zoo.load(name), 3, 3, mode), [IMAGES]).eval()
    with torch.no_grad():  # offsets and scales that training has moved
        for parameter in model.parameters():
            parameter.add_(0.01 * torch.randn_like(parameter))
        again = vitq.load(vitq.save(model, tmp_path / "model.safetensors"))
        assert again(IMAGES).equal(model(IMAGES))
    assert again.quant_spec == model.quant_spec == mdq_spec(zoo.load(name), 3, 3, mode)
    assert all(own.equal(again.state_dict()[key]) for key, own in model.state_dict().items())
    kinds = [key.rpartition(".")[0] for key in again.state_dict() if key.endswith("input_quantizer.offset")]
    assert kinds == [f"{n}.input_quantizer" for n, _ in model.named_modules() if n.endswith("mlp.fc2")]


def test_an_unknown_mode_is_named():
    with pytest.raises(InputError, match="mode='tensor'"):
        quantize_mdq(zoo.load("vit_micro"), 3, 3, "tensor")
