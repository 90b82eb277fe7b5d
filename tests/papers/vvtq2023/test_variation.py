"""Variation of weights and activations, against direct formulas and networks whose groups are known."""

import math

import pytest
import timm
import torch
from torch import nn

from vitq import QuantSpec, quantize, zoo
from vitq.errors import InputError
from vitq.papers.vvtq2023.activations import activation_variation
from vitq.papers.vvtq2023.parts import parts
from vitq.papers.vvtq2023.statistics import Sums, outliers, sdam
from vitq.papers.vvtq2023.variation import compare_networks, groups, variation


@pytest.fixture(scope="module")
def vit():
    torch.manual_seed(0)
    return zoo.load("vit_micro", pretrained=False)


def test_statistics_of_a_known_tensor():
    x = torch.randn(3, 4000, dtype=torch.float64) * torch.tensor([[0.1], [1.0], [5.0]]) + 0.3
    sums = Sums.of(x)
    assert sums.std.tolist() == pytest.approx(x.std(1, correction=0).tolist())
    values = sums.columns()
    assert values["max_mean"].tolist() == pytest.approx((x.abs().amax(1) / x.abs().mean(1)).tolist())
    standard = (x - x.mean(1, keepdim=True)) / x.std(1, correction=0, keepdim=True)
    assert values["kurtosis"].tolist() == pytest.approx(((standard**4).mean(1) - 3).tolist(), abs=1e-9)
    assert outliers(x, sums.mean, sums.std).tolist() == (standard.abs() > 3).sum(1).tolist()
    spread = x.abs().mean(1).std(correction=0).item()
    assert sdam(sums.absolute_mean) == pytest.approx((spread, spread / x.abs().mean(1).mean().item()))


def test_normal_values_have_no_excess_and_the_usual_outliers():
    torch.manual_seed(0)
    sums = Sums.of(x := torch.randn(1, 400_000))
    assert sums.columns()["kurtosis"].item() == pytest.approx(0, abs=0.05)
    assert outliers(x, sums.mean, sums.std).item() / 400_000 == pytest.approx(0.0027, abs=3e-4)
    assert sums.columns()["max_mean"].item() > 4
    assert math.isnan(Sums.of(torch.ones(1, 5)).columns()["kurtosis"].item())


def test_sums_add_up_and_merge():
    x = torch.randn(6, 50)
    for left, right in ((Sums.of(x[:, :20]) + Sums.of(x[:, 20:]), Sums.of(x)),
                        (Sums.of(x).merged(2), Sums.of(x.reshape(2, 150)))):
        assert left.count == right.count
        for name, value in right.columns().items():
            torch.testing.assert_close(left.columns()[name], value)


def test_parts_are_the_same_fused_and_separate(vit):
    kinds = [part.kind for part in parts(vit)]
    assert kinds == ["embedding", *["query", "key", "value", "projection", "ffn", "ffn"] * 4, "classifier"]
    separate = quantize(vit, QuantSpec(4, query_key="separate"))
    ours, theirs = ({p.name: p for p in parts(model)} for model in (vit, separate))
    assert set(ours) == set(theirs)
    for name, part in ours.items():
        assert (part.kind, part.heads) == (theirs[name].kind, theirs[name].heads)
        assert part.weight(vit).equal(theirs[name].weight(separate))


def test_heads_are_output_rows_and_of_the_projection_input_columns(vit):
    part = {p.name: p for p in parts(vit)}
    query = part["blocks.0.attn.query"].weight(vit)
    assert part["blocks.0.attn.query"].by_head(query)[1].equal(query[16:32].flatten())
    projection = part["blocks.0.attn.proj"].weight(vit)
    assert part["blocks.0.attn.proj"].by_head(projection)[1].equal(projection[:, 16:32].flatten())
    with pytest.raises(InputError, match="ffn"):
        part["blocks.0.mlp.fc1"].by_head(query)


