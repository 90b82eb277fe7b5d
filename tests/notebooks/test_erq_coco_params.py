"""ERQ's full runs on COCO: the files are the published rows, full precision comes first, a run goes on where it was."""

import dataclasses
import json
import shutil

import nbformat
import pytest
import torch
import yaml
from contents import ROOT

from vitq import comparison
from vitq.errors import InputError, MissingError
from vitq.papers.erq2024 import coco_full, coco_job, coco_report
from vitq.records import Record

pytest.importorskip("cv2"), pytest.importorskip("pycocotools")
FULL = ROOT / "notebooks" / "params" / "full"
FILES = sorted(FULL.glob("erq_coco_*.yml"))
NOTEBOOK = ROOT / "notebooks" / "erq2024" / "coco.ipynb"
SMOKE = ROOT / "notebooks" / "params" / "smoke" / "erq_coco.yml"
PAPER = comparison.published(coco_job.TABLE)


def test_there_is_a_file_for_every_published_row_of_our_methods():
    found = [coco_job.read(file.stem)[0] for file in FILES]
    assert [job.name for job in found] == [file.stem for file in FILES]
    rows = PAPER[PAPER["method"].isin(["ERQ", "RepQ-ViT"])]
    assert sorted((j.network, coco_job.NAMES[j.methods[0]], j.bits) for j in found) == sorted(
        set(zip(rows["model"], rows["method"], rows["bits"], strict=True)))  # fmt: skip
    assert set(PAPER["method"]) == {"FP32", "uniform", "RepQ-ViT", "ERQ"}  # what no file is made for: the README says


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_a_file_says_what_was_published_and_has_the_published_settings(file):
    job, seeds = coco_job.read(file.stem)
    box, mask = (coco_job.published(job, job.methods[0], metric) for metric in ("box_ap", "mask_ap"))
    text = file.read_text()
    assert f"published {box['value']:.1f} box AP, {mask['value']:.1f} mask AP." in text.splitlines()[0]
    assert f"# Source: {box['source']}.\n" in text
    settings = comparison.published("erq2024_settings")
    settings = settings[(settings["model"] == job.network) & (settings["method"] == "ERQ")].set_index("metric")["value"]
    assert job.coe == settings["lambda"] and job.images == settings["calibration_images"] and len(seeds) >= 3
    assert (job.long, job.short, job.scope) == (1333, 800, "whole")
    assert job.model.endswith({"T": "tiny", "S": "small"}[job.network[-1]])
    assert job.model.startswith("cascade") == job.network.startswith("Cascade")


def test_the_readme_lists_the_files_and_what_has_none():
    readme = (FULL / "README.md").read_text()
    for file in FILES:
        job = coco_job.read(file.stem)[0]
        value = coco_job.published(job, job.methods[0])["value"]
        assert f"| `{file.name}` | {job.network} {job.bits}, {coco_job.NAMES[job.methods[0]]} | {value:.1f} |" in readme
        assert f"notebooks/erq2024/coco.ipynb -f notebooks/params/full/{file.name} -p data_path" in readme
    assert "plain uniform baseline" in readme and "GPTQ" in readme


@pytest.mark.parametrize(("change", "message"), [
    ({"variant": "paper"}, "variant"), ({"methods": ["magic"]}, "methods"), ({"methods": []}, "methods"),
    ({"weight_bits": 1}, "weight_bits"), ({"images": 0}, "images"), ({"options": {"speed": 1}}, "unknown speed"),
    ({"lambda": 1}, "job: lambda"), ({"coe": -1.0}, "coe"), ({"model": "mask_rcnn_r50"}, "mask_rcnn_swin_tiny"),
    ({"calibration": "test"}, "calibration"), ({"scope": "neck"}, "scope"),
    ({"calibration": "first_val", "images": 2}, "one image"),
])
def test_a_wrong_job_is_refused_before_any_work(change, message):
    with pytest.raises(InputError, match=message):
        coco_job.CocoJob.from_dict(yaml.safe_load(SMOKE.read_text())["job"] | change)


