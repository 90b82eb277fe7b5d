"""The small study: labels go with their crops, a run is what its setup says, and jobs are done once."""

import json

import pytest
import torch

from vitq import QuantSpec, zoo
from vitq.convert import INPUT, weight_quantizers
from vitq.data.images import ImageSet
from vitq.data.multi_crop import MultiCropSource
from vitq.data.soft_labels import CropSettings, make
from vitq.errors import InputError
from vitq.papers.vvtq2023 import mdq_spec, study
from vitq.papers.vvtq2023.sensitivity import MODULES

SMALL = {"images": 82, "steps": 3, "batch_size": 8, "test_images": 82}
REGULARIZED = [{"name": "tracking", "momentum": 0.5},
               {"name": "bin_regularization", "weight": 1.0, "begin": 0.0, "reduction": "sum"}]  # fmt: skip


@pytest.fixture(scope="module")
def glyphs(tmp_path_factory):
    patch = pytest.MonkeyPatch()
    patch.setenv("VITQ_CACHE", str(tmp_path_factory.mktemp("cache")))
    yield study.data.load("glyphs", "train", images=82)
    patch.undo()


@pytest.fixture(scope="module")
def store(glyphs, tmp_path_factory):
    folder = tmp_path_factory.mktemp("labels")
    make(folder, glyphs, zoo.load("vit_micro"), CropSettings(crops=4, flip=0.0), progress=False)
    return str(folder)


def setup(**changes):
    return study.Setup(**SMALL | changes)


def test_hard_labels_are_those_of_the_images_whose_crops_they_go_with(tmp_path):
    count = 12
    images = (torch.arange(count) * 20).to(torch.uint8)[:, None, None, None].expand(count, 3, 32, 32).clone()
    plain = ImageSet("plain", "train", images, torch.arange(count), 41, (0.0,) * 3, (1.0,) * 3, "plain-1")
    labels = make(tmp_path, plain, zoo.load("vit_micro"), CropSettings(crops=4), progress=False)
    hard = study.HardLabels(MultiCropSource(plain, labels, 9, 3, seed=1))
    batches = list(hard.iterate(2))
    assert len(batches) == len(hard) == 4
    for crops, classes in batches:
        assert classes.dtype == torch.int64 and classes.shape == (9,)
        assert torch.equal((crops.mean((1, 2, 3)) * 255 / 20).round().long(), classes)
    assert torch.equal(list(hard.iterate(2, 3))[0][1], batches[3][1])


@pytest.mark.parametrize("model", ["vit_micro", "swin_micro"])
@pytest.mark.parametrize("mode", ["layer", "head", "lsq"])
def test_networks_have_the_scales_of_their_mode(glyphs, model, mode):
    built = study.network(setup(model=model, mode=mode), glyphs)
    sites = weight_quantizers(built)
    scales = {sites[n].quantizer.scale.numel() for n in sites if n.endswith(("attn.key", "attn.proj"))}
    assert scales == ({1} if mode != "head" else {4} if model == "vit_micro" else {3, 6})
    assert {s.quantizer.grad_scale for s in sites.values()} == {"lsq" if mode == "lsq" else "l1"}
    assert sorted({s.quantizer.bits for s in sites.values()}) == [3, 8]


@pytest.mark.parametrize("group", [None, *MODULES])
def test_a_group_is_left_out_and_gelu_has_its_offset(glyphs, group):
    built = study.network(setup(group=group), glyphs)
    kinds = {"ffn": {"fc1", "fc2"}, "mhsa": {"query", "key", "value", "proj"}}.get(group, {group})
    names = {n.rsplit(".", 1)[-1] for n in weight_quantizers(built) if n.startswith("blocks.")}
    assert names == {"query", "key", "value", "proj", "fc1", "fc2"} - kinds
    second = built.blocks[0].mlp.fc2
    assert (group == "ffn") == (getattr(second, INPUT, None) is None)
    assert group == "ffn" or getattr(second, INPUT).offset is not None
    assert built(glyphs.normalize(glyphs.images[:2])).shape == (2, 41)