def test_sdam_sees_one_loud_head_and_scaling_changes_only_the_absolute_one(vit):
    with torch.no_grad():
        vit.blocks[1].attn.qkv.weight[64 + 16 : 64 + 32] *= 10  # key, head 1
    table = variation(vit).set_index("layer")
    loud, quiet = table.loc["blocks.1.attn.key"], table.loc["blocks.1.attn.query"]
    assert loud["relative_head"] > 20 * quiet["relative_head"] and loud["kurtosis"] > 1 > quiet["kurtosis"]
    by_head = groups(vit, "head").query("layer == 'blocks.1.attn.key'")["mean_abs"].tolist()
    assert max(by_head) == by_head[1] and by_head[1] / by_head[0] == pytest.approx(10, rel=0.1)
    with torch.no_grad():
        vit.blocks[1].attn.qkv.weight[64:128] *= 2
    twice = variation(vit).set_index("layer").loc["blocks.1.attn.key"]
    assert twice["sdam_head"] == pytest.approx(2 * loud["sdam_head"])
    for name in ("relative_head", "relative_channel", "max_mean", "outliers", "kurtosis"):
        assert twice[name] == pytest.approx(loud[name])


@pytest.mark.parametrize("name", ["test_vit", "test_efficientnet", "swin_micro"])
def test_any_network(name):
    model = zoo.load(name, pretrained=False) if name in zoo.NAMES else timm.create_model(name)
    table = compare_networks({name: model})
    weights = sum(m.weight.numel() for m in model.modules() if isinstance(m, (nn.Linear, nn.Conv2d)))
    assert 0 < table.loc[name, "weights"] <= weights
    assert math.isnan(table.loc[name, "sdam_head"]) == (name == "test_efficientnet")
    assert variation(model)["weights"].sum() == weights


def test_activations_stream_to_the_same_figures_as_at_once(vit):
    images = torch.randn(6, 3, 32, 32)
    streamed = activation_variation(vit, [images[:2], images[2:4], images[4:]]).set_index("site")
    whole = activation_variation(vit, [images]).set_index("site")
    assert streamed.drop(columns="kind").to_numpy(float) == pytest.approx(
        whole.drop(columns="kind").to_numpy(float), rel=1e-4, abs=1e-9, nan_ok=True)
    seen = {}
    handles = [vit.blocks[0].mlp.fc2.register_forward_pre_hook(lambda _, args: seen.update(x=args[0])),
               vit.blocks[0].attn.qkv.register_forward_hook(lambda _, args, out: seen.update(qkv=out))]
    with torch.no_grad():
        vit(images)
    for handle in handles:
        handle.remove()
    x, row = seen["x"].double(), whole.loc["blocks.0.mlp.fc2 input"]
    assert row["mean_abs"] == pytest.approx(x.abs().mean().item())
    assert row["outliers"] == pytest.approx(((x - x.mean()).abs() > 3 * x.std(correction=0)).double().mean().item())
    by_channel = (x - x.mean((0, 1))).abs() > 3 * x.std((0, 1), correction=0)
    assert row["outliers_channel"] == pytest.approx(by_channel.double().mean().item())
    key = seen["qkv"][..., 64:128].unflatten(-1, (4, 16)).abs().mean((0, 1, 3))
    assert whole.loc["blocks.0.attn.key", "sdam_head"] == pytest.approx(key.std(correction=0).item(), rel=1e-5)


def test_activations_of_a_quantized_network_are_those_before_quantization(vit):
    images = torch.randn(2, 3, 32, 32)
    model = quantize(vit, QuantSpec(8, 2, attention=False))
    values = activation_variation(model, [images]).set_index("site")
    float_ones = activation_variation(vit, [images]).set_index("site")
    site = "blocks.0.attn.qkv input"
    assert values.loc[site, "max_mean"] == pytest.approx(float_ones.loc[site, "max_mean"], rel=0.05)


def test_batches_that_cannot_be_read_twice_are_refused(vit):
    with pytest.raises(InputError, match="generator"):
        activation_variation(vit, (torch.randn(1, 3, 32, 32) for _ in range(2)))
    with pytest.raises(InputError, match="empty"):
        activation_variation(vit, [])
    with pytest.raises(InputError, match="level"):
        groups(vit, "token")