def test_parameters_win_over_the_file():
    row = "erq_coco_mask_swin_s_w4a4_erq"
    job, seeds = coco_job.resolve(row, {}, [7], "released", "first_val", ["repq", "erq"])
    assert seeds == [7] and job.methods == ("repq", "erq") and job.calibration == "first_val"
    for method, switch in (("repq", "weight_percentiles"), ("erq", "flip_rule")):
        found = job.arguments(method)
        assert found["levels"] == "first" and found["windows"] == "released" and switch in found
        assert found["round_zero_point"] is False and "dual" not in found
    assert "levels" not in coco_job.read(row)[0].arguments("erq")
    for wrong in ([-1], [True], ["0"]):
        with pytest.raises(InputError, match="seeds"):
            coco_job.resolve(row, {}, wrong, "", "", [])
    with pytest.raises(InputError, match="erq_coco_mask_swin_t_w4a4_erq"):
        coco_job.resolve("erq_coco_mask_swin_l_w4a4_erq", {}, [], "", "", [])


@pytest.fixture(scope="module")
def folder(coco_folder):
    return coco_folder


@pytest.fixture
def smoke():
    """The job of the smoke file on a network that need not find anything."""
    return coco_job.CocoJob.from_dict(yaml.safe_load(SMOKE.read_text())["job"] | {"methods": ["repq"], "long": 64,
                                                                                   "short": 64})


def open_bench(job, folder, **changes):
    return coco_full.Bench(job, str(folder), **{"device": "cpu", "whole": False, "limit": 2, **changes})


def test_calibration_images_come_from_training_or_are_the_first_validation_image(smoke, folder, tmp_path):
    bench = open_bench(smoke, folder)
    assert bench.calibrated_on == "train" and bench.draws([0, 1, 2]) == [0, 1, 2]
    one, names = bench.calibration(3)
    again, others = bench.calibration(3)
    assert names == others and one[0].images.equal(again[0].images) and len(names) == smoke.images
    assert {bench.calibration(seed)[1][0] for seed in range(20)} > {names[0]}
    bench = open_bench(dataclasses.replace(smoke, calibration="first_val"), folder)
    entry = bench.test.coco.dataset["images"][0]
    assert bench.calibrated_on == "first_val" and bench.draws([0, 1, 2]) == [0]
    assert bench.calibration(0)[1] == [entry["file_name"]] != [bench.test.path(min(bench.test.image_ids)).name]
    without = tmp_path / "coco"
    shutil.copytree(folder, without, ignore=shutil.ignore_patterns("train2017"))
    assert open_bench(smoke, without).calibrated_on == "first_val"
    with pytest.raises(MissingError, match="train2017"):
        open_bench(dataclasses.replace(smoke, calibration="train"), without)
    with pytest.raises(MissingError, match="0 images in train2017/, 3 are"):
        open_bench(dataclasses.replace(smoke, images=3), without)


def test_what_is_missing_is_named_before_any_work(smoke, folder, tmp_path):
    published = coco_job.read("erq_coco_mask_swin_t_w4a4_erq")[0]
    with pytest.raises(MissingError, match="checkpoint: give the file of mask_rcnn_swin_tiny"):
        coco_report.open_bench(published, "full", str(folder), "", "cpu", 0)
    with pytest.raises(MissingError, match="data_path: give the COCO folder"):
        coco_report.open_bench(smoke, "full", "", "", "cpu", 0)
    with pytest.raises(MissingError, match="instances_val2017.json"):
        open_bench(smoke, tmp_path)
    with pytest.raises(InputError, match="4 images of 4 categories"):
        coco_report.open_bench(smoke, "full", str(folder), "", "cpu", 0)
    with pytest.raises(InputError, match="limit_images=-1"):
        open_bench(smoke, folder, limit=-1)
    with pytest.raises(MissingError, match="'gone.pth' does not exist"):
        open_bench(smoke, folder, checkpoint="gone.pth")
    if not torch.cuda.is_available():
        with pytest.raises(MissingError, match="device=cuda"):
            open_bench(smoke, folder, device="cuda")
    broken = tmp_path / "coco"
    shutil.copytree(folder, broken)
    next((broken / "val2017").glob("*.png")).unlink()
    with pytest.raises(MissingError, match="there is no .*png"):
        open_bench(smoke, broken, limit=0)


