"""Released checkpoints: the counts of the specifications, every tensor where it belongs, the first misfit by name."""

import math

import pytest
import torch
import yaml

import vitq
from vitq import cli, importing
from vitq.errors import InputError, MissingError

MICRO = [("ofq", "vit_micro", 2), ("ofq", "swin_micro", 3), ("vvtq", "vit_micro", 4), ("vvtq", "swin_micro", 2)]


@pytest.mark.parametrize("source, model, bits, parameters", [
    ("ofq", "timm:deit_tiny_distilled_patch16_224", 2, 6_081_569),  # section 5.3 of the specification
    ("ofq", "timm:swin_tiny_patch4_window7_224", 2, 28_608_256),
    ("vvtq", "timm:deit_tiny_patch16_224", 4, 5_718_876),  # section 2.5
])
def test_parameters_are_those_of_the_specification(source, model, bits, parameters):
    network = importing.target(source, model, bits)
    entries = importing.paper(source).entries(network, bits, importing.names(source))
    assert sum(math.prod(entry.shape) for entry in entries if entry.parameter) == parameters
    assert len({entry.key for entry in entries}) == len(entries)
    shapes = {entry.key: entry.shape[0] for entry in entries}
    clips = [key for key in shapes if key.endswith("clip_val")]
    scales = [key for key in shapes if key.endswith(".s")]
    if source == "ofq" and "deit" in model:
        assert len(clips) == 60 and len(scales) == 90 and sum(shapes[key] for key in scales) == 23_509
        first = [shapes[f"blocks.0.{name}.s"] for name in (
            "attn.quant_x_4_qkv.input_quant_fn", "attn.quan_a_qkx_fn", "attn.quan_a_v_fn", "attn.quan_a_softmax_fn",
            "attn.proj.input_quant_fn", "mlp.fc1.input_quant_fn", "mlp.fc2.input_quant_fn")]
        assert first == [198, 594, 192, 198, 198, 198, 198]  # T12
    elif source == "ofq":
        assert len(clips) == 63 and len(scales) == 91 and sum(shapes[key] for key in scales) == 14_623
        first = [shapes[f"features.1.0.{name}.s"] for name in (
            "attn.quant_x_4_qkv.input_quant_fn", "attn.quan_a_qkx_fn", "attn.quan_a_v_fn", "attn.quan_a_softmax_fn",
            "attn.proj.input_quant_fn", "mlp.fc1.input_quant_fn", "mlp.fc2.input_quant_fn")]
        assert first == [49, 147, 96, 49, 49, 56, 56]
    else:
        assert len([key for key in shapes if key.endswith(".alpha")]) == 74 + 98


@pytest.mark.parametrize("source, model, bits", MICRO)
def test_every_tensor_arrives_and_the_file_loads(source, model, bits, make, saved, tmp_path):
    state, entries = make(source, model, bits)
    found = importing.import_checkpoint(saved(state), source, model, bits, tmp_path / "m.safetensors")
    network = vitq.load(tmp_path / "m.safetensors")
    own = network.state_dict()
    moved = [key for key in own if key.endswith("reduction.input_quantizer.post_offset")]
    for entry in entries:
        if entry.target and entry.target not in moved:
            expected = state[entry.key] if entry.take is None else entry.take(state[entry.key])
            assert torch.equal(own[entry.target], expected), entry.key
    assert found.mapped + len(found.left_out) == len(state)
    assert {key for keys in found.reasons.values() for key in keys} == {e.key for e in entries if not e.target}
    image = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    assert torch.isfinite(network(image)).all()
    again = vitq.load(vitq.save(network, tmp_path / "again.safetensors"))
    assert torch.equal(again(image), network(image))


@pytest.mark.parametrize("wrapped, prefix", [("state_dict", ""), ("model", "module."), ("", "")])
def test_usual_wrappings_are_taken_off(wrapped, prefix, make, saved, tmp_path):
    state, _ = make("ofq", "vit_micro", 2)
    file, out = saved(state, wrapped, prefix), tmp_path / "m.safetensors"
    found = importing.import_checkpoint(file, "ofq", "vit_micro", 2, out)
    assert found.mapped + len(found.left_out) == len(state)


