import pickle
from collections import OrderedDict

import pytest
import torch

from vitq.detection import MODELS, Detector, load, open_saved, save
from vitq.detection.checkpoint import our_key, read_checkpoint, translate
from vitq.errors import InputError, MissingError

COUNTS = {"mask_rcnn_swin_tiny": (231, 47_794_602), "mask_rcnn_swin_small": (399, 69_112_506),
          "cascade_mask_rcnn_swin_tiny": (337, 85_629_804), "cascade_mask_rcnn_swin_small": (505, 106_947_708)}


@pytest.fixture(scope="module", params=list(MODELS))
def case(request, published):
    with torch.device("meta"):
        model = Detector(request.param)
        state = {key: torch.empty(shape, dtype=torch.int64 if key.endswith(("index", "tracked")) else torch.float32)
                 for key, shape in published(request.param).items()}
    return request.param, model, state


def meta_translate(state, model):
    """Translate without the check of values, which tensors on the meta device have not."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "isfinite", lambda x: torch.ones((), dtype=torch.bool))
        return translate(state, model, "f.pth")


def test_every_key_and_shape_is_accounted_for(case):
    name, model, state = case
    assert (len(state), sum(p.numel() for p in model.parameters())) == COUNTS[name]
    found = meta_translate(state, model)
    model.load_state_dict(found, strict=True, assign=True)
    assert set(found) == set(model.state_dict())


def test_tracked_batches_may_be_absent_and_modules_wrapped(case):
    _, model, state = case
    bare = {key: value for key, value in state.items() if not key.endswith("num_batches_tracked")}
    assert set(meta_translate(bare, model)) == set(model.state_dict())


@pytest.mark.parametrize("change, message", [
    (lambda s: s | {"backbone.absolute_pos_embed": torch.zeros(1)}, "'backbone.absolute_pos_embed' is not one of"),
    (lambda s: s | {"neck.fpn_convs.4.conv.weight": torch.zeros(1)}, "'neck.fpn_convs.4.conv.weight' is not one of"),
    (lambda s: s | {"roi_head.bbox_head.fc_cls.bias": torch.zeros(5)}, r"has shape \(5,\), this model needs \(4,\)"),
    (lambda s: {k: v for k, v in s.items() if k != "rpn_head.rpn_reg.bias"}, "gives 'rpn.head.bbox_pred.bias'"),
    (lambda s: s | {"rpn_head.rpn_reg.bias": torch.full((12,), torch.nan)}, "'rpn_head.rpn_reg.bias' holds NaN"),
    (lambda s: s | {"backbone.layers.0.blocks.0.attn.relative_position_index": torch.zeros(16, 16, dtype=int)},
     "'backbone.layers.0.blocks.0.attn.relative_position_index' numbers the positions"),
])
def test_a_foreign_file_is_refused_by_its_first_offending_key(tiny, tmp_path, change, message):
    model = tiny()
    state = change(published_state(model))
    file = tmp_path / "f.pth"
    torch.save({"meta": {"epoch": 36}, "state_dict": state}, file)
    with pytest.raises(InputError, match=message):
        load(model.config, checkpoint=file)


def published_state(model):
    """A small detector's tensors under published names, by the inverse of the map."""
    inverse = {}
    for stage in range(4):
        for number in range(2):
            for part in ("norm1", "norm2", "attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2"):
                for kind in ("weight", "bias"):
                    key = f"backbone.layers.{stage}.blocks.{number}.{part}.{kind}"
                    inverse[key] = our_key(key)
            key = f"backbone.layers.{stage}.blocks.{number}.attn.relative_position_bias_table"
            inverse[key] = our_key(key)
        for part in ("norm.weight", "norm.bias", "reduction.weight"):
            inverse[f"backbone.layers.{stage}.downsample.{part}"] = f"backbone.layers.{stage + 1}.downsample.{part}"
    at = ("backbone.patch_embed.proj", "backbone.patch_embed.norm", *(f"backbone.norm{i}" for i in range(4)),
          *(f"neck.{k}_convs.{i}.conv" for k in ("lateral", "fpn") for i in range(4)), "rpn_head.rpn_conv",
          "rpn_head.rpn_cls", "rpn_head.rpn_reg", "roi_head.bbox_head.fc_cls", "roi_head.bbox_head.fc_reg",
          "roi_head.bbox_head.shared_fcs.0", "roi_head.bbox_head.shared_fcs.1",
          *(f"roi_head.mask_head.convs.{i}.conv" for i in range(4)), "roi_head.mask_head.upsample",
          "roi_head.mask_head.conv_logits")
    inverse |= {f"{key}.{kind}": our_key(f"{key}.{kind}") for key in at for kind in ("weight", "bias")}
    own = model.state_dict()
    return {key: own[name] for key, name in inverse.items() if name in own}


def test_a_published_file_gives_the_same_detections(tiny, tmp_path):
    model = tiny(seed=3)
    state = {f"module.{key}": value for key, value in published_state(model).items()}
    torch.save({"meta": {"CLASSES": ("a", "b", "c")}, "state_dict": state}, tmp_path / "f.pth")
    again = load(model.config, checkpoint=tmp_path / "f.pth")
    image = torch.randn(1, 3, 64, 96)
    assert torch.equal(model(image)[0].boxes, again(image)[0].boxes)


