"""Which parameters decay, and what trains the quantizer scales."""

import pytest
import timm
import torch

import vitq
from vitq.train.optimizers import build_optimizers

VIT = {"img_size": 32, "patch_size": 16, "embed_dim": 24, "depth": 1, "num_heads": 2, "num_classes": 5}
SWIN = {"img_size": 32, "patch_size": 4, "window_size": 4, "embed_dim": 24, "depths": (1, 1), "num_heads": (2, 2),
        "num_classes": 5}


def decayed(model, config):
    names = {id(p): name for name, p in model.named_parameters()}
    groups = [group for optimizer in build_optimizers(model, config) for group in optimizer.param_groups]
    assert sorted(names) == sorted(id(p) for group in groups for p in group["params"]), "each parameter once"
    return {names[id(p)] for group in groups if group["weight_decay"] for p in group["params"]}


@pytest.mark.parametrize("name, options, tokens", [
    ("deit_tiny_distilled_patch16_224", VIT, {"pos_embed", "cls_token", "dist_token"}),
    ("swin_tiny_patch4_window7_224", SWIN, set())])
def test_decay_of_transformers(name, options, tokens, config):
    net = timm.create_model(name, **options)
    settings = config(optimizer="adamw", weight_decay=0.05, decay="transformer", scale_learning_rate="with_weights")
    kept = {n for n, p in net.named_parameters()} - decayed(net, settings)
    assert kept == tokens | {n for n, p in net.named_parameters() if p.ndim == 1}
    tables = {n for n, _ in net.named_parameters() if n.endswith("relative_position_bias_table")}
    assert tables <= decayed(net, settings) and bool(tables) == (name[:4] == "swin")
    with_tokens = decayed(net, config(optimizer="adamw", weight_decay=0.05, decay="weights"))
    assert with_tokens == decayed(net, settings) | tokens


def test_no_parameter_of_a_quantizer_decays(config):
    from vitq.papers.ofq2023 import ofq_spec

    net = vitq.quantize(timm.create_model("deit_tiny_distilled_patch16_224", **VIT), ofq_spec(2))
    vitq.calibrate(net, [torch.randn(2, 3, 32, 32)])
    settings = config(optimizer="adamw", weight_decay=0.05, decay="transformer", scale_learning_rate="with_weights")
    quantizer = net.blocks[0].mlp.fc1.input_quantizer
    quantizer.pre_offset.data = quantizer.pre_offset.data[None]  # of any shape
    names = decayed(net, settings)
    assert not {n for n in names if "_quantizer" in n or "offset" in n or n.endswith("scale")}
    assert {"blocks.0.attn.query_key.query.weight", "blocks.0.mlp.fc1.parametrizations.weight.original"} <= names
    (main,) = build_optimizers(net, settings)
    assert main.defaults["betas"] == (0.9, 0.999) and main.defaults["eps"] == 1e-8
