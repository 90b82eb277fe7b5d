"""One file a quantized model: bit for bit, and clear words for files that are broken, foreign or missing."""

import pytest
import torch

import vitq
from vitq import zoo
from vitq.errors import InputError, MissingError
from vitq.train import checkpoints


@pytest.fixture(scope="module")
def model():
    x = torch.randn(8, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    return vitq.calibrate(vitq.quantize(zoo.load("mobilenet_micro"), vitq.QuantSpec(3, 4)), [x]).eval()


@pytest.fixture
def file(model, tmp_path):
    return vitq.save(model, tmp_path / "model.safetensors")


def test_loads_bit_for_bit(model, file):
    site = next(iter(vitq.weight_quantizers(model).values()))
    site.quantizer.freeze(site.latent > 0, site.codes())
    again = vitq.load(vitq.save(model, file))
    x = torch.randn(2, 3, 32, 32)
    assert torch.equal(again(x), model(x))
    assert again.quant_spec == model.quant_spec
    assert set(again.state_dict()) == set(model.state_dict())
    site.quantizer.unfreeze()


def test_a_head_of_another_size_is_kept(tmp_path):
    model = vitq.quantize(zoo.load("vit_micro", num_classes=7), vitq.QuantSpec(4))
    assert vitq.load(vitq.save(model, tmp_path / "v.safetensors", num_classes=7)).num_classes == 7


def test_truncated_foreign_and_missing_files(file, tmp_path):
    content = file.read_bytes()
    file.write_bytes(content[:-100])
    with pytest.raises(InputError, match="no complete safetensors"):
        vitq.load(file)
    file.write_bytes(b"not a checkpoint")
    with pytest.raises(InputError, match="no complete safetensors"):
        vitq.load(file)
    checkpoints.save_tensors(file, {"weight": torch.zeros(1)})
    with pytest.raises(InputError, match="not written by vitq.save"):
        vitq.load(file)
    with pytest.raises(MissingError, match="does not exist"):
        vitq.load(tmp_path / "nowhere.safetensors")


def test_nan_and_wrong_tensors_are_named(model, file):
    from safetensors.torch import load_file

    state = load_file(file)
    state["conv_stem.parametrizations.weight.original"][0] = float("nan")
    with pytest.raises(InputError, match="conv_stem.*NaN"):
        vitq.saving.load_state(model, state, file)
    state = load_file(file)
    del state["conv_stem.parametrizations.weight.original"]
    with pytest.raises(InputError, match="conv_stem"):
        vitq.saving.load_state(model, state, file)


def test_a_full_disk_keeps_the_older_file(model, file, monkeypatch):
    before = file.read_bytes()

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoints, "_write", full)
    with pytest.raises(MissingError, match="No space left"):
        vitq.save(model, file)
    assert file.read_bytes() == before
    assert [p.name for p in file.parent.iterdir()] == [file.name]


def test_a_float_or_nameless_model_is_refused(model, tmp_path):
    with pytest.raises(InputError, match="vitq.quantize"):
        vitq.save(zoo.load("mobilenet_micro"), tmp_path / "x.safetensors")
