import copy
import itertools

import pytest
import torch
from torch import nn

from vitq import convert_attention
from vitq.convert import INPUT, activation_quantizers
from vitq.detection import MODELS, Detector, ImageBatch, load, open_saved, save
from vitq.detection import quantization as module
from vitq.detection.quantization import METHODS, attach, calibrate_levels, quantize, reparameterize
from vitq.errors import InputError
from vitq.papers.erq2024.options import ErqOptions
from vitq.papers.erq2024.prepare import calibrate, floating, layer_names
from vitq.quantizers.affine import Affine

LAYERS = {  # convolutions, linear layers, matrix products
    "mask_rcnn_swin_tiny": (17, 55, 24), "mask_rcnn_swin_small": (17, 103, 48),
    "cascade_mask_rcnn_swin_tiny": (39, 60, 24), "cascade_mask_rcnn_swin_small": (39, 108, 48),
}
SMALL = dict(depths=(1, 1, 1, 1), proposals=20, detections=4, mask_convs=1, score_threshold=0.05)


@pytest.fixture(scope="module")
def image():
    return ImageBatch.of(torch.randn(1, 3, 70, 90, generator=torch.Generator().manual_seed(0)))


@pytest.mark.parametrize("name", MODELS)
def test_what_is_quantized(name):
    with torch.device("meta"):
        model = Detector(name)
    modules = [model.get_submodule(path) for path in layer_names(model)]
    convolutions = sum(isinstance(module, nn.Conv2d) for module in modules)
    products = 2 * len(list(convert_attention.modules(model)))
    assert (convolutions, len(modules) - convolutions, products) == LAYERS[name]
    assert layer_names(model)[0] == "backbone.patch_embed.proj"


@pytest.mark.parametrize("method", METHODS)
def test_every_method_on_the_whole_detector(tiny, image, method):
    model = tiny(cascade=method == "erq", **SMALL)
    before = copy.deepcopy(model.state_dict())
    found = quantize(model, image, method, 4, 6, rounds=5)
    assert all(torch.equal(value, model.state_dict()[key]) for key, value in before.items())
    assert [layer.name for layer in found.layers] == layer_names(model)
    for name in layer_names(found.model):
        rows = found.model.get_submodule(name).weight.flatten(1)
        limit = 32 if method == "erq_plus" and name.endswith((".qkv", ".fc1")) else 16
        assert max(len(row.unique()) for row in rows) <= limit
    bits = {quantizer.bits for name, quantizer in activation_quantizers(found.model).items() if "patch_embed" in name}
    assert bits == {8}
    transposed = model.roi.mask_heads[0].predictor.conv5_mask
    assert torch.equal(found.model.roi.mask_heads[0].predictor.conv5_mask.weight, transposed.weight)


def test_erq_is_nearer_than_rounding(tiny, image):
    model = tiny(**SMALL)
    erq, nearest = (quantize(model, image, method, 3, 4, rounds=10, coe=100.0).table().set_index("name").error
                    for method in ("erq", "repq"))
    assert (erq <= nearest * 1.001).mean() > 0.95 and erq.mean() < 0.8 * nearest.mean()


@torch.no_grad()
def test_no_two_methods_give_the_same_weights(tiny, image):
    model, weights = tiny(embed_dim=8, **SMALL), {}
    for method in METHODS:
        found = quantize(model, image, method, 4, 4, scope="backbone", rounds=3)
        weights[method] = found.model.backbone.layers[0].blocks[0].mlp.fc1.weight
    for one, other in itertools.combinations(METHODS, 2):
        assert not torch.equal(weights[one], weights[other]), (one, other)


def test_the_options_that_are_published(tiny, image):
    options = quantize(tiny(**SMALL), image, "repq", scope="backbone").model.quantization["options"]
    assert (options["image_bits"], options["merge"], options["vector_strength"]) == (8, True, None)


def test_the_first_images_set_the_ranges_if_so_told(tiny, image):
    louder = ImageBatch.of(3 * image.images)
    scales = []
    for images, number in (([image], 2), ([image, louder], 1), ([image, louder], 2)):
        found = quantize(tiny(**SMALL), images, "nearest", scope="backbone", calibration_images=number)
        scales.append(getattr(found.model.backbone.patch_embed.proj, INPUT).scale.item())
    assert scales[0] == scales[1] < 0.8 * scales[2]


def test_levels_and_windows_are_passed_on(tiny, image, monkeypatch):
    called = []
    monkeypatch.setattr(module, "calibrate_levels", lambda *a: called.append("levels") or calibrate_levels(*a))
    monkeypatch.setattr(module, "reparameterize", lambda *a: called.append(a[2]) or reparameterize(*a))
    for levels, windows in (("all", "released"), ("first", "exact")):
        quantize(tiny(**SMALL), image, "repq", levels=levels, windows=windows)
    assert called == ["levels", "released", "exact"]


def test_the_backbone_alone(tiny, image):
    model = tiny(**SMALL)
    found = quantize(model, image, "repq", scope="backbone")
    names = layer_names(model.backbone)
    assert [layer.name for layer in found.layers] == names
    own, theirs = dict(model.named_parameters()), dict(found.model.named_parameters())
    assert all(torch.equal(own[key], theirs[key]) for key in own if not key.startswith("backbone"))
    assert not hasattr(found.model.rpn.head.cls_logits, INPUT) and hasattr(found.model.backbone.patch_embed.proj, INPUT)
    with pytest.raises(InputError, match="quantized already"):
        quantize(found.model, image, scope="backbone")