def test_signs_follow_the_file(make, saved, tmp_path):
    state, _ = make("ofq", "vit_micro", 2)
    state["patch_embed.proj.input_quant_fn.signed"].zero_()
    importing.import_checkpoint(saved(state), "ofq", "vit_micro", 2, tmp_path / "m.safetensors")
    network = vitq.load(tmp_path / "m.safetensors")
    assert network.patch_embed.proj.input_quantizer.signed is False
    assert network.blocks[0].mlp.fc2.input_quantizer.signed is False
    assert network.blocks[0].attn.probability_quantizer.signed is False
    assert network.blocks[0].mlp.fc1.input_quantizer.signed is True


def without(state, key):
    return {name: value for name, value in state.items() if name != key}


OFQ_FAULTS = {
    "absent": (lambda s: without(s, "blocks.0.attn.q.weight"), r"blocks\.0\.attn\.q\.weight is absent.*assumed"),
    "renamed": (lambda s: without(s, "blocks.0.attn.quan_a_v_fn.s") | {"blocks.0.attn.quant_a_v_fn.s": torch.ones(64)},
                r"quan_a_v_fn\.s is absent \(there is blocks\.0\.attn\.quant_a_v_fn\.s\).*assumed"),
    "unknown": (lambda s: s | {"ema": torch.ones(1)}, "ema is unknown"),
    "shape": (lambda s: s | {"head.bias": torch.ones(41, 1)}, r"head\.bias is \(41, 1\), not \(41,\)"),
    "nan": (lambda s: s | {"head.bias": torch.full((41,), torch.nan)}, "head.bias holds NaN"),
    "clip": (lambda s: s | {"blocks.1.mlp.fc1.statsq_fn.clip_val": torch.tensor([2.5])},
             "fc1.statsq_fn.clip_val holds 2.5, not 2"),
    "sign": (lambda s: s | {"patch_embed.proj.input_quant_fn.signed": torch.tensor([3.0])}, "signed holds 3"),
}


@pytest.mark.parametrize("fault", OFQ_FAULTS)
def test_the_first_misfit_is_named(fault, make, saved, tmp_path):
    change, message = OFQ_FAULTS[fault]
    file = saved(change(make("ofq", "vit_micro", 2)[0]))
    with pytest.raises(InputError, match=message) as caught:
        importing.import_checkpoint(file, "ofq", "vit_micro", 2, tmp_path / "m.safetensors")
    assert "\n" not in str(caught.value) and not (tmp_path / "m.safetensors").exists()


@pytest.mark.parametrize("model, key, value, message", [
    ("vit_micro", "blocks.0.mlp.quant1.nbits", [3.0], "holds 3 bits, not 4"),
    ("vit_micro", "quant.init_state", [0.0], "scales were never set"),
    ("swin_micro", "layers.0.blocks.0.attn.relative_position_index", None, "counted otherwise"),
])
def test_constants_of_vvtq_are_checked(model, key, value, message, make, saved, tmp_path):
    state, _ = make("vvtq", model, 4)
    state[key] = state[key].flip(0) if value is None else torch.tensor(value)
    with pytest.raises(InputError, match=message):
        importing.import_checkpoint(saved(state), "vvtq", model, 4, tmp_path / "m.safetensors")


def test_bits_of_patch_merging_may_have_drifted(make, saved, tmp_path):
    state, _ = make("vvtq", "swin_micro", 4)
    state["layers.0.downsample.reduction.nbits"] = torch.tensor([7.7])
    importing.import_checkpoint(saved(state), "vvtq", "swin_micro", 4, tmp_path / "m.safetensors")


