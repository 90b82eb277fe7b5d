"""The small study: shared work changes no bit, scores are what they say, jobs are done once."""

import json

import pandas as pd
import pytest
import torch

from vitq import data, zoo
from vitq.errors import InputError
from vitq.papers.erq2024 import METHODS, ErqOptions, quantize_erq, study, study_probe, study_tables
from vitq.papers.erq2024.study_shared import (
    METHOD_OPTIONS,
    layer_errors,
    method_options,
    prepared,
    quantized,
    rounded,
    shared_key,
)

FAST = {"coe": 100.0, "calibration_images": 6}


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory):
    patch = pytest.MonkeyPatch()
    patch.setenv("VITQ_CACHE", str(tmp_path_factory.mktemp("cache")))
    yield
    patch.undo()


def pixels(model, split="train", count=6, seed=0):
    found = data.load("glyphs", split, images=count, seed=seed).for_model(model)
    return found.normalize(found.images)


def same(a, b):
    a, b = a.state_dict(), b.state_dict()
    return a.keys() == b.keys() and all(a[k].equal(b[k]) for k in a if isinstance(a[k], torch.Tensor))


@pytest.mark.parametrize("name", ["vit_micro", "swin_micro", "mobilenet_micro"])
def test_sharing_changes_no_bit(name):
    assert METHOD_OPTIONS.keys() == METHODS.keys()
    model = zoo.load(name)
    images = pixels(model)
    base = prepared(model, images, method_options("repq", **FAST))
    for bits, method in ((4, "erq"), (3, "erq"), *((3, m) for m in METHODS if m not in ("nearest", "erq"))):
        options = method_options(method, weight_bits=bits, **FAST)
        assert shared_key(options) == shared_key(method_options("repq", **FAST))
        assert same(quantized(base, options)[0], METHODS[method](model, images, bits, 4, **FAST).model), method
    plain = method_options("nearest", weight_bits=3, **FAST)
    assert same(rounded(model, images, plain), METHODS["nearest"](model, images, 3, 4, **FAST).model)
    again = quantized(base, method_options("erq", weight_bits=3, coe=1e4, calibration_images=6))[0]
    assert same(again, quantize_erq(model, images, 3, 4, coe=1e4, calibration_images=6).model)


def test_what_cannot_be_shared_has_another_key():
    keys = {shared_key(ErqOptions(**change)) for change in (
        {}, {"act_bits": 6}, {"round_zero_point": False}, {"reparameterize": False}, {"calibration_images": 8})}
    assert len(keys) == 5 and shared_key(ErqOptions(weight_bits=3, coe=1.0, dual=True)) in keys


def test_layer_errors_follow_the_steps():
    model = zoo.load("vit_micro")
    images, options = pixels(model), method_options("erq", weight_bits=3, **FAST)
    base = prepared(model, images, options)
    result, outcomes = quantized(base, options)
    table = pd.DataFrame(layer_errors(base, result, options, pixels(model, "test", 8)))
    reports = {r.name: r for r in quantize_erq(model, images, 3, 4, **FAST).layers}
    own = table[table.images == "calibration"].set_index("layer")
    for name, row in own.iterrows():
        report = reports[name]
        assert row[["inputs", "aqer", "wqer"]].tolist() == pytest.approx(
            [report.error_inputs, report.error_aqer, report.error], rel=1e-6, abs=1e-12)
        assert row[["rounding_nearest", "rounding_wqer"]].tolist() == pytest.approx(
            [report.error_weight, report.error_weight_now], rel=1e-6, abs=1e-12)
    assert [o.stuck for o in outcomes] == [reports[o.name].stuck for o in outcomes]
    found = study_tables.reductions(table)
    assert "patch_embed.proj" not in set(found.layer) and (found[found.images == "calibration"].Aqer > 0).all()
    held = found[(found.images == "held out") & (found.layer == "blocks.0.mlp.fc2")].iloc[0]
    assert held.Wqer == pytest.approx(100 * (1 - held.rounding_wqer / held.rounding_nearest))


def case(method="erq", **options):
    return {"method": method, "images": 6, "bits": "W3A4", "options": FAST | {"weight_bits": 3} | options}


def job(cases, **changes):
    return {"kind": "network", "model": "vit_micro", "source": "glyphs", "draw": 2, "cases": cases,
            "test": {"name": "glyphs", "split": "test", "images": 82}} | changes


def test_a_network_is_scored_on_other_images(tmp_path):
    given = job([case("nearest"), case(), case(round_zero_point=False)], out=str(tmp_path / "a" / "job.json"))
    found = study.studied(given)
    assert [row["levels"] for row in found["rows"]] == [16, 16, 17]
    model = zoo.load("vit_micro")
    test = data.load("glyphs", "test", images=82).for_model(model)
    result = quantize_erq(model, pixels(model, seed=2), 3, 4, **FAST).model
    with torch.no_grad():
        exact, own = (m(test.normalize(test.images)) for m in (model, result))
    row = found["rows"][1]
    assert row["error"] == pytest.approx(((own - exact).square().sum() / exact.square().sum()).item(), rel=1e-4)
    assert 10 ** (-row["sqnr_db"] / 10) == pytest.approx(row["error"])
    assert row["top1"] == pytest.approx(100 * (own.argmax(1) == test.labels).double().mean().item())
    assert row["agreement"] == pytest.approx(100 * (own.argmax(1) == exact.argmax(1)).double().mean().item())
    assert row["draw"] == 2 and row["bits"] == "W3A4" and "options" not in row
    assert study.studied(given) == json.loads(json.dumps(found))  # read back, not done again
    other = study.studied(job([case()], draw=3))
    assert other["rows"][0]["error"] != row["error"]


