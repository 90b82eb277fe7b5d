import pytest
import torch
from timm.models.swin_transformer import SwinTransformerBlock, get_relative_position_index

from vitq.detection.backbone import PaddedBlock


def make_block(shift, kind=PaddedBlock, window=4):
    torch.manual_seed(0)
    block = SwinTransformerBlock(8, (16, 16), 2, window_size=window, shift_size=shift, always_partition=True,
                                 dynamic_mask=True).eval()
    block.__class__ = kind
    torch.nn.init.normal_(block.attn.relative_position_bias_table)
    return block


def reference(block, x):
    """Pad, then shift, token by token: who is in whose window, who is masked, who counts as a key."""
    _, height, width, channels = x.shape
    window, shift = block.window_size[0], block.shift_size[0]
    rows, columns = -(-height // window) * window, -(-width // window) * window
    padded = torch.zeros(rows * columns, channels)
    places = [(i, j) for i in range(rows) for j in range(columns)]
    for place, (i, j) in enumerate(places):
        if i < height and j < width:
            padded[place] = x[0, i, j]
    rolled = [((i - shift) % rows, (j - shift) % columns) for i, j in places]  # where a token lies after the shift
    at = [(i // window, j // window) for i, j in rolled]

    def part(position, side):
        return 0 if not shift or position < side - window else 1 if position < side - shift else 2

    parts = [(part(i, rows), part(j, columns)) for i, j in rolled]
    q, k, v = block.attn.qkv(padded).reshape(len(places), 3, 2, channels // 2).unbind(1)
    table = block.attn.relative_position_bias_table
    out = torch.zeros(len(places), channels)
    for one, (i, j) in enumerate(rolled):
        keys = [other for other in range(len(places)) if at[other] == at[one]]
        logits = torch.einsum("hd,khd->hk", q[one], k[keys]) * (channels // 2) ** -0.5
        for n, other in enumerate(keys):
            a, b = rolled[other]
            index = (i - a + window - 1) * (2 * window - 1) + j - b + window - 1
            logits[:, n] += table[index] - 100.0 * (parts[other] != parts[one])
        out[one] = torch.einsum("hk,khd->hd", logits.softmax(-1), v[keys]).flatten()
    return block.attn.proj(out).reshape(1, rows, columns, channels)[:, :height, :width]


@pytest.mark.parametrize("shift", [0, 2])
@pytest.mark.parametrize("size", [(8, 8), (10, 7), (3, 5)])
@torch.no_grad()
def test_windows_are_padded_first_and_shifted_then(shift, size):
    block = make_block(shift)
    x = torch.randn(1, *size, 8)
    torch.testing.assert_close(block._attn(x), reference(block, x), rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_timm_agrees_on_whole_windows_alone():
    ours, timms = make_block(2), make_block(2, SwinTransformerBlock)
    for size, same in (((8, 12), True), ((9, 12), False), ((10, 7), False)):
        x = torch.randn(1, *size, 8)
        difference = (ours(x) - timms(x)).norm() / timms(x).norm()
        assert (difference == 0) == same and (same or difference > 1e-3)


@pytest.mark.parametrize("window, shift", [(4, 2), (7, 3), (12, 6)])
def test_windows_never_shrink_and_odd_blocks_shift(tiny, window, shift):
    """In no stage, however small its map: timm would stop shifting from a window of 7 at 224 pixels on."""
    for stage in tiny(depths=(2, 2, 2, 2), window=window).backbone.layers:
        assert [block.window_size for block in stage.blocks] == [(window, window)] * 2
        assert [tuple(block.shift_size) for block in stage.blocks] == [(0, 0), (shift, shift)]
        assert [type(block) for block in stage.blocks] == [PaddedBlock] * 2


@torch.no_grad()
def test_any_image_size(tiny):
    backbone = tiny().backbone
    for height, width, expected in ((32, 64, [(8, 16), (4, 8), (2, 4), (1, 2)]),
                                    (33, 47, [(9, 12), (5, 6), (3, 3), (2, 2)]), (1, 1, [(1, 1)] * 4)):
        maps = backbone(torch.randn(1, 3, height, width))
        assert [tuple(level.shape[-2:]) for level in maps] == expected
        assert [level.shape[1] for level in maps] == [16, 32, 64, 128]


def test_relative_positions_are_numbered_row_by_row():
    index = get_relative_position_index(7, 7)
    assert index[0, 0] == 84 and index[0, 48] == 0 and index[48, 0] == 168
    assert index[1, 0] == 85 and index[7, 0] == 97  # one column further, one row further


@torch.no_grad()
def test_merging_order(tiny):
    """Of each 2 x 2: (0, 0), (1, 0), (0, 1), (1, 1), rows first."""
    merging = tiny().backbone.layers[1].downsample
    x = torch.zeros(1, 2, 2, 16)
    x[0, 0, 0], x[0, 1, 0], x[0, 0, 1], x[0, 1, 1] = 1.0, 2.0, 3.0, 4.0
    seen = []
    merging.norm.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    merging(x)
    assert seen[0].flatten().unflatten(0, (4, 16))[:, 0].tolist() == [1, 2, 3, 4]
    assert merging.reduction.bias is None and merging.norm.weight.shape == (64,)


@torch.no_grad()
def test_stage_norms_are_read_but_not_fed_on(tiny):
    backbone = tiny().backbone
    image = torch.randn(1, 3, 64, 64)
    before = backbone(image)
    backbone.norms[0].weight.mul_(2), backbone.norms[0].bias.add_(1)
    after = backbone(image)
    torch.testing.assert_close(after[0], 2 * before[0] + 1)
    assert all(torch.equal(a, b) for a, b in zip(after[1:], before[1:], strict=True))
    level = before[2].permute(0, 2, 3, 1)
    torch.testing.assert_close(level.mean(-1), torch.zeros(level.shape[:-1]), atol=1e-5, rtol=0)


def test_names_are_timms_and_there_is_no_position_embedding(tiny):
    names = {name for name, _ in tiny().backbone.named_parameters()}
    assert "layers.2.blocks.1.attn.qkv.weight" in names and "layers.1.downsample.reduction.weight" in names
    assert not any("pos_embed" in name or name.startswith(("norm.", "head.")) for name in names)


def test_mlp_width_and_stochastic_depth_are_those_of_the_configuration(tiny):
    blocks = [block for stage in tiny(mlp_ratio=2.0, drop_path=0.4).backbone.layers for block in stage.blocks]
    assert [block.mlp.fc1.out_features for block in blocks] == [32, 64, 128, 128, 256]
    assert [getattr(block.drop_path1, "drop_prob", 0.0) for block in blocks] == pytest.approx([0, 0.1, 0.2, 0.3, 0.4])
