"""Networks as a run trains them."""

import pytest
import timm
import torch

from vitq import zoo
from vitq.errors import InputError
from vitq.train.assembly import load_model, set_heads, set_stochastic_depth, switch_off_stochastic_depth
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


@pytest.mark.parametrize(("name", "given"), [("swin_tiny_patch4_window7_224", SWIN | {"depths": (2, 2)}),
                                             ("deit_tiny_patch16_224", DEIT | {"depth": 4})])  # fmt: skip
def test_a_rate_of_stochastic_depth_is_that_of_timm(name, given):
    wanted = timm.create_model(name, drop_path_rate=0.3, **given)
    net = timm.create_model(name, drop_path_rate=0.0, **given)
    set_stochastic_depth(net, 0.3)
    rates = [[getattr(module, "drop_prob", 0.0) for path, module in model.named_modules() if "drop_path" in path]
             for model in (net, wanted)]
    assert rates[0] == pytest.approx(rates[1]) and len(rates[0]) == 8 and rates[0][-1] == 0.3
    assert list(net.state_dict()) == list(wanted.state_dict())


def test_the_rate_of_a_run_reaches_its_network():
    data = type("Data", (), {"num_classes": 5})
    net = load_model(RunConfig(model="vit_micro", pretrained=False, stochastic_depth=0.1), data)
    assert net.blocks[-1].drop_path2.drop_prob == pytest.approx(0.1)
    with pytest.raises(InputError, match="run.stochastic_depth=1.5"):
        RunConfig(stochastic_depth=1.5)
    with pytest.raises(InputError, match="run.stochastic_depth=0.1: the network has no transformer blocks"):
        set_stochastic_depth(zoo.load("mobilenet_micro"), 0.1)


def test_two_heads_are_apart_only_for_a_loss_that_looks_at_both():
    net, images = timm.create_model("deit_tiny_distilled_patch16_224", **DEIT).train(), torch.randn(2, 3, 32, 32)
    for teacher, apart in (({"kind": "hard_and_soft"}, True), ({"kind": "soft"}, False), (None, False)):
        set_heads(net, RunConfig(teacher=teacher))
        assert isinstance(net(images), tuple) == apart
