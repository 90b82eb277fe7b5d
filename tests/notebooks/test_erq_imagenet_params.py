"""ERQ's full runs: the files are the published rows, full precision comes first, and a run goes on where it was."""

import dataclasses

import pytest
import timm
import torch
import yaml
from contents import ROOT

from vitq import comparison
from vitq.errors import InputError, MissingError
from vitq.papers.erq2024 import full, full_job, full_report
from vitq.records import Record

FULL = ROOT / "notebooks" / "params" / "full"
FILES = sorted(FULL.glob("erq_imagenet_*.yml"))
NOTEBOOK = ROOT / "notebooks" / "erq2024" / "imagenet.ipynb"
SMOKE = ROOT / "notebooks" / "params" / "smoke" / "erq_imagenet.yml"
# Part of the file's name that timm 0.4.12 loads, with which the published rows were made; crop of RepQ-ViT's code
WEIGHTS = {
    "ViT-S": ("S_16-i21k-300ep-lr_0.001-aug_light1-wd_0.03-do_0.0-sd_0.0--imagenet2012-steps_20k-lr_0.03-res_224", 0.9),
    "ViT-B": ("B_16-i21k-300ep-lr_0.001-aug_medium1-wd_0.1-do_0.0-sd_0.0--imagenet2012-steps_20k-lr_0.01-res_224", 0.9),
    "DeiT-T": ("deit_tiny_patch16_224-a1311bcf", 0.875), "DeiT-S": ("deit_small_patch16_224-cd65a155", 0.875),
    "DeiT-B": ("deit_base_patch16_224-b5f2ef4d", 0.875), "Swin-S": ("swin_small_patch4_window7_224", 0.9),
    "Swin-B": ("swin_base_patch4_window7_224_22kto1k", 0.9)}  # fmt: skip
BITS = ("W3A4", "W4A4", "W5A5")


def test_there_is_a_file_for_each_network_at_each_width():
    found = [full_job.read(file.stem)[0] for file in FILES]
    assert sorted((job.network, job.bits) for job in found) == sorted((n, b) for n in WEIGHTS for b in BITS)
    assert [job.name for job in found] == [file.stem for file in FILES]


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_a_file_says_what_was_published(file):
    job, seeds = full_job.read(file.stem)
    weights, crop = WEIGHTS[job.network]
    tag = job.model.removeprefix("timm:")
    assert "." in tag and timm.get_pretrained_cfg(tag).url.rpartition("/")[2].rpartition(".")[0] == weights
    assert timm.get_pretrained_cfg(tag).interpolation == "bicubic" and job.crop_pct == crop
    settings = comparison.published("erq2024_settings")
    settings = settings[(settings["model"] == job.network) & (settings["method"] == "ERQ")].set_index("metric")["value"]
    options = {name: job.arguments("erq").get(name) for name in ("coe", "k", "rounds")}
    assert options["coe"] == settings["lambda"] and job.images == settings["calibration_images"]
    assert options["k"] in (None, settings["k"]) and options["rounds"] in (None, settings["rounds"])
    assert len(seeds) >= 3 and job.methods[0] == "erq" and {"erq_plus", "gptq", "repq"} <= set(job.methods)
    first = file.read_text().splitlines()[0]
    for method in ("erq", "erq_plus"):
        paper = full_job.published(job, method)
        assert paper is None or f"published {paper['value']:.2f} % " in first.replace("and ", "published ")
    assert ("no published figure" in first) == (full_job.published(job, "erq_plus") is None)


def test_every_published_accuracy_has_a_file_or_the_readme_says_why_not():
    made = {(job.network, full_job.NAMES[m], job.bits) for job in (full_job.read(f.stem)[0] for f in FILES)
            for m in job.methods} | {(network, "FP32", "FP32") for network in WEIGHTS}  # fmt: skip
    why = next(part for part in (FULL / "README.md").read_text().split("\n- ") if part.startswith("At W5A5"))
    for line in comparison.published(full_job.TABLE).to_dict("records"):
        if (line["model"], line["method"], line["bits"]) not in made:
            assert line["method"] in why or (line["method"] == "RepQ-ViT" and (
                line["bits"] == "W6A6" or line["model"] == "Swin-T")), line  # fmt: skip


def test_the_list_of_runs_in_the_readme_is_that_of_the_files():
    readme = (FULL / "README.md").read_text()
    for file in FILES:
        job = full_job.read(file.stem)[0]
        paper = full_job.published(job, "erq")
        shown = "" if paper is None else f"{paper['value']:.2f}"
        assert f"| `{file.name}` | {job.network} {job.bits} | {shown} |" in readme
        assert f"notebooks/erq2024/imagenet.ipynb -f notebooks/params/full/{file.name} -p data_path" in readme


@pytest.mark.parametrize(("change", "message"), [
    ({"variant": "paper"}, "variant"), ({"methods": ["magic"]}, "methods"), ({"methods": []}, "methods"),
    ({"weight_bits": 1}, "weight_bits"), ({"images": 0}, "images"), ({"options": {"speed": 1}}, "unknown speed"),
    ({"lambda": 1}, "job: lambda"), ({"coe": -1.0}, "coe"),
])
def test_a_wrong_job_is_refused_before_any_work(change, message):
    with pytest.raises(InputError, match=message):
        full_job.Job.from_dict(yaml.safe_load(SMOKE.read_text())["job"] | change)