def test_a_run_goes_on_where_it_was(smoke, folder, tmp_path, monkeypatch):
    bench = open_bench(smoke, folder)
    whole = coco_full.one(bench, tmp_path / "whole", "repq", 0)
    seen, detect = [], bench.precision
    monkeypatch.setattr(bench, "precision", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        coco_full.one(bench, tmp_path / "cut", "repq", 0)
    monkeypatch.setattr(coco_full, "quantize", None)  # the quantized detector is there
    monkeypatch.setattr(bench, "precision", lambda *given: seen.append(given) or detect(*given))
    again = coco_full.one(bench, tmp_path / "cut", "repq", 0)
    for name in ("box_ap", "mask_ap", "layer_error", "calibrated_on", "images"):
        assert again[name] == whole[name]
    lines = [next((tmp_path / place).glob("*/results.jsonl")).read_text() for place in ("whole", "cut")]
    assert lines[0] == lines[1] and len(lines[0].splitlines()) == 3
    assert coco_full.one(bench, tmp_path / "cut", "repq", 0) == again and len(seen) == 1
    monkeypatch.undo()
    other = open_bench(dataclasses.replace(smoke, weight_bits=4), folder)
    assert coco_full.one(other, tmp_path / "cut", "repq", 0)["layer_error"] > again["layer_error"]


def test_full_precision_is_compared_before_anything_is_quantized(smoke, folder, tmp_path, monkeypatch):
    bench = open_bench(smoke, folder, limit=0, whole=False)
    found = coco_full.full_precision(bench, tmp_path)
    assert "published" not in found and found["images"] == 4
    bench.whole = True
    paper = {name: {"value": found[name] + 0.1, "source": "a table"} for name in ("box_ap", "mask_ap")}
    monkeypatch.setattr(coco_full, "published", lambda job, method, metric: paper[metric])
    assert coco_full.full_precision(bench, tmp_path)["source"] == "a table"
    paper["mask_ap"]["value"] = found["mask_ap"] + 0.2
    with pytest.raises(InputError, match="mask_ap .* in full precision"):
        coco_full.full_precision(bench, tmp_path)


def test_records_carry_the_published_value_and_the_reason(tmp_path):
    job, seeds = coco_job.read("erq_coco_cascade_swin_t_w4a4_erq")
    made = coco_report.make(job, seeds, "full", None, {}, {}, coco_report.WHY_NOT)
    file, = coco_report.write(made, tmp_path, "full", str(tmp_path / "record.json"))
    record = Record.read(file)
    assert record.paper["value"] == 47.9 and record.status == "not run" and record.claim == "erq2024_coco_cascade_t"
    table = coco_report.beside_published(job, tmp_path).set_index(["method", "metric"])
    assert table.loc[("ERQ", "box_ap"), "verdict"].startswith("not run: no COCO folder")
    assert table.loc[("RepQ-ViT", "mask_ap"), "reported"] == 41.4
    claims = comparison.claims()
    assert {(claims.loc[claim, "model"], claim) for claim in coco_job.CLAIMS.values()} == set(coco_job.CLAIMS.items())


@pytest.mark.slow
def test_a_published_checkpoint_runs_from_end_to_end(folder_of_80, tmp_path, published_file):
    job = dataclasses.replace(coco_job.read("erq_coco_mask_swin_t_w4a4_repq")[0], long=64, short=48, images=1)
    bench, reason = coco_report.open_bench(job, "smoke", str(folder_of_80), str(published_file), "cpu", 2)
    exact = coco_full.full_precision(bench, tmp_path)
    results = coco_full.everything(bench, tmp_path, [0])
    made = coco_report.make(job, [0], "smoke", bench, exact, results, reason)
    assert [entry.method for entry in made] == ["RepQ-ViT", "FP32"] and made[0].images == 2
    assert made[0].paper["value"] == 36.1 and 0 <= made[0].metrics["box_ap"]["mean"] <= 100


@pytest.fixture(scope="module")
def folder_of_80(coco_folder, tmp_path_factory):
    """The same images with COCO's 80 categories."""
    from vitq.detection.coco import coco_names

    place = tmp_path_factory.mktemp("eighty") / "coco"
    shutil.copytree(coco_folder, place)
    file = place / "annotations" / "instances_val2017.json"
    content = json.loads(file.read_text())
    content["categories"] = [{"id": number, "name": name} for name, number in zip(*coco_names(), strict=True)]
    file.write_text(json.dumps(content))
    return place


@pytest.fixture(scope="module")
def published_file(tmp_path_factory):
    """A state dict under the published names of Mask R-CNN Swin-T, with random weights."""
    from vitq.detection import load
    from vitq.detection.checkpoint import our_key

    torch.manual_seed(0)
    own = load("mask_rcnn_swin_tiny").state_dict()
    file = tmp_path_factory.mktemp("published") / "mask.pth"
    torch.save({"meta": {}, "state_dict": {key: own[our_key(key)] for key in KEYS}}, file)
    return file


def published_keys():
    """Names of the published file of Mask R-CNN Swin-T, but for the relative position index, which is computed."""
    pairs = [f"backbone.patch_embed.{part}" for part in ("proj", "norm")] + [f"backbone.norm{i}" for i in range(4)]
    tables = []
    for stage, depth in enumerate((2, 2, 6, 2)):
        for number in range(depth):
            block = f"backbone.layers.{stage}.blocks.{number}"
            pairs += [f"{block}.{part}" for part in ("norm1", "norm2", "attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")]
            tables.append(f"{block}.attn.relative_position_bias_table")
        if stage < 3:
            pairs.append(f"backbone.layers.{stage}.downsample.norm")
            tables.append(f"backbone.layers.{stage}.downsample.reduction.weight")
    pairs += [f"neck.{kind}_convs.{level}.conv" for kind in ("lateral", "fpn") for level in range(4)]
    pairs += [f"rpn_head.{part}" for part in ("rpn_conv", "rpn_cls", "rpn_reg")]
    pairs += [f"roi_head.bbox_head.{part}" for part in ("fc_cls", "fc_reg", "shared_fcs.0", "shared_fcs.1")]
    pairs += [f"roi_head.mask_head.{part}" for part in (*(f"convs.{i}.conv" for i in range(4)), "upsample",
                                                        "conv_logits")]
    return [f"{name}.{kind}" for name in pairs for kind in ("weight", "bias")] + tables


KEYS = published_keys()


def test_the_keys_are_those_of_the_published_file():
    assert len(KEYS) + 12 == 231  # and a relative position index for each of 12 blocks


def test_committed_notebook_shows_the_row_and_says_that_it_was_not_run(shown_outputs):
    shown = shown_outputs(NOTEBOOK)
    assert "not run: no COCO folder" in shown and "36.8" in shown


def test_committed_notebook_ran_with_the_detectors_that_are_shipped():
    from vitq.detection import load
    from vitq.detection.results import fingerprint

    facts = nbformat.read(NOTEBOOK, as_version=4).metadata.vitq
    for name in facts["parameters"]["detectors"]:
        assert facts["data"][name] == fingerprint(load(name))[:16], f"{name} has changed: run the notebook again"
