"""One head at few bits: it alone has few levels, all else is as before, and it costs accuracy of the output."""

import pytest
import torch

from vitq import QuantSpec, calibrate, zoo
from vitq.convert import activation_quantizers, weight_quantizers
from vitq.errors import InputError
from vitq.papers.vvtq2023 import mdq_spec, one_head_at, one_head_sensitivity, quantize_mdq
from vitq.papers.vvtq2023.sensitivity import outputs

IMAGES = torch.randn(8, 3, 32, 32, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("mode", ["layer", "head"])
def test_one_head_has_few_levels_and_the_rest_is_as_before(mode):
    model = zoo.load("vit_micro")
    whole = calibrate(quantize_mdq(model, 8, 8, mode), [IMAGES])
    probe = calibrate(one_head_at(model, mdq_spec(model, 8, 8, mode), 2, block="blocks.1"), [IMAGES])
    own, rest = slice(32, 48), [*range(32), *range(48, 64)]
    for name in ("query", "key", "value"):
        ours, theirs = (getattr(net.blocks[1].attn, name).weight for net in (probe, whole))
        assert ours[own].unique().numel() <= 4 < ours[:16].unique().numel() and ours[rest].equal(theirs[rest])
    ours, theirs = (net.blocks[1].attn.proj.weight for net in (probe, whole))
    assert ours[:, own].unique().numel() <= 4 and ours[:, rest].equal(theirs[:, rest])
    assert probe.blocks[0].attn.query.weight.equal(whole.blocks[0].attn.query.weight)
    assert list(activation_quantizers(probe)) == list(activation_quantizers(whole))
    assert list(weight_quantizers(probe)) == list(weight_quantizers(whole))
    seen = {}
    attention = probe.blocks[1].attn
    for operand in ("query", "key", "value", "probability"):
        getattr(attention, f"{operand}_quantizer").register_forward_hook(
            lambda _, args, out, operand=operand: seen.update({operand: out}))
    attention.proj.input_quantizer.register_forward_hook(lambda _, args, out: seen.update(proj=out))
    outputs(probe, IMAGES)
    for operand in ("query", "key", "value", "probability"):
        assert seen[operand][:, 2].unique().numel() <= 4 < seen[operand][:, 1].unique().numel()
    assert seen["proj"][..., own].unique().numel() <= 4 < seen["proj"][..., :16].unique().numel()


def test_the_table_and_what_it_refuses():
    model = zoo.load("vit_micro")
    spec = QuantSpec(8, 8, act_options={"init": "max"})
    table = one_head_sensitivity(model, IMAGES, spec, block="blocks.0").set_index("head")
    assert list(table.index) == ["none", "0", "1", "2", "3"] and table.loc["none", "loss_db"] == 0
    assert (table.loc["0":, "loss_db"] > 0).all() and table["loss_db"][1:].nunique() == 4
    same = one_head_sensitivity(model, IMAGES, spec, bits=8, block="blocks.0")
    assert same["loss_db"].abs().max() < 1 < table["loss_db"].max()
    with pytest.raises(InputError, match="head=4: blocks.0.attn has the heads 0 to 3"):
        one_head_at(model, mdq_spec(model, 8, 8), 4)
