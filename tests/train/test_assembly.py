"""Networks as a run trains them."""

import timm
import torch

from vitq.train.assembly import set_heads, switch_off_stochastic_depth
from vitq.train.run_config import RunConfig

SWIN = {"img_size": 32, "window_size": 4, "embed_dim": 24, "depths": (1, 1), "num_heads": (2, 2), "num_classes": 5}
DEIT = {"img_size": 32, "embed_dim": 24, "depth": 1, "num_heads": 2, "num_classes": 5}


def test_without_stochastic_depth_training_gives_what_evaluation_gives():
    torch.manual_seed(0)
    net = timm.create_model("swin_tiny_patch4_window7_224", drop_path_rate=0.5, **SWIN)
    images = torch.randn(8, 3, 32, 32)
    assert not torch.equal(net.train()(images), net(images))
    switch_off_stochastic_depth(net)
    assert torch.equal(net.train()(images), net.eval()(images))


def test_two_heads_are_apart_only_for_a_loss_that_looks_at_both():
    net, images = timm.create_model("deit_tiny_distilled_patch16_224", **DEIT).train(), torch.randn(2, 3, 32, 32)
    for teacher, apart in (({"kind": "hard_and_soft"}, True), ({"kind": "soft"}, False), (None, False)):
        set_heads(net, RunConfig(teacher=teacher))
        assert isinstance(net(images), tuple) == apart
