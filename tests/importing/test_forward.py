"""What an imported network computes is what the papers' formulas make of the released tensors, in float64."""

import pytest
import torch

import vitq
from vitq import importing


@pytest.fixture
def imported(make, saved, tmp_path):
    def load(source, model, bits):
        state, _ = make(source, model, bits)
        importing.import_checkpoint(saved(state), source, model, bits, tmp_path / "m.safetensors")
        return vitq.load(tmp_path / "m.safetensors").double(), {key: value.double() for key, value in state.items()}
    return load


def lsq(x, scale, bits, signed=True):
    low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)
    return (x / scale).clamp(low, high).round() * scale


def statsq(weight, bits):
    n, scale = 2 ** (bits - 1), 2 * weight.abs().mean(1, keepdim=True)
    return scale * ((n * (weight / scale).clamp(-1, 1 - 1e-6) - 0.5).round() + 0.5) / n


def inputs(*shape):
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(5))


def ofq_linear(x, state, name, bits, signed=True):
    x = lsq(x + state[f"{name}.move_b4.bias"], state[f"{name}.input_quant_fn.s"].unsqueeze(1), bits, signed)
    return (x + state[f"{name}.move_aft.bias"]) @ statsq(state[f"{name}.weight"], bits).T + state[f"{name}.bias"]


@pytest.mark.parametrize("bits", [2, 4])
def test_ofq_attention(imported, bits):
    network, state = imported("ofq", "vit_micro", bits)
    heads, tokens, width = 4, 64, 64
    a = {key.removeprefix("blocks.1.attn."): value for key, value in state.items() if key.startswith("blocks.1.attn.")}
    x = inputs(2, tokens, width)
    shared = "quant_x_4_qkv"
    xq = lsq(x + a[f"{shared}.move_b4.bias"], a[f"{shared}.input_quant_fn.s"].unsqueeze(1), bits)
    xq = xq + a[f"{shared}.move_aft.bias"]
    v = xq @ statsq(a["v.weight"], bits).T + a["v.bias"]
    v = lsq(v + a["move_v_b4.bias"], a["quan_a_v_fn.s"], bits) + a["move_v_aft.bias"]
    q, k = (a[f"{name}.weight"].view(heads, -1, width) for name in "qk")
    product = statsq(torch.einsum("hdc,hde->hce", q, k).reshape(heads * width, width), bits).view(heads, width, width)
    z = torch.einsum("hce,bne->bnhc", product, xq) + a["move_qkx_b4.bias"].view(heads, width)
    z = lsq(z, a["quan_a_qkx_fn.s"].view(tokens, heads, 1), bits) + a["move_qkx_aft.bias"].view(heads, width)
    p = (torch.einsum("bmc,bnhc->bhmn", xq, z) * (width // heads) ** -0.5).softmax(-1)
    p = lsq(p, a["quan_a_softmax_fn.s"].unsqueeze(1), bits, signed=False)
    y = (p @ v.unflatten(-1, (heads, -1)).transpose(1, 2)).transpose(1, 2).flatten(2)
    expected = ofq_linear(y, a, "proj", bits)
    assert expected.std() > 0.1
    torch.testing.assert_close(network.blocks[1].attn(x), expected)


def test_ofq_feed_forward_and_ends(imported):
    network, state = imported("ofq", "vit_micro", 3)
    x = inputs(2, 64, 64)
    y = torch.nn.functional.gelu(ofq_linear(x, state, "blocks.2.mlp.fc1", 3))
    expected = ofq_linear(y, state, "blocks.2.mlp.fc2", 3, signed=False)
    torch.testing.assert_close(network.blocks[2].mlp(x), expected)
    features = inputs(3, 64)
    y = lsq(features + state["head.move_b4.bias"], state["head.input_quant_fn.s"], 8) + state["head.move_aft.bias"]
    expected = y @ lsq(state["head.weight"], state["head.lsqw_fn.s"].unsqueeze(1), 8).T + state["head.bias"]
    torch.testing.assert_close(network.head(features), expected)
    image, stem = inputs(2, 3, 32, 32), "patch_embed.proj"
    y = lsq(image + state[f"{stem}.move_b4.bias"].view(32, 32), state[f"{stem}.input_quant_fn.s"].view(3, 1, 1), 8)
    weight = lsq(state[f"{stem}.weight"], state[f"{stem}.lsqw_fn.s"].view(-1, 1, 1, 1), 8)
    expected = torch.nn.functional.conv2d(y + state[f"{stem}.move_aft.bias"].view(32, 32), weight,
                                          state[f"{stem}.bias"], stride=4)
    torch.testing.assert_close(network.patch_embed.proj(image), expected)


def test_ofq_patch_merging_keeps_its_bias(imported):
    network, state = imported("ofq", "swin_micro", 3)
    x = inputs(2, 8, 8, 48)
    merged = torch.cat([x[:, 0::2, 0::2], x[:, 1::2, 0::2], x[:, 0::2, 1::2], x[:, 1::2, 1::2]], -1)
    merged = torch.nn.functional.layer_norm(merged, (192,), state["features.2.norm.weight"],
                                            state["features.2.norm.bias"])
    expected = ofq_linear(merged, state, "features.2.reduction", 3)
    assert state["features.2.reduction.bias"].abs().max() > 1
    # the offset is kept in float32
    torch.testing.assert_close(network.layers[1].downsample(x), expected, rtol=1e-4, atol=1e-4)


def test_vvtq_attention_and_feed_forward(imported):
    bits = 4
    network, state = imported("vvtq", "vit_micro", bits)
    b = {key.removeprefix("blocks.1."): value for key, value in state.items() if key.startswith("blocks.1.")}
    entry = bits - 2

    def linear(x, name):
        return x @ lsq(b[f"{name}.weight"], b[f"{name}.alpha"][entry], bits).T + b[f"{name}.bias"]

    def act(x, name, signed=True, offset=0.0):
        return lsq(x - offset, b[f"{name}.alpha"][entry], bits, signed) + offset

    x = inputs(2, 64, 64)
    xq = act(x, "attn.quant_input")
    q, k, v = (linear(xq, f"attn.proj_{n}").unflatten(-1, (4, -1)).transpose(1, 2) for n in "qkv")
    q, k, v = (act(t, f"attn.quant_{n}") for n, t in zip("qkv", (q, k, v), strict=True))
    p = act((q @ k.transpose(-2, -1) * 16**-0.5).softmax(-1), "attn.quant_attn", signed=False)
    y = act(p @ v, "attn.quant_output").transpose(1, 2).flatten(2)
    torch.testing.assert_close(network.blocks[1].attn(x), linear(y, "attn.proj"))
    y = torch.nn.functional.gelu(linear(act(x, "mlp.quant1"), "mlp.fc1"))
    y = act(y, "mlp.quant2", signed=False, offset=b["mlp.quant2.beta"][entry])
    torch.testing.assert_close(network.blocks[1].mlp(x), linear(y, "mlp.fc2"))