def test_downsampling_moves_to_the_next_stage():
    assert our_key("backbone.layers.0.downsample.norm.weight") == "backbone.layers.1.downsample.norm.weight"
    assert our_key("backbone.layers.2.downsample.reduction.weight") == "backbone.layers.3.downsample.reduction.weight"
    assert our_key("backbone.layers.3.blocks.1.mlp.fc1.bias") == "backbone.layers.3.blocks.1.mlp.fc1.bias"
    assert our_key("backbone.stages.0.blocks.0.attn.w_msa.qkv.weight") is None


class Spy:
    def __reduce__(self):
        return (print, ("unpickled",))


def test_a_file_with_code_is_refused_unread(tmp_path, capsys):
    torch.save({"state_dict": {"a": torch.zeros(1)}, "meta": Spy()}, tmp_path / "code.pth")
    (tmp_path / "text.pth").write_bytes(b"no checkpoint")
    (tmp_path / "pickle.pth").write_bytes(pickle.dumps(Spy()))
    for name, why in (("code", "it holds print; save its 'state_dict' alone"), ("text", "truncated or no PyTorch"),
                      ("pickle", "truncated or no PyTorch")):
        with pytest.raises(InputError, match=f"cannot be loaded as tensors and plain data: .*{why}"):
            read_checkpoint(tmp_path / f"{name}.pth")
    assert capsys.readouterr().out == ""
    torch.save({"state_dict": {"a": 3}}, tmp_path / "number.pth")
    with pytest.raises(InputError, match="'a' is no tensor, but int"):
        read_checkpoint(tmp_path / "number.pth")
    with pytest.raises(MissingError, match="does not exist"):
        read_checkpoint(tmp_path / "none.pth")


def mmcv_content(state):
    """What the runner of MMDetection 2.11 with mixed precision wraps a state dict in, as plain types."""
    state = OrderedDict(state)
    state._metadata = OrderedDict({"": {"version": 1}, "backbone": {"version": 1}})
    optimizer = {"state": {0: {"step": 7330, "exp_avg": torch.zeros(3), "exp_avg_sq": torch.zeros(3)}},
                 "param_groups": [{"lr": 1e-4, "betas": (0.9, 0.999), "weight_decay": 0.05, "params": [0]}]}
    meta = {"env_info": "sys.platform: linux", "config": "model = dict(type='MaskRCNN')", "seed": None, "epoch": 36,
            "iter": 263880, "mmcv_version": "1.3.1", "time": "Mon Apr 12 01:02:03 2021", "hook_msgs": {},
            "CLASSES": ("person", "bicycle"), "PALETTE": None}
    return {"meta": meta, "state_dict": state, "optimizer": optimizer,
            "amp": {"loss_scaler0": {"loss_scale": 65536.0, "unskipped": 12}}}


@pytest.mark.parametrize("zipped", [True, False])
def test_a_file_as_training_leaves_it(tiny, tmp_path, zipped):
    """With optimizer, settings and loss scale, in either of PyTorch's formats; or cut short at any place."""
    model, file = tiny(seed=3), tmp_path / "f.pth"
    torch.save(mmcv_content(published_state(model)), file, _use_new_zipfile_serialization=zipped)
    again = load(model.config, checkpoint=file)
    own = model.state_dict()
    assert all(torch.equal(value, own[name]) for name, value in again.state_dict().items())
    content = file.read_bytes()
    for part in (0, 1, 100, 1000, *(len(content) * n // 13 for n in range(1, 13)), len(content) - 1):
        file.write_bytes(content[:part])
        with pytest.raises(InputError, match="it is truncated or no PyTorch file") as caught:
            load(model.config, checkpoint=file)
        assert "\n" not in str(caught.value)


def test_the_file_of_another_model_is_recognized(case, published):
    """By its first key or shape that does not fit; the message says which model it looks like."""
    name, model, _ = case
    for other in set(MODELS) - {name}:
        state = {key: torch.empty(shape, device="meta") for key, shape in published(other).items()}
        with pytest.raises(InputError, match=f"looks like {other}"):
            meta_translate(state, model)


def test_files_of_other_programs(tiny, tmp_path):
    """ImageNet weights of Swin, another release's names, a bare number; one line each."""
    file = tmp_path / "f.pth"
    for content, message in (
            ({"model": {"patch_embed.proj.weight": torch.zeros(1)}}, "no 'state_dict', and 'model' is no tensor"),
            ({"state_dict": {"backbone.stages.0.blocks.0.attn.w_msa.qkv.weight": torch.zeros(1)}},
             "'backbone.stages.0.blocks.0.attn.w_msa.qkv.weight' is not one of this model's$"),
            ({"state_dict": {}}, "holds no state dict"), (3, "holds no state dict")):
        torch.save(content, file)
        with pytest.raises(InputError, match=message):
            load(tiny().config, checkpoint=file)


def test_a_wrong_name_lists_the_models():
    with pytest.raises(InputError, match="mask_rcnn_swin_tiny, mask_rcnn_swin_small, cascade"):
        load("mask_rcnn_r50")


@pytest.mark.parametrize("cascade", [False, True])
def test_saved_and_opened_again(tiny, tmp_path, cascade):
    model = tiny(cascade=cascade)
    file = save(model, tmp_path / "m.safetensors", classes="a,b,c")
    image = torch.randn(1, 3, 64, 64)
    assert torch.equal(open_saved(file)(image)[0].boxes, model(image)[0].boxes)
    assert torch.equal(load(model.config, checkpoint=file)(image)[0].scores, model(image)[0].scores)
    with pytest.raises(InputError, match="another configuration"):
        load(tiny(cascade=cascade, channels=32).config, checkpoint=file)
