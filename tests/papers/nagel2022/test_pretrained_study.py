"""The study on a pretrained network: what its numbers mean, on networks small enough to know the answer."""

import copy
from types import SimpleNamespace

import pytest
import torch

import vitq
from vitq import data, zoo
from vitq.errors import InputError
from vitq.papers.nagel2022 import pretrained_study as study


@pytest.fixture(scope="module")
def quantized():
    torch.manual_seed(0)
    return vitq.quantize(zoo.load("mobilenet_micro", pretrained=False), vitq.QuantSpec(weight_bits=3))


def images(count, seed=0):
    return [torch.randn(8, 3, 32, 32, generator=torch.Generator().manual_seed(seed + i)) for i in range(count)]


def test_a_network_follows_itself():
    logits = torch.randn(20, 5, generator=torch.Generator().manual_seed(0))
    assert study.faithfulness(logits, logits) == {"agreement": 100.0, "kl": pytest.approx(0, abs=1e-12)}
    shifted = study.faithfulness(logits + 3, logits)  # softmax does not see a constant
    assert shifted["agreement"] == 100 and shifted["kl"] == pytest.approx(0, abs=1e-6)


def test_faithfulness_counts_and_measures():
    reference = torch.tensor([[0.0, 10.0], [10.0, 0.0]])
    found = study.faithfulness(torch.tensor([[0.0, 10.0], [0.0, 10.0]]), reference)
    assert found["agreement"] == 50
    assert found["kl"] == pytest.approx(10 / 2, rel=1e-3)
    with pytest.raises(InputError, match="reference"):
        study.faithfulness(reference, reference[:1])


def test_weights_that_are_held_still_do_not_move_and_their_statistics_do(quantized):
    model = study.held_still(copy.deepcopy(quantized), images(5))
    moved = [name for name, value in model.state_dict().items() if not torch.equal(value, quantized.state_dict()[name])]
    assert moved and all("running_" in name or "num_batches" in name for name in moved)
    assert not any(module.training for module in model.modules())


def test_divergence_is_zero_for_equal_statistics_and_named_by_the_layer_before(quantized):
    rows = study.divergence_by_layer(quantized, quantized)
    assert {row["max_kl"] for row in rows} == {0.0}
    sites = vitq.weight_quantizers(quantized)
    assert [row["layer"] for row in rows] == [name for name, site in sites.items() if site.kind != "linear"]
    other = copy.deepcopy(quantized)
    name, norm = next((n, m) for n, m in other.named_modules() if isinstance(m, torch.nn.BatchNorm2d))
    norm.running_mean[0] += 2 * norm.running_var[0].sqrt()  # a shift by two standard deviations: KL = 2
    changed = study.divergence_by_layer(other, quantized)
    assert changed[0]["max_kl"] == pytest.approx(2, rel=1e-4), name
    assert changed[0]["mean_kl"] == pytest.approx(2 / norm.num_features, rel=1e-4)
    assert all(row["max_kl"] == 0 for row in changed[1:])


def test_constant_channels_are_counted_and_left_out(quantized):
    population, model = copy.deepcopy(quantized), copy.deepcopy(quantized)
    norms = [next(m for m in net.modules() if isinstance(m, torch.nn.BatchNorm2d)) for net in (population, model)]
    norms[0].running_var[0] = 0
    norms[1].running_var[0] = 1e-6
    row = study.divergence_by_layer(model, population)[0]
    assert row["max_kl"] == 0 and row["constant"] == 1


def test_shares_leave_out_the_ends_and_count_strictly_above(quantized):
    sites = vitq.weight_quantizers(quantized)
    count = sum(site.latent.numel() for site in sites.values() if site.quantizer.bits <= 3)
    rows = study.frequency_by_layer(quantized, torch.full((count,), 0.1), 3, [0.005, 0.1])
    assert [row["layer"] for row in rows] == list(sites)[1:-1]
    assert all(row["above_0.005"] == 100 for row in rows)
    rows = study.frequency_by_layer(quantized, torch.zeros(count), 3, [0.005])
    assert all(row["above_0.005"] == 0 for row in rows)


def test_held_out_crops_are_none_of_the_training_crops():
    given = SimpleNamespace(name="photos", test_split="test", image_size=32, seed=0)
    sets = study.held_out(SimpleNamespace(data=given), 14)
    train = data.load("photos", "train", size=32, images=28).images
    for images in sets.values():
        same = (images.images[:, None] == train[None]).flatten(2).all(-1)
        assert not same.any()


def test_the_paper_s_places_exist_in_the_paper_s_network():
    model = zoo.load("efficientnet_lite0", pretrained=False)
    places = study.paper_depth(vitq.quantize(model, vitq.QuantSpec(weight_bits=8)))
    kinds = [vitq.describe(model).set_index("layer")["kind"][layer] for layer in places.values()]
    assert list(places) == ["conv3.0", "conv3.1", "conv3.2", "conv10.0", "conv10.1", "conv10.2"]
    assert kinds == ["pointwise", "depthwise", "pointwise"] * 2
    strides = {layer: model.get_submodule(layer).in_channels for layer in places.values()}
    assert strides["blocks.1.1.conv_pw"] == 24 and strides["blocks.3.2.conv_pw"] == 80


def test_distances_are_those_of_the_weights_in_the_file(quantized, tmp_path):
    name, site = list(vitq.weight_quantizers(quantized).items())[1]
    other = copy.deepcopy(quantized)
    vitq.weight_quantizers(other)[name].latent.data.copy_(vitq.weight_quantizers(other)[name].quantizer(site.latent))
    vitq.save(other, tmp_path / "model.safetensors")
    assert study.latent_distances(quantized, name).abs().max() > 0.1
    assert study.latent_distances(quantized, name, tmp_path / "model.safetensors").abs().max() < 1e-5
    assert torch.equal(site.latent, vitq.weight_quantizers(quantized)[name].latent)