def test_parameters_win_over_the_file():
    job, seeds = full_job.resolve("erq_imagenet_swin_b_w3a4", {}, [7], "released", ["repq", "erq_plus"])
    assert seeds == [7] and job.methods == ("repq", "erq_plus") and job.bits == "W3A4"
    assert job.arguments("repq")["merge"] and job.arguments("erq_plus")["flip_rule"] == "snap_code"
    for wrong in ([-1], [True], ["0"]):
        with pytest.raises(InputError, match="seeds"):
            full_job.resolve("erq_imagenet_swin_b_w3a4", {}, wrong, "", [])
    with pytest.raises(InputError, match="erq_imagenet_vit_s_w4a4"):
        full_job.resolve("erq_imagenet_vit_h_w4a4", {}, [], "", [])


@pytest.fixture(scope="module")
def images(tmp_path_factory, draw_folder):
    return str(draw_folder(tmp_path_factory.mktemp("shaped"), (11, 14), (3, 4)))


@pytest.fixture
def smoke():
    return full_job.Job.from_dict(yaml.safe_load(SMOKE.read_text())["job"])


def open_bench(job, images):
    return full.Bench(job, images, "cpu", whole=False)


def test_a_run_goes_on_where_it_was_and_takes_nothing_over_that_differs(smoke, images, tmp_path, monkeypatch):
    whole = full.everything(open_bench(smoke, images), tmp_path / "whole", [0, 1])
    calls, quantize = [], full.METHODS["repq"]

    def dies_once(*arguments, **options):
        calls.append(arguments)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return quantize(*arguments, **options)

    monkeypatch.setitem(full.METHODS, "repq", dies_once)
    with pytest.raises(KeyboardInterrupt):
        full.everything(open_bench(smoke, images), tmp_path / "cut", [0, 1])
    assert len(list((tmp_path / "cut").glob("*.json"))) == 3  # both of seed 0, ERQ of seed 1
    again = full.everything(open_bench(smoke, images), tmp_path / "cut", [0, 1])
    assert len(calls) == 3
    for method, found in whole.items():
        for one, other in zip(found, again[method], strict=True):
            for name in ("top1", "loss", "drawn", "layer_error", "images"):
                assert one[name] == other[name]
        assert found[0]["drawn"] != found[1]["drawn"]
    full.everything(open_bench(dataclasses.replace(smoke, weight_bits=3), images), tmp_path / "cut", [0])
    assert len(calls) == 4


def test_full_precision_is_compared_before_anything_is_quantized(smoke, images, tmp_path, monkeypatch):
    bench = open_bench(smoke, images)
    found = full.full_precision(bench, tmp_path)
    assert "published" not in found and found["images"] == 7
    monkeypatch.setitem(full.IMAGENET, "classes", 2)
    paper = {"value": found["top1"] - 0.1, "source": "a table"}
    monkeypatch.setattr(full, "published", lambda job, method: paper)
    assert full.full_precision(bench, tmp_path)["published"] == paper["value"]
    for moved in (-0.15, 0.15):
        paper["value"] = found["top1"] + moved
        with pytest.raises(InputError, match="in full precision"):
            full.full_precision(bench, tmp_path)


def test_the_network_sees_images_as_it_was_evaluated(smoke, images):
    bench = open_bench(smoke, images)
    assert bench.test.crop_pct == bench.train.crop_pct == 0.9 and bench.test.size == 32
    assert bench.test.mean == tuple(bench.model.pretrained_cfg["mean"])
    first, drawn = bench.calibration(3)
    assert first.shape == (4, 3, 32, 32) and drawn == bench.calibration(3)[1] and first.equal(bench.calibration(3)[0])


def test_what_is_missing_is_named(smoke, images):
    with pytest.raises(MissingError, match="data_path"):
        full_report.open_bench(smoke, "full", "", "cpu", "", 0)
    with pytest.raises(InputError, match="limit_images"):
        full_report.open_bench(smoke, "smoke", images, "cpu", "", -1)
    with pytest.raises(InputError, match="fewer than the 26"):
        open_bench(dataclasses.replace(smoke, images=26), images)
    with pytest.raises(InputError, match="1,?000"):
        full_report.open_bench(smoke, "full", images, "cpu", "", 0)
    if not torch.cuda.is_available():
        with pytest.raises(MissingError, match="device=cuda"):
            full_report.open_bench(smoke, "smoke", images, "cuda", "", 0)


def test_records_carry_the_published_value_and_the_reason(tmp_path):
    job, seeds = full_job.read("erq_imagenet_deit_s_w4a4")
    made = full_report.make(job, seeds, "full", None, {}, {}, "no ImageNet folder given (data_path)")
    files = full_report.write(made, tmp_path, "full", str(tmp_path / "record.json"))
    assert [entry.method for entry in made] == ["ERQ", "ERQ+", "GPTQ", "RepQ-ViT"] and len(set(files)) == 4
    assert Record.read(files[0]).paper["value"] == 72.56 and Record.read(files[0]).status == "not run"
    table = full_report.beside_published(job, tmp_path).set_index("method")
    assert table.loc["ERQ", "verdict"].startswith("not run: no ImageNet") and table.loc["ERQ+", "reported"] == 74.35


def test_committed_notebook_shows_the_row_and_says_that_it_was_not_run(shown_outputs):
    shown = shown_outputs(NOTEBOOK)
    for words in ("not run: no ImageNet folder given (data_path)", "measured here", "68.91", "71.61"):
        assert words in shown
    assert "top-1 " not in shown