def test_other_names_come_from_a_file(make, saved, tmp_path):
    state, _ = make("ofq", "vit_micro", 2)
    state = {key.replace("attn.q.weight", "attn.wq").replace(".statsq_fn.clip_val", ".clip"): value
             for key, value in state.items()}
    names = tmp_path / "names.yml"
    names.write_text(yaml.safe_dump({"attn.query_key.query.weight": "attn.wq", ".clip": ".clip"}))
    file, out = saved(state), tmp_path / "m.safetensors"
    with pytest.raises(InputError, match="is absent"):
        importing.import_checkpoint(file, "ofq", "vit_micro", 2, out)
    importing.import_checkpoint(file, "ofq", "vit_micro", 2, out, names)
    assert torch.equal(vitq.load(out).blocks[2].attn.query_key.query.weight, state["blocks.2.attn.wq"])


@pytest.mark.parametrize("text, error, message", [
    ("attn.query_key.quary.weight: q", InputError, "did you mean 'attn.query_key.query.weight'"),
    ("[a, b]", InputError, "give a mapping"), (".clip: 3", InputError, "give a mapping"),
    (None, MissingError, "No such"),
])
def test_a_wrong_file_of_names_is_one_line(text, error, message, tmp_path):
    file = tmp_path / "names.yml"
    if text is not None:
        file.write_text(text)
    with pytest.raises(error, match=message) as caught:
        importing.names("ofq", file)
    assert "\n" not in str(caught.value)


class Evil:
    def __reduce__(self):
        return (open, ("evil", "w"))


def test_files_that_are_no_checkpoints(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "f.pth").write_bytes(b"x" * 50)
    with pytest.raises(InputError, match="truncated, damaged"):
        importing.import_checkpoint("f.pth", "ofq", "vit_micro", 2, "m.safetensors")
    torch.save({"model": Evil()}, "g.pth")
    with pytest.raises(InputError, match="truncated, damaged or no checkpoint of plain tensors"):
        importing.import_checkpoint("g.pth", "ofq", "vit_micro", 2, "m.safetensors")
    assert not (tmp_path / "evil").exists(), "code of the file ran"


@pytest.mark.parametrize("line, code, message", [
    ("--from ofq", 2, "give FILE"), ("f.pth --from ofq --model vit_micro", 2, "give --bits"), ("f.pth", 2, "--from"),
    ("f.pth --from erq --model vit_micro", 2, "ofq, vvtq"),
    ("f.pth --from ofq --model vit_micro --bits 9 --out m.safetensors", 2, "between 2 and 8"),
    ("f.pth --from ofq --model vit_micro --bits 2 --out m.pth", 2, ".safetensors"),
    ("f.pth --from ofq --model vit_micro --bits 2 --out m.safetensors", 3, "no file f.pth"),
    ("here --from ofq --model vit_micra --bits 2 --out m.safetensors", 2, "vit_micro"),
    ("here --from ofq --model mobilenet_micro --bits 2 --out m.safetensors", 2, "transformer"),
])
def test_the_command_says_what_is_wrong(line, code, message, capsys, saved, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    file = saved({"head.weight": torch.ones(41, 64)})
    assert cli.main(["import", *line.replace("here", str(file)).split()]) == code
    out, err = capsys.readouterr()
    assert message in err and err.count("\n") == 1 and out == ""


@pytest.mark.parametrize("source", importing.PAPERS)
def test_the_command_imports_and_lists_names(source, capsys, make, saved, tmp_path):
    assert cli.main(["import", "--from", source, "--list-names"]) == 0
    listed = capsys.readouterr().out
    assert yaml.safe_load(listed) == importing.names(source) and "assumed" in listed
    (tmp_path / "names.yml").write_text(listed)
    file, out = saved(make(source, "swin_micro", 2)[0]), tmp_path / "m.safetensors"
    words = ["--from", source, "--model", "swin_micro", "--bits", "2", "--out", str(out)]
    assert cli.main(["import", str(file), *words, "--names", str(tmp_path / "names.yml")]) == 0
    printed = capsys.readouterr().out
    assert "tensors mapped" in printed and "left out: " in printed
    assert vitq.load(out).num_classes == 41