def test_a_run_is_analysed_and_done_once(glyphs, store, tmp_path, monkeypatch):
    job = {"kind": "train", "out": str(tmp_path / "run"),
           "setup": SMALL | {"store": store, "remedies": REGULARIZED, "seed": 3}}  # fmt: skip
    found = study.studied(job)
    assert found["steps"] == 3 and found["seconds"] > 0 and found["test_images"] == 82
    assert set(found["metrics"]) == {"top1", "train_loss", "oscillating_percent", "gradient_share"}
    assert 0 < found["metrics"]["gradient_share"] < 10 and 0 <= found["metrics"]["top1"] <= 100
    assert sum(found["distances"]) == pytest.approx(1) and len(found["distances"]) == 20
    monkeypatch.setattr(study, "trained", None)
    assert study.studied(job) == json.loads(json.dumps(found))


def test_stored_and_online_labels_of_one_teacher_nearly_agree(glyphs, store):
    losses = {}
    for labels in ("stored", "online", "hard"):
        given = SMALL | {"store": store, "labels": labels, "crops": 2, "steps": 8, "learning_rate": 2e-3, "seed": 1}
        found = study.trained({"setup": given})
        assert "oscillating_percent" not in found["metrics"]
        losses[labels] = found["metrics"]["top1"]
    assert abs(losses["stored"] - losses["online"]) < 10


def test_same_setup_same_result(glyphs, store):
    first, second, other = (study.trained({"setup": SMALL | {"store": store, "seed": seed}})["metrics"]
                            for seed in (0, 0, 1))  # fmt: skip
    assert first == second and first["train_loss"] != other["train_loss"]


def test_a_step_is_timed(glyphs, store):
    found = study.studied({"kind": "time", "out": None, "setup": SMALL | {"store": store}, "warmup": 1})
    assert 0 < found["seconds"] < 5


def test_distances_are_counted_within_the_bins(glyphs):
    built = study.network(setup(), glyphs)
    flat = study.distance_histogram(built)
    assert sum(flat) == pytest.approx(1) and max(flat) < 0.1
    for site in weight_quantizers(built).values():
        with torch.no_grad():
            site.latent.copy_(site.quantizer(site.latent))
    centred = study.distance_histogram(built)
    assert centred[9] + centred[10] == pytest.approx(1)


def test_networks_are_examined_without_training(glyphs):
    shared = {"model": "vit_micro", "data": "glyphs", "images": 64}
    spec = mdq_spec(zoo.load("vit_micro"), 3, 3).to_dict()
    found = study.sensitivity(shared | {"spec": spec, "groups": ["ffn", "head 1"]})
    assert [row["group"] for row in found["rows"]] == ["nothing", "ffn", "head 1"]
    assert found["rows"][0]["gain_db_per_million"] is None and found["rows"][1]["gain_db"] > 0
    assert QuantSpec.from_dict(json.loads(json.dumps(spec))) == QuantSpec.from_dict(spec)
    probe = study.studied(shared | {"kind": "one_head", "out": None, "spec": spec, "block": "blocks.0"})["rows"]
    assert [row["head"] for row in probe] == ["none", "0", "1", "2", "3"]
    rows = study.activations(shared)["rows"]
    assert {"blocks.0.attn.query", "blocks.3.mlp.fc2 input"} <= {row["site"] for row in rows}
    json.dumps(rows, allow_nan=False)


@pytest.mark.parametrize(("job", "complaint"), [
    ({"kind": "nap"}, "kind='nap': choose one of train, time, sensitivity, one_head, activations"),
    ({"kind": "train", "setup": {"step": 3}}, "unknown key 'step'; did you mean 'steps'"),
    ({"kind": "train", "setup": {"labels": "soft"}}, "setup.labels='soft'"),
])  # fmt: skip
def test_wrong_jobs_are_refused(job, complaint):
    with pytest.raises(InputError, match=complaint):
        study.studied(job)