def test_sequential_inputs_are_another_network():
    found = study.studied(job([case(), case(data_path="sequential")]))
    assert found["rows"][0]["error"] != found["rows"][1]["error"]


def test_the_probe_reads_what_it_was_trained_on(tmp_path):
    given = {"model": "vit_micro", "image_size": 32, "train": 410, "test": 123, "file": str(tmp_path / "probe.pt")}
    found = study.studied({"kind": "probe", **given})
    model = zoo.load("vit_micro")
    assert found["top1"] > 50 and found["classes"] == 41
    assert study_probe.top1(model, given["file"]) == pytest.approx(found["top1"], abs=1)
    larger = zoo.load("vit_micro", image_size=48)
    assert study_probe.top1(larger, given["file"]) == pytest.approx(found["top1"], abs=1)  # brought back to 32 pixels
    assert larger.pos_embed.shape != model.pos_embed.shape
    worse = study.studied(job([case("nearest", weight_bits=2) | {"probe": True}], probe=given["file"]))
    assert worse["rows"][0]["probe_top1"] < found["top1"]


LAYER = {"model": "vit_micro", "image_size": None, "source": "glyphs", "images": 8, "draw": 0, "test_images": 8,
         "bits": 3, "layers": ["blocks.1.attn.qkv", "blocks.1.mlp.fc2"]}


def test_layers_are_searched_and_described():
    found = study.studied(LAYER | {"kind": "layers", "searches": [["exact_gain", 1, 100], ["snap_code", 1, 100]]})
    ours, theirs = found["searches"][:2]
    assert ours["ratio"] <= theirs["ratio"] <= 1 and ours["stuck"] == 0 <= theirs["stuck"] <= 100
    assert {row["layer"] for row in found["inputs"]} == set(LAYER["layers"])
    for row in found["inputs"]:
        assert sum(row["input_density"]) * 8 / len(row["input_density"]) == pytest.approx(1, abs=0.03)
    table = study_tables.proxies(found)
    assert (table["rank correlation"] > 0.5).all()
    near, refined = (next(r for r in found["proxy"] if r["rule"] == rule) for rule in ("nearest", "exact_gain"))
    assert all(a <= b + 1e-15 for a, b in zip(refined["proxy"], near["proxy"], strict=True))


def test_the_program_finds_the_optimum():
    found = study.studied(LAYER | {"kind": "mipq", "layers": LAYER["layers"][:1], "sizes": [[6, 3, 10], [8, 2, 10]]})
    assert [row["n"] for row in found["rows"]] == [6] * 3 + [8] * 2
    for row in found["rows"]:
        assert row["mipq"] == pytest.approx(row["optimum"], rel=1e-6) and row["optimal"]
        assert row["optimum"] <= row["exact_gain"] * (1 + 1e-9) <= row["nearest"] * (1 + 2e-9)
    names = {"nearest": "nearest", "exact_gain": "search", "mipq": "program"}
    ratios = study_tables.program_ratios(found["rows"], names)
    table = study_tables.program_summary(ratios, "search", "program")
    assert table["n"].tolist() == [6, 8] and table["proven optimal"].tolist() == [3, 2]
    assert (table["nearest"] >= table["search"] - 1e-9).all() and (table["times slower"] > 1).all()


def test_verdicts_need_two_standard_errors():
    assert study_tables.beyond([1.0, 1.1, 0.9]) and not study_tables.beyond([1.0, -1.0, 0.5])
    assert not study_tables.beyond([5.0]) and not study_tables.beyond([1.0, 1.1, 0.9], 1.0)
    counted = study_tables.count("x", [[1.0, 1.1], [-1.0, -1.1], [1.0, -1.0], [3.0]])
    assert counted == {"claim": "x", "comparisons": 3, "as claimed": 1, "opposite": 1, "within noise": 1}


def test_pairs_and_bars_go_by_draw():
    table = pd.DataFrame([
        {"network": "a", "bits": "W4A4", "method": m, "draw": d, "error": e + 0.1 * d, "top1": 90 - 100 * e,
         "levels": 16, "stuck": 0.0, "setting": "s"}
        for m, e in (("RepQ-ViT", 0.5), ("GPTQ", 0.4), ("ERQ", 0.3)) for d in range(2)])  # fmt: skip
    assert study_tables.paired(table, "ERQ", "GPTQ") == [pytest.approx([0.1, 0.1])]
    assert study_tables.paired(table, "ERQ", "GPTQ", "top1") == [pytest.approx([10, 10])]
    assert study_tables.paired(table, "ERQ", "Aqer") == study_tables.paired(table, "ERQ", "GPTQ", "agreement") == []
    row = study_tables.bar(table).iloc[0]
    assert row["ERQ / RepQ-ViT"] == pytest.approx(0.35 / 0.55) and row["at most 0.8 of RepQ-ViT"] == "yes"
    found = study_tables.differences(table[table.draw == 1].assign(error=1.2), table)
    assert found.error_ratio.tolist() == pytest.approx([1.2 / 0.6, 1.2 / 0.5, 1.2 / 0.4])
    assert study_tables.costs(found).iloc[0]["error ratio"].startswith("2.467")
    assert study_tables.summarized(table, ["error", "cosine"]).iloc[0]["error"] == "0.550 (0.071)"


def test_wrong_jobs_are_refused():
    with pytest.raises(InputError, match="kind='nap': choose one of network, probe, layers, mipq"):
        study.studied({"kind": "nap"})