def test_moments_see_all_five_levels(tiny, image):
    found = quantize(tiny(**SMALL), image, "nearest").table().set_index("name").samples
    cells = sum(-(-70 // s) * -(-90 // s) for s in (4, 8, 16)) + 3 * 3 + 2 * 2
    assert found["rpn.head.conv.0.0"] == found["rpn.head.cls_logits"] == cells
    assert found["roi.box_heads.0.logits"] == 20 and found["roi.mask_heads.0.predictor.mask_fcn_logits"] == 4 * 28**2


@pytest.mark.parametrize("levels", ["all", "first"])
@torch.no_grad()
def test_ranges_of_the_proposal_head(tiny, levels):
    """All levels, or the finest alone, which the first call sees."""
    head = attach(tiny(), ErqOptions(act_bits=4), "whole")[0].rpn.head
    generator = torch.Generator().manual_seed(0)
    maps = [torch.randn(1, 16, 32 // 2**n, 32 // 2**n, generator=generator) * (1 + 3 * n) for n in range(5)]
    if levels == "all":
        calibrate_levels(head, maps)
    head(maps)
    seen = {"all": torch.cat([m.flatten() for m in maps]), "first": maps[0].flatten()}
    expected = Affine(4)
    expected.initialize(seen[levels])
    quantizer = getattr(head.conv[0][0], INPUT)
    assert torch.equal(quantizer.scale, expected.scale)
    hidden = torch.cat([head.conv(m).flatten() for m in (maps if levels == "all" else maps[:1])])
    expected.initialize(hidden)
    for layer in (head.cls_logits, head.bbox_pred):
        assert torch.equal(getattr(layer, INPUT).scale, expected.scale)


@torch.no_grad()
def test_padded_windows_stay_exact_or_not_as_released(tiny):
    """Reparameterized in floating point: the same maps at any size, or, as released, at whole windows alone."""
    model, errors = tiny(depths=(2, 2, 2, 2)).double(), {}
    generator = torch.Generator().manual_seed(0)
    for block in (block for stage in model.backbone.layers for block in stage.blocks):
        for norm in (block.norm1, block.norm2):
            nn.init.normal_(norm.bias, 0.5), nn.init.uniform_(norm.weight, 0.5, 1.5)
    for size in (128, 100):
        images = torch.randn(1, 3, size, size, generator=generator, dtype=torch.float64)
        for windows in ("exact", "released"):
            options = ErqOptions(act_bits=4, merge=True)
            part = attach(model, options, "backbone")[1]
            calibrate(part, images)
            reparameterize(part, options, windows)
            with floating(part):
                pairs = zip(part(images), model.backbone(images), strict=True)
                errors[size, windows] = max(((a - b).norm() / b.norm()).item() for a, b in pairs)
    assert errors[128, "exact"] < 1e-6 and errors[100, "exact"] < 1e-6 and errors[128, "released"] < 1e-6
    assert errors[100, "released"] > 1e-3


def test_several_images_of_several_sizes_and_none_found(tiny):
    generator = torch.Generator().manual_seed(1)
    images = [ImageBatch.of(torch.randn(1, 3, *size, generator=generator)) for size in ((64, 40), (32, 96), (64, 64))]
    model = tiny(**SMALL | {"score_threshold": 0.9})
    assert not any(len(model(batch)[0]) for batch in images)
    found = quantize(model, images, "repq", 4, 4)
    assert found.images == 3 and found.model.roi.score_threshold == 0.9
    samples = found.table().set_index("name").samples
    assert samples["backbone.layers.0.blocks.0.mlp.fc1"] == 16 * 10 + 8 * 24 + 16 * 16
    joined = quantize(model, ImageBatch.join([images[2], images[2]]), "repq", 4, 4)
    assert joined.images == 2


@pytest.mark.parametrize("scope, windows", [("whole", "exact"), ("backbone", "released")])
def test_saved_and_opened_again_bit_for_bit(tiny, image, tmp_path, scope, windows):
    model = tiny(cascade=scope == "whole", **SMALL)
    quantized = quantize(model, image, "erq", scope=scope, windows=windows, rounds=3).model
    again = open_saved(save(quantized, tmp_path / "q.safetensors"))
    other = ImageBatch.of(torch.randn(1, 3, 50, 64))
    for batch in (image, other, image):  # and in any order
        one, two = quantized(batch)[0], again(batch)[0]
        assert torch.equal(one.boxes, two.boxes) and torch.equal(one.scores, two.scores)
        assert torch.equal(one.probabilities, two.probabilities)
    with pytest.raises(InputError, match="holds a quantized detector"):
        load(model.config, checkpoint=tmp_path / "q.safetensors")


@pytest.mark.parametrize("wrong, message", [
    ({"method": "rtn"}, "method='rtn'"), ({"scope": "head"}, "scope='head'"), ({"levels": "last"}, "levels='last'"),
    ({"windows": "zero"}, "windows='zero'"), ({"images": []}, "images: give an ImageBatch"),
    ({"data_path": "sequential"}, "data_path='sequential'"), ({"lambda": 1}, "unknown lambda"),
])
def test_wrong_arguments(tiny, image, wrong, message):
    with pytest.raises(InputError, match=message):
        quantize(tiny(**SMALL), **{"images": image, **wrong})
