"""The published checkpoints' keys and shapes, written out from MMDetection 2.11's modules, and tiny detectors."""

import pytest
import torch

from vitq.detection import MODELS, Detector, DetectorConfig

TINY = dict(classes=3, embed_dim=16, depths=(1, 1, 2, 1), heads=(1, 2, 2, 4), window=4, channels=16, hidden=32,
            score_threshold=0.0)


def _both(prefix, shape):
    return {f"{prefix}.weight": shape, f"{prefix}.bias": shape[:1]}


def _backbone(depths):
    keys = _both("backbone.patch_embed.proj", (96, 3, 4, 4)) | _both("backbone.patch_embed.norm", (96,))
    for stage, depth in enumerate(depths):
        width, heads = 96 * 2**stage, 3 * 2**stage
        for number in range(depth):
            block = f"backbone.layers.{stage}.blocks.{number}"
            keys |= _both(f"{block}.norm1", (width,)) | _both(f"{block}.norm2", (width,))
            keys[f"{block}.attn.relative_position_bias_table"] = (169, heads)
            keys[f"{block}.attn.relative_position_index"] = (49, 49)
            keys |= _both(f"{block}.attn.qkv", (3 * width, width)) | _both(f"{block}.attn.proj", (width, width))
            keys |= _both(f"{block}.mlp.fc1", (4 * width, width)) | _both(f"{block}.mlp.fc2", (width, 4 * width))
        if stage < 3:
            keys[f"backbone.layers.{stage}.downsample.reduction.weight"] = (2 * width, 4 * width)
            keys |= _both(f"backbone.layers.{stage}.downsample.norm", (4 * width,))
        keys |= _both(f"backbone.norm{stage}", (width,))
    return keys


def _heads(cascade):
    keys = {}
    for level in range(4):
        keys |= _both(f"neck.lateral_convs.{level}.conv", (256, 96 * 2**level, 1, 1))
        keys |= _both(f"neck.fpn_convs.{level}.conv", (256, 256, 3, 3))
    keys |= _both("rpn_head.rpn_conv", (256, 256, 3, 3))
    keys |= _both("rpn_head.rpn_cls", (3, 256, 1, 1)) | _both("rpn_head.rpn_reg", (12, 256, 1, 1))
    for at in [f".{stage}" for stage in range(3)] if cascade else [""]:
        box, mask = f"roi_head.bbox_head{at}", f"roi_head.mask_head{at}"
        keys |= _both(f"{box}.fc_cls", (81, 1024)) | _both(f"{box}.fc_reg", (320, 1024))
        keys |= _both(f"{box}.shared_fcs.0", (1024, 12544))
        if cascade:
            for number in range(4):
                keys[f"{box}.shared_convs.{number}.conv.weight"] = (256, 256, 3, 3)
                norm = f"{box}.shared_convs.{number}.bn"
                keys |= _both(norm, (256,)) | {f"{norm}.running_mean": (256,), f"{norm}.running_var": (256,)}
                keys[f"{norm}.num_batches_tracked"] = ()
        else:
            keys |= _both(f"{box}.shared_fcs.1", (1024, 1024))
        for number in range(4):
            keys |= _both(f"{mask}.convs.{number}.conv", (256, 256, 3, 3))
        keys |= _both(f"{mask}.upsample", (256, 256, 2, 2)) | _both(f"{mask}.conv_logits", (80, 256, 1, 1))
    return keys


@pytest.fixture(scope="session")
def published():
    """Key to shape of the published checkpoint of a model."""
    return lambda name: _backbone(MODELS[name].depths) | _heads(MODELS[name].cascade)


@pytest.fixture(scope="session")
def tiny():
    """A tiny detector with random weights, in evaluation mode: ``tiny(cascade=True, seed=1)``."""
    def build(seed=0, **changes):
        torch.manual_seed(seed)
        return Detector(DetectorConfig(**{**TINY, **changes})).eval()
    return build


@pytest.fixture(scope="session")
def shapes(tmp_path_factory):
    """Six generated images of 64 pixels."""
    pytest.importorskip("cv2"), pytest.importorskip("pycocotools")
    from vitq.detection import make_shapes
    return make_shapes(tmp_path_factory.mktemp("shapes") / "set", 6, seed=3, size=64)
